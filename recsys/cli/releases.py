"""`recsys releases`: what was built, and whether it is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from recsys.cli.options import CONFIG_DEFAULT, ConfigFile, Json, show

app = typer.Typer(help="List, show and verify releases.", no_args_is_help=True)

Which = Annotated[str, typer.Argument(metavar="RELEASE", help="A release id of the workspace, a folder or a URL.")]


@app.command("list")
def list_releases(config: ConfigFile = CONFIG_DEFAULT, as_json: Json = False) -> None:
    """List the releases of a workspace, newest first; the one in service is marked."""
    from recsys import config as configuration  # noqa: PLC0415
    from recsys.errors import ReleaseError  # noqa: PLC0415
    from recsys.release import read_manifest  # noqa: PLC0415
    from recsys.tracking import Tracker  # noqa: PLC0415

    checked = configuration.load(config)
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
    from recsys.release import read_manifest  # noqa: PLC0415

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
    from recsys.release import Release  # noqa: PLC0415

    loaded = Release.load(_folder(release, config))
    result = {"release_id": loaded.release_id, "path": str(loaded.path), "num_items": len(loaded.catalogue)}
    show(result, as_json, lambda: typer.echo(f"Release {loaded.release_id} is whole: {len(loaded.catalogue):,} items."))


def _folder(release: str, config: Path) -> Path:
    """A folder as it is, of a URL a copy; a plain id below the workspace."""
    if Path(release).is_dir() or "/" in release:
        from recsys import depot  # noqa: PLC0415

        return depot.local(release)
    from recsys import config as configuration  # noqa: PLC0415

    return configuration.load(config).workspace / "releases" / release


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
