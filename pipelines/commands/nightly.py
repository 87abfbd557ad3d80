"""`recsys nightly` and `recsys backfill`: run all stages once, or once for each of several past days."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pipelines.commands.stages import EXTRAS
from recsys.commands.options import (
    CONFIG_DEFAULT,
    ConfigFile,
    Json,
    Overrides,
    extras,
    print_result,
    program_path,
)
from recsys.config.urls import Address
from recsys.errors import ConfigError

COLUMNS = ("ndcg_at_10", "ndcg_at_20", "hr_at_10", "hr_at_20", "mrr_at_20")
MODEL = "siamese tower"
LIKENESS_TITLES = ("AGREEMENT@10", "GROUPS@10", "COLUMNS@10")


def nightly(
    config: ConfigFile = CONFIG_DEFAULT,
    overrides: Overrides = None,
    *,
    as_of: Annotated[
        str | None,
        typer.Option("--as-of", metavar="TIME", help="Use only interactions before this date or ISO 8601 time (UTC)."),
    ] = None,
    max_minutes: Annotated[
        float | None,
        typer.Option("--max-minutes", min=0, metavar="N", help="Stop after N minutes; the next run resumes."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the last unfinished run, even if the input has changed since.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show which stages would run; write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Run all stages, from the input files to the champion.

    Exit code 0: the release is the champion, or was the champion before. 1: the gate rejected the release, or a stage
    failed; the same command resumes after the last finished stage. 2: the input or the config is invalid. With
    --json the summary is printed in every case.
    """
    from recsys.config.loading import load_config  # noqa: PLC0415

    settings = [*(overrides or ()), *([] if as_of is None else [f"prepare.as_of={as_of}"])]
    loaded = load_config(config, settings)
    with extras("the nightly run", *EXTRAS):
        from pipelines.context.progress import Progress  # noqa: PLC0415
        from pipelines.context.time_limit import TimeLimit  # noqa: PLC0415
        from pipelines.orchestration import nightly as jobs  # noqa: PLC0415
    if resume and dry_run:
        raise ConfigError("--resume and --dry-run must not be given together. Received: both.")
    if dry_run:
        plan = jobs.plan_run(loaded)
        print_result(plan, as_json, lambda: _print_plan(plan))
        return

    def on_end(summary: dict[str, Any]) -> None:
        if as_json:
            typer.echo(json.dumps(summary))

    summary = jobs.run_nightly(loaded, Progress(), time_limit=TimeLimit(max_minutes), resumes=resume, on_end=on_end)
    if not as_json:
        _print_summary(summary, config)


def backfill(
    first: Annotated[
        datetime, typer.Option("--from", formats=["%Y-%m-%d"], metavar="DATE", help="Day of the first run.")
    ],
    last: Annotated[datetime, typer.Option("--to", formats=["%Y-%m-%d"], metavar="DATE", help="Day of the last run.")],
    config: ConfigFile = CONFIG_DEFAULT,
    overrides: Overrides = None,
    *,
    promote: Annotated[
        bool, typer.Option("--promote", help="Promote each release that passes the gate; by default none is promoted.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run the pipeline for past days, oldest first.

    The run of a day uses the interactions before that day. Finished runs are skipped. The releases are registered;
    none is promoted unless --promote is given.
    """
    from recsys.config.loading import load_config  # noqa: PLC0415

    loaded = load_config(config, overrides or ())
    with extras("the backfill", *EXTRAS):
        from pipelines.context.progress import Progress  # noqa: PLC0415
        from pipelines.orchestration.backfill import backfill as run_days  # noqa: PLC0415

    summaries = run_days(loaded, Progress(), first.date(), last.date(), promotes=promote)
    print_result(summaries, as_json, lambda: None)


def _print_plan(plan: dict[str, Any]) -> None:
    for role in ("interactions", "items", "labeled_pairs"):
        for source in plan[role]:
            typer.echo(f"{role:<14} {Address(source).shown}")
    typer.echo(f"{'as of':<14} {plan['as_of'] or 'all interactions'}")
    typer.echo(f"{'run':<14} {plan['run_id']}")
    typer.echo(f"{'champion':<14} {plan['champion'] or 'none'}")
    for name, state in plan["stages"].items():
        seconds = plan["seconds_last_time"].get(name)
        typer.echo(f"{name:<14} {state}{f', {seconds:.1f} s last time' if seconds else ''}")


def _print_summary(summary: dict[str, Any], config_file: Path) -> None:
    from pipelines.reports.figures import model_name  # noqa: PLC0415

    console = Console(highlight=False, soft_wrap=True)
    evaluation = summary["evaluation"]
    if evaluation["queries"]:
        table = Table(title=f"Last-item queries of {evaluation['queries']:,} users, test target")
        table.add_column("")
        for column in COLUMNS:
            table.add_column(column.upper().replace("_AT_", "@"), justify="right")
        for name, metrics in {MODEL: evaluation["model"], **evaluation["baselines"]}.items():
            style = "bold" if name == MODEL else None
            table.add_row(model_name(name), *(f"{metrics[column]:.4f}" for column in COLUMNS), style=style)
        console.print(table)
    _print_likeness(console, evaluation["likeness"])
    for sentence in summary["better_baselines"]:
        console.print(sentence, markup=False)
    uri = summary["tracking_uri"]
    lines = {
        "Release": summary["path"],
        "MLflow": f"version {summary['version']} of {summary['model']}{', champion' if summary['promoted'] else ''}",
        "Query": f"{program_path('recsys')} similar ITEM --config {config_file}",
        "Serve": f"{program_path('recsys')} serve --config {config_file}",
        "Report": summary.get("report", "none"),
        "History": uri if uri.startswith("http") else f"{program_path('mlflow')} ui --backend-store-uri {uri}",
    }
    current_folder = f"{Path.cwd()}{os.sep}"  # relative paths are shorter
    for name, text in lines.items():
        console.print(f"{name:<9} {text.replace(current_folder, '')}", markup=False)


def _print_likeness(console: Console, likeness: dict[str, Any]) -> None:
    """Print the likeness of all models for which there is evidence, and which space answers `similar`."""
    from pipelines.reports.figures import LIKENESS, likeness_models, model_name  # noqa: PLC0415

    models = likeness_models(likeness)
    columns = {
        metric: title
        for metric, title in zip(LIKENESS, LIKENESS_TITLES, strict=True)
        if any(metric in report for report in models.values())
    }
    if columns:
        table = Table(title="Likeness of the ten nearest neighbors")
        for title in ("", *columns.values()):
            table.add_column(title, justify="right" if title else "left")
        for name, report in models.items():
            style = "bold" if name == likeness["space"] else None
            table.add_row(model_name(name), *(f"{report[metric]:.4f}" for metric in columns), style=style)
        console.print(table)
    console.print(f"Sense similar: answered by the space {likeness['space']} ({likeness['reason']}).", markup=False)
