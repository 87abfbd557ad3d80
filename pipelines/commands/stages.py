"""`recsys prepare`, `recsys train` and so on: run a single stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recsys.commands.champion import promote_release
from recsys.commands.options import (
    CONFIG_DEFAULT,
    ConfigFile,
    Json,
    Overrides,
    Reason,
    SenseOption,
    extras,
    print_result,
)
from recsys.config.senses import Sense
from recsys.errors import InputError

EXTRAS = ("train", "jobs", "tracking")


def prepare(config: ConfigFile = CONFIG_DEFAULT, overrides: Overrides = None, as_json: Json = False) -> None:
    """Validate interactions and items; write catalog, sequences and pairs (Beam)."""
    _run("prepare", config, overrides, as_json)


def train(
    sense: SenseOption = "next",
    config: ConfigFile = CONFIG_DEFAULT,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Train the tower on the pairs (Keras)."""
    _run("train", config, overrides, as_json, sense)


def embed(
    sense: SenseOption = "next",
    config: ConfigFile = CONFIG_DEFAULT,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Compute the embeddings of all items (Beam)."""
    _run("embed", config, overrides, as_json, sense)


def index(
    sense: SenseOption = "next",
    config: ConfigFile = CONFIG_DEFAULT,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Build the Annoy index, and tune its search to the target recall."""
    _run("index", config, overrides, as_json, sense)


def evaluate(config: ConfigFile = CONFIG_DEFAULT, overrides: Overrides = None, as_json: Json = False) -> None:
    """Measure the index and the baselines on held-out interactions."""
    _run("evaluate", config, overrides, as_json)


def calibrate(
    sense: SenseOption = "next",
    config: ConfigFile = CONFIG_DEFAULT,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Calibrate similarities: fit probabilities and thresholds on held-out pairs."""
    _run("calibrate", config, overrides, as_json, sense)


def publish(config: ConfigFile = CONFIG_DEFAULT, overrides: Overrides = None, as_json: Json = False) -> None:
    """Write and verify the release, and register it in MLflow."""
    _run("publish", config, overrides, as_json)


def promote(
    release: Annotated[
        str | None,
        typer.Argument(metavar="[RELEASE]", help="Id of a registered release; by default the release of the run."),
    ] = None,
    *,
    force: Annotated[bool, typer.Option("--force", help="Promote RELEASE even if it did not pass the gate.")] = False,
    reason: Reason = "",
    config: ConfigFile = CONFIG_DEFAULT,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Make a release the champion if it passes the gate.

    Without RELEASE, the gate checks the release of the run. With RELEASE, this release must have passed the gate
    before, and must load and answer queries. The promotion history records who promoted it, and the reason.
    """
    if release is not None:
        promote_release(release, config, reason=reason, forced=force, as_json=as_json)
    elif force or reason:
        raise InputError(
            "--force and --reason must be given with a RELEASE. Received: no RELEASE. The release of a "
            "run is always checked by the gate."
        )
    else:
        _run("promote", config, overrides, as_json)


def _run(stage: str, config_file: Path, overrides: list[str] | None, as_json: bool, sense: Sense = "next") -> None:
    from recsys.config.loading import load_config  # noqa: PLC0415

    config = load_config(config_file, overrides or ())
    with extras(f"stage {stage}", *EXTRAS):
        from pipelines.context.progress import Progress  # noqa: PLC0415
        from pipelines.orchestration.stage_table import run_stage  # noqa: PLC0415
        from recsys.release.runs import stage_of  # noqa: PLC0415

    print_result(run_stage(stage_of(stage, sense), config, Progress()), as_json, lambda: None)
