"""`recsys releases`: list, show, check, pin and prune releases, and show the promotion history."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from recsys.commands.champion import registered_version
from recsys.commands.options import CONFIG_DEFAULT, ConfigFile, Json, print_result

app = typer.Typer(
    help="List, show, check, pin and prune releases, and show the promotion history.", no_args_is_help=True
)

ReleaseArgument = Annotated[
    str, typer.Argument(metavar="RELEASE", help="Id of a release in the workspace, or a folder or URL.")
]
RegisteredRelease = Annotated[str, typer.Argument(metavar="RELEASE", help="Id of a registered release.")]


@app.command("list")
def list_releases(config: ConfigFile = CONFIG_DEFAULT, as_json: Json = False) -> None:
    """List the releases of a workspace, newest first, and mark the champion."""
    from recsys.config.loading import load_config  # noqa: PLC0415
    from recsys.errors import ReleaseError  # noqa: PLC0415
    from recsys.release.manifest import read_manifest  # noqa: PLC0415
    from recsys.release.mlflow_registry import Tracker  # noqa: PLC0415

    loaded = load_config(config)
    champion = Tracker(loaded).champion()
    rows: list[dict[str, Any]] = []
    for folder in (loaded.workspace / "releases").glob("[!.]*"):
        try:
            manifest = read_manifest(folder)
        except ReleaseError as error:
            typer.echo(f"warning: {error}", err=True)
            continue
        row = manifest.model_dump(include={"release_id", "created_at", "num_items", "dimension"})
        row["spaces"] = sorted(manifest.spaces)
        row["index_recall"] = min(entry.index_recall for entry in manifest.spaces.values())
        rows.append({**row, "champion": champion is not None and champion.release_id == manifest.release_id})
    rows.sort(key=lambda row: (row["created_at"], row["release_id"]), reverse=True)
    print_result(rows, as_json, lambda: _print_releases(rows))


@app.command("show")
def show_release(release: ReleaseArgument, config: ConfigFile = CONFIG_DEFAULT, as_json: Json = False) -> None:
    """Show the manifest of a release."""
    from recsys.release.manifest import read_manifest  # noqa: PLC0415

    manifest = read_manifest(_folder(release, config)).model_dump()

    def print_text() -> None:
        for key, value in manifest.items():
            if isinstance(value, dict):
                typer.echo(f"{key}:")
                for inner_key, inner_value in value.items():
                    typer.echo(f"  {inner_key}: {inner_value}")
            else:
                typer.echo(f"{key}: {value}")

    print_result(manifest, as_json, print_text)


@app.command("check")
def check(release: ReleaseArgument, config: ConfigFile = CONFIG_DEFAULT, as_json: Json = False) -> None:
    """Check that every file of a release is undamaged, and that its index answers queries correctly."""
    from recsys.release.bundle import Release  # noqa: PLC0415

    loaded = Release.load(_folder(release, config))
    result = {"release_id": loaded.release_id, "path": str(loaded.path), "num_items": len(loaded.catalog)}
    text = f"Release {loaded.release_id} is undamaged: {len(loaded.catalog):,} items."
    print_result(result, as_json, lambda: typer.echo(text))


@app.command("history")
def history(config: ConfigFile = CONFIG_DEFAULT, as_json: Json = False) -> None:
    """Show which release was the champion when, who promoted it, and the reason."""
    from recsys.config.loading import load_config  # noqa: PLC0415
    from recsys.release import promotion  # noqa: PLC0415
    from recsys.release.mlflow_registry import Tracker  # noqa: PLC0415

    tracker = Tracker(load_config(config))
    events, champion = promotion.events(tracker), tracker.champion()
    recorded, current = events[-1].after if events else None, champion.release_id if champion else None
    if recorded != current:
        typer.echo(
            f"warning: the champion is {current or 'not set'}, but the last recorded promotion is of "
            f"{recorded or 'no release'}: the alias was changed by hand, or a promotion was interrupted before it was "
            "recorded.",
            err=True,
        )

    def print_text() -> None:
        if not events:
            typer.echo("No release has been promoted yet.")
            return
        table = Table()
        for column in ("time", "user", "action", "from", "to", "gate", "reason"):
            table.add_column(column)
        for event in events:
            gate = f"failed {', '.join(event.failed)}" if event.failed else "passed" if event.checks else "not checked"
            table.add_row(event.time, event.user, event.action, event.before or "", event.after, gate, event.reason)
        Console(highlight=False).print(table)

    print_result([event.to_dict() for event in events], as_json, print_text)


@app.command("pin")
def pin(
    release: RegisteredRelease,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Reason to record with the pin.")] = "by hand",
    config: ConfigFile = CONFIG_DEFAULT,
) -> None:
    """Protect a release from `prune`, on this and on other machines."""
    from recsys.config.loading import load_config  # noqa: PLC0415
    from recsys.release.mlflow_registry import Tracker  # noqa: PLC0415

    tracker = Tracker(load_config(config))
    tracker.pin(registered_version(tracker, release), reason)
    typer.echo(f"Release {release} is pinned: {reason}.")


@app.command("unpin")
def unpin(release: RegisteredRelease, config: ConfigFile = CONFIG_DEFAULT) -> None:
    """Allow `prune` to delete a pinned release again."""
    from recsys.config.loading import load_config  # noqa: PLC0415
    from recsys.release.mlflow_registry import Tracker  # noqa: PLC0415

    tracker = Tracker(load_config(config))
    tracker.unpin(registered_version(tracker, release))
    typer.echo(f"Release {release} is not pinned.")


@app.command("prune")
def prune(
    keep: Annotated[int, typer.Option("--keep", min=1, metavar="N", help="Number of newest releases to keep.")] = 7,
    servers: Annotated[
        list[str] | None,
        typer.Option("--server", metavar="URL", help="URL of a running service whose release is kept; repeatable."),
    ] = None,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; by default only show what would be deleted.")] = False,
    config: ConfigFile = CONFIG_DEFAULT,
    as_json: Json = False,
) -> None:
    """Delete old releases and runs from the workspace; a dry run unless --yes is given.

    The champion, the previous champion, pinned releases, the release of data.warm_start, releases that the given
    services use, and the newest ones are kept. Copies in MLflow and in data.releases are not deleted.
    """
    from recsys.config.loading import load_config  # noqa: PLC0415
    from recsys.release import promotion, retention  # noqa: PLC0415
    from recsys.release.mlflow_registry import Tracker  # noqa: PLC0415

    loaded = load_config(config)
    with promotion.locked(loaded.workspace):
        tracker = Tracker(loaded)
        needed = {Path(loaded.data.warm_start).name: "data.warm_start"} if loaded.data.warm_start else {}
        needed |= {release_id: f"pinned: {reason}" for release_id, reason in tracker.pins().items()}
        needed |= {retention.served_release(server): f"served by {server}" for server in servers or ()}
        for version, alias in ((tracker.previous(), "previous"), (tracker.champion(), "champion")):
            if version is not None:
                needed[version.release_id] = alias
        plan = retention.plan(loaded.workspace, needed, keep)
        deleted = retention.prune(loaded.workspace, plan) if yes else []
    result = {
        "kept": plan.keep,
        "releases": [folder.name for folder in plan.releases],
        "runs": [folder.name for folder in plan.runs],
        "deleted": [str(folder) for folder in deleted],
    }

    def print_text() -> None:
        for name, reason in plan.keep.items():
            typer.echo(f"keep    release {name}: {reason}")
        verb = "deleted" if yes else "delete "
        for folder in [*plan.releases, *plan.runs]:
            if not yes or folder in deleted:
                typer.echo(f"{verb} {folder.parent.name.removesuffix('s')} {folder.name}")
        if not yes:
            typer.echo("Nothing was deleted. Add --yes to delete.")

    print_result(result, as_json, print_text)


def _folder(release: str, config_file: Path) -> Path:
    """Return the folder of a release: as given, a local copy of a URL, or by its id in the workspace."""
    if Path(release).is_dir() or "/" in release:
        from recsys.release import remote  # noqa: PLC0415

        return remote.fetch(release)
    from recsys.config.loading import load_config  # noqa: PLC0415

    return load_config(config_file).workspace / "releases" / release


def _print_releases(rows: list[dict[str, Any]]) -> None:
    if not rows:
        typer.echo("There are no releases yet.")
        return
    table = Table()
    for column in ("release", "created", "items", "dimension", "spaces", "index recall", "alias"):
        table.add_column(column)
    for row in rows:
        table.add_row(
            row["release_id"],
            row["created_at"],
            f"{row['num_items']:,}",
            str(row["dimension"]),
            ", ".join(row["spaces"]),
            f"{row['index_recall']:.4f}",
            "champion" if row["champion"] else "",
        )
    Console(highlight=False).print(table)
