"""`recsys nightly`, and each stage by itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from recsys.cli import champion
from recsys.cli.champion import Why
from recsys.cli.options import CONFIG_DEFAULT, ConfigFile, Json, Overrides, show, typed
from recsys.errors import ConfigError, InputError

STAGES = {
    "prepare": "Check interactions and items; write catalogue, sequences and pairs (Beam).",
    "train": "Train the tower on the pairs (Keras).",
    "embed": "Embed the whole catalogue (Beam).",
    "index": "Build the Annoy index and tune it to the wanted recall.",
    "evaluate": "Measure index and baselines on the held-out interactions.",
    "calibrate": "Turn similarities into probabilities and thresholds, on held-out pairs.",
    "publish": "Write the release, verify it, and register it in MLflow.",
}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("nightly", help="Run the whole night: all stages, from the files to the champion.")(nightly)
    for name, summary in STAGES.items():
        app.command(name, help=summary)(_stage(name))
    app.command("promote")(promote)


def nightly(config: ConfigFile = CONFIG_DEFAULT, overrides: Overrides = None, as_json: Json = False) -> None:
    """Run the whole night."""
    summary = _execute("nightly", config, overrides)
    show(summary, as_json, lambda: _tell(summary, config))


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


def _execute(name: str, config: Any, overrides: list[str] | None) -> dict[str, Any]:
    from recsys import config as configuration  # noqa: PLC0415

    checked = configuration.load(config, overrides or ())
    try:
        from pipelines import nightly  # noqa: PLC0415
        from pipelines.night import execute  # noqa: PLC0415
        from pipelines.progress import Reporter  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the jobs need {error.name}, which is not installed. Install recsys[train,jobs,tracking]."
        ) from None
    stage = nightly.nightly if name == "nightly" else nightly.STAGES[name]
    return execute(stage, checked, Reporter())


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
        "Open": uri if uri.startswith("http") else f"{typed('mlflow')} ui --backend-store-uri {uri}",
    }
    for name, text in lines.items():
        console.print(f"{name:<9} {text.replace(here, '')}", markup=False)
