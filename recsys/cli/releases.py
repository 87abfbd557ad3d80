"""`recsys releases`: what was built, whether it is whole, what was in service, and what may go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from recsys.cli.options import CONFIG_DEFAULT, ConfigFile, Json, show

app = typer.Typer(help="List, show, verify, pin and prune releases, and tell their history.", no_args_is_help=True)

Which = Annotated[str, typer.Argument(metavar="RELEASE", help="A release id of the workspace, a folder or a URL.")]
Registered = Annotated[str, typer.Argument(metavar="RELEASE", help="The id of a registered release.")]


@app.command("list")
def list_releases(config: ConfigFile = CONFIG_DEFAULT, as_json: Json = False) -> None:
    """List the releases of a workspace, newest first; the one in service is marked."""
    from recsys.config.loading import load_config  # noqa: PLC0415
    from recsys.errors import ReleaseError  # noqa: PLC0415
    from recsys.release.bundle import read_manifest  # noqa: PLC0415
    from recsys.release.mlflow_registry import Tracker  # noqa: PLC0415

    checked = load_config(config)
    champion = Tracker(checked).champion()
    rows: list[dict[str, Any]] = []
    for folder in (checked.workspace / "releases").glob("[!.]*"):
        try:
            manifest = read_manifest(folder)
        except ReleaseError as error:
            typer.echo(f"warning: {error}", err=True)
            continue
        row = manifest.model_dump(include={"release_id", "created_at", "num_items", "dimension", "index_recall"})
        rows.append({**row, "champion": champion is not None and champion.release_id == manifest.release_id})
    rows.sort(key=lambda row: (row["created_at"], row["release_id"]), reverse=True)
    show(rows, as_json, lambda: _tell(rows))


@app.command("show")
def show_release(release: Which, config: ConfigFile = CONFIG_DEFAULT, as_json: Json = False) -> None:
    """Show the manifest of a release."""
    from recsys.release.bundle import read_manifest  # noqa: PLC0415

    manifest = read_manifest(_folder(release, config)).model_dump()

    def tell() -> None:
        for key, value in manifest.items():
            if isinstance(value, dict):
                typer.echo(f"{key}:")
                for inner, detail in value.items():
                    typer.echo(f"  {inner}: {detail}")
            else:
                typer.echo(f"{key}: {value}")

    show(manifest, as_json, tell)


@app.command("verify")
def verify(release: Which, config: ConfigFile = CONFIG_DEFAULT, as_json: Json = False) -> None:
    """Check every file of a release, and ask it known questions."""
    from recsys.release.bundle import Release  # noqa: PLC0415

    loaded = Release.load(_folder(release, config))
    result = {"release_id": loaded.release_id, "path": str(loaded.path), "num_items": len(loaded.catalog)}
    show(result, as_json, lambda: typer.echo(f"Release {loaded.release_id} is whole: {len(loaded.catalog):,} items."))


@app.command("history")
def history(config: ConfigFile = CONFIG_DEFAULT, as_json: Json = False) -> None:
    """Tell which release was in service when, who put it there, and why."""
    from recsys.config.loading import load_config  # noqa: PLC0415
    from recsys.release import promotion  # noqa: PLC0415
    from recsys.release.mlflow_registry import Tracker  # noqa: PLC0415

    tracker = Tracker(load_config(config))
    events, champion = promotion.events(tracker), tracker.champion()
    last, now = events[-1].after if events else None, champion.release_id if champion else None
    if last != now:
        typer.echo(
            f"warning: the champion is {now or 'nobody'}, the last event tells of {last or 'nobody'}: the alias was "
            "changed by hand, or whoever changed it was killed before writing it down.",
            err=True,
        )

    def tell() -> None:
        if not events:
            typer.echo("No release was in service yet.")
            return
        table = Table()
        for column in ("when", "who", "what", "from", "to", "gate", "why"):
            table.add_column(column)
        for event in events:
            gate = (
                "not asked" if not event.checks else f"failed {', '.join(event.failed)}" if event.failed else "passed"
            )
            table.add_row(event.when, event.who, event.action, event.before or "", event.after, gate, event.why)
        Console(highlight=False).print(table)

    show([event.as_data() for event in events], as_json, tell)


@app.command("pin")
def pin(
    release: Registered,
    why: Annotated[str, typer.Option("--why", metavar="TEXT", help="The reason.")] = "by hand",
    config: ConfigFile = CONFIG_DEFAULT,
) -> None:
    """Keep a release from being pruned, here and on other machines."""
    from recsys.cli.champion import known  # noqa: PLC0415
    from recsys.config.loading import load_config  # noqa: PLC0415
    from recsys.release.mlflow_registry import Tracker  # noqa: PLC0415

    tracker = Tracker(load_config(config))
    tracker.pin(known(tracker, release), why)
    typer.echo(f"Release {release} is pinned: {why}.")


@app.command("unpin")
def unpin(release: Registered, config: ConfigFile = CONFIG_DEFAULT) -> None:
    """Let a pinned release be pruned again."""
    from recsys.cli.champion import known  # noqa: PLC0415
    from recsys.config.loading import load_config  # noqa: PLC0415
    from recsys.release.mlflow_registry import Tracker  # noqa: PLC0415

    tracker = Tracker(load_config(config))
    tracker.unpin(known(tracker, release))
    typer.echo(f"Release {release} is not pinned.")


@app.command("prune")
def prune(
    keep: Annotated[int, typer.Option("--keep", min=1, metavar="N", help="Newest releases and runs to keep.")] = 7,
    servers: Annotated[
        list[str] | None,
        typer.Option("--server", metavar="URL", help="A look-up service whose release is kept; repeatable."),
    ] = None,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it, only tell.")] = False,
    config: ConfigFile = CONFIG_DEFAULT,
    as_json: Json = False,
) -> None:
    """Delete old release and run folders of the workspace; a dry run unless you say --yes.

    Kept are the champion, the one before, what is pinned or warm-started from, what the servers serve, and the
    newest. MLflow's copies and those of data.releases stay.
    """
    from recsys.config.loading import load_config  # noqa: PLC0415
    from recsys.release import promotion, retention  # noqa: PLC0415
    from recsys.release.mlflow_registry import Tracker  # noqa: PLC0415

    checked = load_config(config)
    with promotion.locked(checked.workspace):
        tracker = Tracker(checked)
        needed = {Path(checked.data.warm_start).name: "data.warm_start"} if checked.data.warm_start else {}
        needed |= {release_id: f"pinned: {why}" for release_id, why in tracker.pins().items()}
        needed |= {retention.served(server): f"served by {server}" for server in servers or ()}
        for version, why in ((tracker.previous(), "previous"), (tracker.champion(), "champion")):
            if version is not None:
                needed[version.release_id] = why
        plan = retention.plan(checked.workspace, needed, keep)
        gone = retention.prune(checked.workspace, plan) if yes else []
    result = {
        "kept": plan.kept,
        "releases": [folder.name for folder in plan.releases],
        "runs": [folder.name for folder in plan.runs],
        "deleted": [str(folder) for folder in gone],
    }

    def tell() -> None:
        for name, why in plan.kept.items():
            typer.echo(f"keep    release {name}: {why}")
        verb = "deleted" if yes else "delete "
        for folder in [*plan.releases, *plan.runs]:
            if not yes or folder in gone:
                typer.echo(f"{verb} {folder.parent.name.removesuffix('s')} {folder.name}")
        if not yes:
            typer.echo("Nothing was deleted. Add --yes to do it.")

    show(result, as_json, tell)


def _folder(release: str, config: Path) -> Path:
    """A folder as it is, of a URL a copy; a plain id below the workspace."""
    if Path(release).is_dir() or "/" in release:
        from recsys.release import remote as depot  # noqa: PLC0415

        return depot.local(release)
    from recsys.config.loading import load_config  # noqa: PLC0415

    return load_config(config).workspace / "releases" / release


def _tell(rows: list[dict[str, Any]]) -> None:
    if not rows:
        typer.echo("No releases yet.")
        return
    table = Table()
    for column in ("release", "created", "items", "dimension", "index recall", ""):
        table.add_column(column)
    for row in rows:
        table.add_row(
            row["release_id"],
            row["created_at"],
            f"{row['num_items']:,}",
            str(row["dimension"]),
            f"{row['index_recall']:.4f}",
            "champion" if row["champion"] else "",
        )
    Console(highlight=False).print(table)
