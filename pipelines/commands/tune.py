"""`recsys tune`: search for better settings."""

from __future__ import annotations

from typing import Annotated

import typer

from recsys.commands.options import (
    CONFIG_DEFAULT,
    ConfigFile,
    Json,
    Overrides,
    SenseOption,
    extras,
    print_result,
)


def tune(
    config: ConfigFile = CONFIG_DEFAULT,
    overrides: Overrides = None,
    minutes: Annotated[
        float | None, typer.Option("--minutes", metavar="N", help="Time for all trials; the same as tune.minutes.")
    ] = None,
    sense: SenseOption = "next",
    as_json: Json = False,
) -> None:
    """Search for better settings, measured without the test targets.

    Tries values of `tune.ranges`, and prints the best ones as TOML for the config. An interrupted search resumes.
    For the sense `next`, the validation targets are predicted, and all settings but those of `[similar]` are tried; for
    `similar`, items are compared with what other users associate.
    """
    from recsys.config.loading import load_config  # noqa: PLC0415

    settings = [*(overrides or ()), *([] if minutes is None else [f"tune.minutes={minutes}"])]
    loaded = load_config(config, settings)
    with extras("tuning", "train", "jobs", "tracking", "tune"):
        from pipelines.context.progress import Progress  # noqa: PLC0415
        from pipelines.context.run_context import RunContext  # noqa: PLC0415
        from pipelines.tuning import tune as tuning  # noqa: PLC0415
    context = RunContext.from_config(loaded, Progress())
    best = tuning.tune(loaded, context.run.of(sense), context.inputs, context.progress, context.tracking.tracker)
    # the output is valid TOML, so that it can be redirected to a file
    print_result(best, as_json, lambda: typer.echo(f"{tuning.result_as_toml(best)}# in {best['path']}"))
