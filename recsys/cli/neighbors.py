"""`recsys neighbors`: the nearest of every item, for readers that do not ask the service."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from recsys.cli.options import CONFIG_DEFAULT, ConfigFile, Json, Overrides, ReleasePlace, show
from recsys.cli.similar import open_release
from recsys.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("neighbors")(neighbors)


def neighbors(
    *,
    release: ReleasePlace = None,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            envvar="RECSYS_NEIGHBORS_TO",
            metavar="PLACE",
            help="A folder for Parquet or a file.jsonl, both also s3://…; sqlite:///FILE, postgresql://… or redis://…: "
            "the same as neighbors.to. The variable keeps a password out of files and the list of processes.",
        ),
    ] = None,
    k: Annotated[int | None, typer.Option("--k", min=1, help="Neighbors of each; the same as neighbors.k.")] = None,
    config: ConfigFile = CONFIG_DEFAULT,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Export the nearest items of every item, with their similarity.

    To Parquet, JSON lines, SQLite, PostgreSQL or Redis, in the order of `recsys similar`. Readers see the export
    before, whole, until this one is complete. Stopped and started again, it goes on; done, it does nothing.
    """
    from recsys.config.loading import load_config  # noqa: PLC0415

    settings = [
        *(overrides or ()),
        *([] if to is None else [f"neighbors.to={json.dumps(to, ensure_ascii=False)}"]),
        *([] if k is None else [f"neighbors.k={k}"]),
    ]
    checked = load_config(config, settings)
    try:
        from pipelines.context.progress import Progress  # noqa: PLC0415
        from pipelines.export import job  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the jobs need {error.name}, which is not installed. Install recsys[jobs,export], and tracking for the "
            "champion."
        ) from None
    done: dict[str, Any] = job.neighbors(open_release(release, config), checked, Progress())
    show(
        done,
        as_json,
        lambda: typer.echo(
            f"Neighbors of {done['items']:,} items of release {done['release_id']} are in {done['to']}: "
            f"{done['rows']:,} rows"
        ),
    )
