"""`recsys export`: export the nearest neighbors of all items for systems that do not query the service."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from recsys.commands.options import (
    CONFIG_DEFAULT,
    ConfigFile,
    Json,
    Overrides,
    ReleaseLocation,
    extras,
    print_result,
)
from recsys.commands.similar import open_release


def export(
    *,
    release: ReleaseLocation = None,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            envvar="RECSYS_EXPORT_TO",
            metavar="LOCATION",
            help="Target: a folder for Parquet or a file ending in .jsonl, by path or URL, or a database: "
            "sqlite:///FILE, postgresql://… or redis://…; the same as export.to. Set the environment variable to keep "
            "a password out of files and process lists.",
        ),
    ] = None,
    k: Annotated[
        int | None, typer.Option("--k", min=1, help="Number of neighbors of each item; the same as export.k.")
    ] = None,
    config: ConfigFile = CONFIG_DEFAULT,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Export the neighbors of every item.

    Writes Parquet, JSON lines, SQLite, PostgreSQL or Redis. By default, the neighbors are those of `recsys similar`, in
    the same order; `export.answer` selects another answer. Readers see the previous export until the new one is
    complete. An interrupted export resumes; a finished one is not repeated.
    """
    from recsys.config.loading import load_config  # noqa: PLC0415

    settings = [
        *(overrides or ()),
        *([] if to is None else [f"export.to={json.dumps(to, ensure_ascii=False)}"]),
        *([] if k is None else [f"export.k={k}"]),
    ]
    loaded = load_config(config, settings)
    with extras("the export", "jobs", "export", "tracking"):
        from pipelines.context.progress import Progress  # noqa: PLC0415
        from pipelines.export import job  # noqa: PLC0415
    exported = job.export_neighbors(open_release(release, config), loaded, Progress())
    items, rows = f"{exported['items']:,}", f"{exported['rows']:,}"
    text = f"Exported {rows} neighbors of {items} items of release {exported['release_id']} to {exported['to']}"
    print_result(exported, as_json, lambda: typer.echo(text))
