"""The stages of a run in order, as functions of the run context."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipelines.context.libraries import quiet_libraries
from pipelines.context.progress import Progress
from pipelines.context.run_context import RunContext
from pipelines.prepare.stage import prepare
from pipelines.stages import calibrate, embed, index
from pipelines.stages.evaluate import evaluate
from pipelines.stages.promote import promote
from pipelines.stages.publish import publish
from pipelines.stages.train import train
from pipelines.stages.train_similar import has_own_space, train_similar
from recsys.config.sections import Config
from recsys.release.runs import Run

Stage = Callable[[RunContext], dict[str, Any]]
"""Function that runs a stage unless it is finished, and returns its manifest."""

STAGES: Mapping[str, Stage] = {
    "prepare": lambda c: prepare(c.config, c.run, c.inputs, c.progress),
    "train": lambda c: train(c.config, c.run, c.progress, c.tracking.metrics),
    "embed": lambda c: embed.embed(c.config, c.run, c.progress),
    "index": lambda c: index.index(c.config, c.run, c.progress),
    "train-similar": lambda c: train_similar(c.config, c.run.of("similar"), c.progress, c.tracking.metrics),
    "embed-similar": lambda c: _if_own_space(c, embed.STAGE, lambda run: embed.embed(c.config, run, c.progress)),
    "index-similar": lambda c: _if_own_space(c, index.STAGE, lambda run: index.index(c.config, run, c.progress)),
    "evaluate": lambda c: evaluate(c.config, c.run, c.progress),
    "calibrate": lambda c: calibrate.calibrate(c.config, c.run, c.progress),
    "calibrate-similar": lambda c: _if_own_space(
        c, calibrate.STAGE, lambda run: calibrate.calibrate(c.config, run, c.progress)
    ),
    "publish": lambda c: publish(c.config, c.run, c.progress, c.tracking),
    "promote": lambda c: promote(c.config, c.run, c.progress, c.tracking),
}


def _if_own_space(context: RunContext, stage: str, run_stage: Callable[[Run], dict[str, Any]]) -> dict[str, Any]:
    """Run a stage of the sense `similar`; if it has no embeddings of its own, write a manifest that says so."""
    run = context.run.of("similar")
    if run.done(stage) or has_own_space(run):
        return run_stage(run)
    with run.stage(stage) as (_, manifest):
        manifest["space"] = "next"
    return run.manifest(stage)


def run_stage(name: str, config: Config, progress: Progress) -> dict[str, Any]:
    """Run a single stage under the lock of its run, and return its manifest.

    Raises:
        RecsysError: see `recsys.errors`.
    """
    quiet_libraries()
    context = RunContext.from_config(config, progress)
    with context.run.locked():
        return STAGES[name](context)
