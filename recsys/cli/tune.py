"""`recsys tune`: search for better settings."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from recsys.cli.options import CONFIG_DEFAULT, ConfigFile, Json, Overrides, show
from recsys.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("tune")(tune)


def tune(
    config: ConfigFile = CONFIG_DEFAULT,
    overrides: Overrides = None,
    minutes: Annotated[
        float | None, typer.Option("--minutes", metavar="N", help="Time for all trials; the same as tune.minutes.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Search for better settings on the validation target.

    Tries values of `tune.ranges` and prints, as TOML, what to put into the config.
    Stopped and started again, it goes on.
    """
    from recsys.config.loading import load_config  # noqa: PLC0415

    settings = [*(overrides or ()), *([] if minutes is None else [f"tune.minutes={minutes}"])]
    checked = load_config(config, settings)
    try:
        from pipelines.context.progress import Progress  # noqa: PLC0415
        from pipelines.context.run_context import RunContext  # noqa: PLC0415
        from pipelines.tuning import tune as tuning  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"tuning needs {error.name}, which is not installed. Install recsys[train,jobs,tracking,tune]."
        ) from None
    context = RunContext.from_config(checked, Progress())
    found: dict[str, Any] = tuning.tune(
        checked, context.run, context.inputs, context.progress, context.tracking.tracker
    )
    # all of it is TOML, so that it may be sent to a file as it is
    show(found, as_json, lambda: typer.echo(f"{tuning.snippet(found)}# in {found['path']}"))
