"""`recsys nightly`, `recsys backfill`, and each stage by itself."""

from __future__ import annotations

import json
import os
from datetime import datetime
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from recsys.cli import champion
from recsys.cli.champion import Why
from recsys.cli.options import CONFIG_DEFAULT, ConfigFile, Json, Overrides, show, typed
from recsys.config.urls import Address
from recsys.errors import ConfigError, InputError

if TYPE_CHECKING:
    from recsys.config.sections import Config

STAGES = {
    "prepare": "Check interactions and items; write catalog, sequences and pairs (Beam).",
    "train": "Train the tower on the pairs (Keras).",
    "embed": "Embed the whole catalog (Beam).",
    "index": "Build the Annoy index and tune it to the wanted recall.",
    "evaluate": "Measure index and baselines on the held-out interactions.",
    "calibrate": "Turn similarities into probabilities and thresholds, on held-out pairs.",
    "publish": "Write the release, verify it, and register it in MLflow.",
}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("nightly")(nightly)
    app.command("backfill")(backfill)
    for name, summary in STAGES.items():
        app.command(name, help=summary)(_stage(name))
    app.command("promote")(promote)


def nightly(
    config: ConfigFile = CONFIG_DEFAULT,
    overrides: Overrides = None,
    *,
    as_of: Annotated[
        str | None,
        typer.Option("--as-of", metavar="MOMENT", help="Only interactions before it: a date, or ISO 8601; UTC."),
    ] = None,
    max_minutes: Annotated[
        float | None, typer.Option("--max-minutes", min=0, metavar="N", help="Stop by then, to be gone on with.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the last unfinished night, whatever the data are now.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be done; write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Run the whole night: all stages, from the files to the champion.

    Exit 0: the release is in service, or was in service before. 1: the gate refused it, or a stage failed; the same
    command goes on from what is finished. 2: the input or the config is wrong. With --json the summary is printed
    whatever the end.
    """
    checked = _config(config, [*(overrides or ()), *([] if as_of is None else [f"prepare.as_of={as_of}"])])
    jobs = _jobs()
    if resume and dry_run:
        raise ConfigError("--resume and --dry-run must not come together. Received: both.")
    if dry_run:
        planned = jobs.plan(checked)
        show(planned, as_json, lambda: _tell_plan(planned))
        return
    from pipelines.context.progress import Progress  # noqa: PLC0415
    from pipelines.context.time_limit import Budget  # noqa: PLC0415

    def tell(summary: dict[str, Any]) -> None:
        if as_json:
            typer.echo(json.dumps(summary))

    summary = jobs.tonight(checked, Progress(), budget=Budget(max_minutes), resumes=resume, tell=tell)
    if not as_json:
        _tell(summary, config)


def backfill(
    first: Annotated[
        datetime, typer.Option("--from", formats=["%Y-%m-%d"], metavar="DATE", help="The first night's day.")
    ],
    last: Annotated[datetime, typer.Option("--to", formats=["%Y-%m-%d"], metavar="DATE", help="The last night's day.")],
    config: ConfigFile = CONFIG_DEFAULT,
    overrides: Overrides = None,
    *,
    promotes: Annotated[bool, typer.Option("--promote", help="Ask the gate each night; else it is not asked.")] = False,
    as_json: Json = False,
) -> None:
    """Run the nights of past days, oldest first, each from the interactions before its day.

    A night that is finished is skipped. The releases are registered, and none is put into service unless --promote
    is given.
    """
    checked = _config(config, overrides)
    _jobs()
    from pipelines.context.progress import Progress  # noqa: PLC0415
    from pipelines.orchestration.backfill import backfill as run  # noqa: PLC0415

    nights = run(checked, Progress(), first.date(), last.date(), promotes=promotes)
    show(nights, as_json, lambda: None)


def promote(
    release: Annotated[
        str | None, typer.Argument(metavar="[RELEASE]", help="A registered release; without it, the night's.")
    ] = None,
    *,
    force: Annotated[bool, typer.Option("--force", help="With RELEASE: also one that the gate refused.")] = False,
    why: Why = "",
    config: ConfigFile = CONFIG_DEFAULT,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Put the night's release into service if the gate lets it, or a given one.

    A given release must have passed the gate when it was asked, and must load and answer now. The history keeps who
    did it, and why.
    """
    if release is not None:
        champion.promote(release, config, why=why, forced=force, as_json=as_json)
    elif force or why:
        raise InputError("--force and --why must come with a RELEASE. Received: none. The gate decides of a night.")
    else:
        manifest = _execute("promote", config, overrides)
        show(manifest, as_json, lambda: None)


def _stage(name: str) -> Any:
    def stage(config: ConfigFile = CONFIG_DEFAULT, overrides: Overrides = None, as_json: Json = False) -> None:
        manifest = _execute(name, config, overrides)
        show(manifest, as_json, lambda: None)

    return stage


def _execute(name: str, config: Path, overrides: list[str] | None) -> dict[str, Any]:
    checked = _config(config, overrides)
    jobs = _jobs("stage_table")
    from pipelines.context.progress import Progress  # noqa: PLC0415

    manifest: dict[str, Any] = jobs.run_stage(name, checked, Progress())
    return manifest


def _config(config: Path, overrides: list[str] | None) -> Config:
    from recsys.config.loading import load_config  # noqa: PLC0415

    return load_config(config, overrides or ())


def _jobs(name: str = "nightly") -> ModuleType:
    """Import a module of the orchestration."""
    try:
        return import_module(f"pipelines.orchestration.{name}")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the jobs need {error.name}, which is not installed. Install recsys[train,jobs,tracking]."
        ) from None


def _tell_plan(planned: dict[str, Any]) -> None:
    """What a person wants to know before a night."""
    for part in ("interactions", "items", "labeled_pairs"):
        for source in planned[part]:
            typer.echo(f"{part:<14} {Address(source).shown}")
    typer.echo(f"{'as of':<14} {planned['as_of'] or 'everything'}")
    typer.echo(f"{'run':<14} {planned['run_id']}")
    typer.echo(f"{'champion':<14} {planned['champion'] or 'nobody'}")
    for name, state in planned["stages"].items():
        seconds = planned["seconds_last_time"].get(name)
        typer.echo(f"{name:<14} {state}{f', {seconds:.1f} s last time' if seconds else ''}")


def _tell(summary: dict[str, Any], config: Any) -> None:
    """What a person wants to see after a night."""
    console = Console(highlight=False, soft_wrap=True)
    evaluation = summary["evaluation"]
    if evaluation["questions"]:
        table = Table(title=f"Look-up from the last item, {evaluation['questions']:,} users, test target")
        table.add_column("")
        columns = ("ndcg_at_10", "ndcg_at_20", "hr_at_10", "hr_at_20", "mrr_at_20")
        for column in columns:
            table.add_column(column.upper().replace("_AT_", "@"), justify="right")
        rows = {"siamese tower": evaluation["model"], **evaluation["baselines"]}
        for name, figures in rows.items():
            style = "bold" if name == "siamese tower" else None
            table.add_row(name.replace("_", " "), *(f"{figures[c]:.4f}" for c in columns), style=style)
        console.print(table)
    uri = summary["tracking_uri"]
    here = f"{Path.cwd()}{os.sep}"  # short names are easier to read and to copy
    lines = {
        "Release": summary["path"],
        "MLflow": f"version {summary['version']} of {summary['model']}{', champion' if summary['promoted'] else ''}",
        "Ask": f"{typed('recsys')} similar ITEM --config {config}",
        "Serve": f"{typed('recsys')} serve --config {config}",
        "Report": summary.get("report", "none"),
        "Open": uri if uri.startswith("http") else f"{typed('mlflow')} ui --backend-store-uri {uri}",
    }
    for name, text in lines.items():
        console.print(f"{name:<9} {text.replace(here, '')}", markup=False)
