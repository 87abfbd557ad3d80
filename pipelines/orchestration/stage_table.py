"""The stages of a run in order, as functions of the run context."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipelines.context.libraries import quiet_libraries
from pipelines.context.progress import Progress
from pipelines.context.run_context import RunContext
from pipelines.prepare.stage import prepare
from pipelines.stages.calibrate import calibrate
from pipelines.stages.embed import embed
from pipelines.stages.evaluate import evaluate
from pipelines.stages.index import index
from pipelines.stages.promote import promote
from pipelines.stages.publish import publish
from pipelines.stages.train import train
from recsys.config.sections import Config

Stage = Callable[[RunContext], dict[str, Any]]
"""Function that runs a stage unless it is finished, and returns its manifest."""

STAGES: Mapping[str, Stage] = {
    "prepare": lambda c: prepare(c.config, c.run, c.inputs, c.progress),
    "train": lambda c: train(c.config, c.run, c.progress, c.tracking.metrics),
    "embed": lambda c: embed(c.config, c.run, c.progress),
    "index": lambda c: index(c.config, c.run, c.progress),
    "evaluate": lambda c: evaluate(c.config, c.run, c.progress),
    "calibrate": lambda c: calibrate(c.config, c.run, c.progress),
    "publish": lambda c: publish(c.config, c.run, c.progress, c.tracking),
    "promote": lambda c: promote(c.config, c.run, c.progress, c.tracking),
}


def run_stage(name: str, config: Config, progress: Progress) -> dict[str, Any]:
    """Run a single stage under the lock of its run, and return its manifest.

    Raises:
        RecsysError: see `recsys.errors`.
    """
    quiet_libraries()
    context = RunContext.from_config(config, progress)
    with context.run.locked():
        return STAGES[name](context)
