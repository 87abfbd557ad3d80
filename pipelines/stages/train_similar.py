"""train for the sense `similar`: decide whether it has its own embeddings, and train their tower.

A candidate is trained without the users held out, and compared with the validation fit of `next` by the agreement of
its neighbors with what these users associate (`recsys.evaluation.likeness`). It replaces `next` only if its agreement
is above the interval of `next`: then its tower is trained again on all users, in as many passes. Otherwise one set of
embeddings serves both senses.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipelines.context.metrics_log import MetricsLog
from pipelines.context.overrides import with_settings
from pipelines.context.progress import Advance, Progress
from pipelines.prepare import stage as prepare
from pipelines.stages import train
from recsys.config.sections import Config
from recsys.data.splits import Split
from recsys.evaluation.likeness import AGREEMENT, MIN_ITEMS, Evidence
from recsys.model.fit_plan import PhaseName, similar_candidate_plan, similar_plan
from recsys.release.formats import FEATURES, TOWER
from recsys.release.runs import Run

if TYPE_CHECKING:
    from recsys.model.tower_fit import OnPhasePass

NEXT, SIMILAR, WITH_FEATURES = "next", "similar", "similar_features"
CANDIDATES: Mapping[str, Mapping[str, Any]] = {SIMILAR: {}, WITH_FEATURES: {"tower.id_dropout": 0.3}}
"""Name of a candidate -> settings that differ from the config."""
SPARSE = 25.0
"""Mean number of interactions of an item below which the candidate relies more on features: on Last.fm, with 14, this
agrees better with other users; on MovieLens 100k, with 60, not beyond the interval."""


class Choice(NamedTuple):
    """The outcome of the comparison."""

    best: str
    """Name of the candidate, or `NEXT`."""
    reason: str
    candidates: Mapping[str, Mapping[str, Any]]
    """Name -> `passes` and `likeness` of each, `NEXT` first; {} without evidence."""


def train_similar(config: Config, run: Run, progress: Progress, metrics: MetricsLog) -> dict[str, Any]:
    """Run the stage unless it is done, and return its manifest.

    Args:
        config: the complete config.
        run: the run in the sense `similar`.
        progress: receives the progress.
        metrics: receives the agreement of the candidate.

    Returns:
        The manifest: `space`, the sense whose embeddings answer `similar`; `candidate`, the best one; `reason`;
        `candidates`, the passes and the likeness of each, {} without evidence; `passes` of the final fit, if there was
        one.

    Raises:
        StageError: the stage of `next` has not been run, or the loss is not finite.
        InputError: `data.warm_start` is not a release, or its tower has another dimension or distance.
    """
    if run.done(train.STAGE):
        return run.manifest(train.STAGE)
    trained = run.of("next").manifest(train.STAGE)
    with progress.stage(run.name(train.STAGE)) as advance, run.stage(train.STAGE, "passes") as (folder, manifest):
        checkpoints = folder / train.CHECKPOINTS
        choice = _choose(config, run, trained, checkpoints, advance)
        manifest |= {
            "space": "next" if choice.best == NEXT else "similar",
            "candidate": choice.best,
            "reason": choice.reason,
            "candidates": choice.candidates,
        }
        metrics.log({f"agreement_{name}": each["likeness"][AGREEMENT] for name, each in choice.candidates.items()})
        if choice.best != NEXT:
            recipe, passes = candidate_config(config, choice.best), choice.candidates[choice.best]["passes"]
            on_pass = _FitProgress("final fit", advance)
            plan = similar_plan(recipe, passes)
            earlier = train.load_earlier_tower(config, "similar")
            final = train.fit_tower(
                recipe, run, plan, on_pass, sense="similar", earlier=earlier, checkpoints=checkpoints
            )
            final.tower.save(folder / TOWER)
            final.features.save(folder / FEATURES)
            manifest |= {"passes": passes, "curve": final.curve, "warm_start": final.warm_start}
        shutil.rmtree(checkpoints, ignore_errors=True)
        advance(1, 1, choice.reason)
    return run.manifest(train.STAGE)


def has_own_space(run: Run) -> bool:
    """Return whether the sense `similar` has embeddings of its own."""
    space: str = run.of("similar").manifest(train.STAGE)["space"]
    return space == "similar"


def _choose(config: Config, run: Run, trained: Mapping[str, Any], checkpoints: Path, advance: Advance) -> Choice:
    """Compare the candidate with `next`, whose manifest is `trained`."""
    if config.data.labeled_pairs:
        return Choice(NEXT, "one space serves both senses, because labeled pairs say what is alike", {})
    evidence = train.load_evidence(run.of("next"))
    if evidence is None:
        reason = (
            f"one space serves both senses, because the users held out associate {trained['evidence_items']} items, "
            f"fewer than {MIN_ITEMS}"
        )
        return Choice(NEXT, reason, {})
    candidates = {NEXT: {"passes": sum(trained["passes"].values()), "likeness": trained["likeness"]}}
    agreement = trained["likeness"][AGREEMENT]
    prepared = run.manifest(prepare.STAGE)
    if not config.similar.enabled:
        because = "similar.enabled is off"
    elif not prepared["similar_pairs"]:
        because = f"{prepared['share_in_window']:.0%} of the pairs of a history are within the window of next"
    else:
        name = candidate_name(train.load_split(run))
        on_pass = _FitProgress(name, advance)
        candidates[name] = measure_candidate(config, run, name, evidence, on_pass, checkpoints=checkpoints)
        if is_better(candidates[name]["likeness"], trained["likeness"]):
            own = candidates[name]["likeness"][AGREEMENT]
            return Choice(name, f"own space, agreement {own:.4f}, {agreement:.4f} by next", candidates)
        because = "no candidate agrees better with other users beyond the interval"
    return Choice(NEXT, f"one space serves both senses, because {because}; agreement {agreement:.4f}", candidates)


def candidate_name(split: Split) -> str:
    """Return the name of the candidate for the sense `similar` that fits the density of the data."""
    items = split.sequences.items[split.training_mask("test")]
    return WITH_FEATURES if len(items) < SPARSE * len(np.unique(items)) else SIMILAR


def candidate_config(config: Config, name: str) -> Config:
    """Return the config with which a candidate for the sense `similar` is trained."""
    schedule = {f"train.{key}": getattr(config.similar, key) for key in ("learning_rate", "temperature")}
    return with_settings(config, {**schedule, **CANDIDATES[name]})


def measure_candidate(
    config: Config, run: Run, name: str, evidence: Evidence, on_pass: OnPhasePass, *, checkpoints: Path | None = None
) -> dict[str, Any]:
    """Fit a candidate without the users held out, and compare its neighbors with what these users associate.

    Args:
        config: the complete config.
        run: the run in the sense `similar`; its prepare stage is finished.
        name: one of `CANDIDATES`.
        evidence: of the users held out.
        on_pass: called after each pass.
        checkpoints: folder of the checkpoints from which an interrupted fit resumes.

    Returns:
        JSON-serializable: `passes`; `likeness`, a report of `recsys.evaluation.likeness.likeness_report`; `curve`, the
        figures of each pass.
    """
    recipe = candidate_config(config, name)
    plan = similar_candidate_plan(recipe)
    fitted = train.fit_tower(recipe, run, plan, on_pass, sense="similar", evidence=evidence, checkpoints=checkpoints)
    likeness = train.measure_likeness(recipe, train.load_split(run), fitted.embeddings, evidence)
    return {"passes": sum(fitted.passes), "likeness": likeness, "curve": fitted.curve}


def is_better(likeness: Mapping[str, Any], of_next: Mapping[str, Any]) -> bool:
    """Return whether the agreement of a candidate is above the interval of that of `next`, given their reports."""
    _, high = of_next["intervals"][AGREEMENT]
    return bool(likeness[AGREEMENT] > high)


class _FitProgress:
    """Shows the passes of a fit."""

    def __init__(self, name: str, advance: Advance) -> None:
        self.name, self.advance = name, advance

    def __call__(self, phase: PhaseName, number: int, figures: Mapping[str, float]) -> None:
        agreement = figures.get(f"validation_{AGREEMENT}")
        note = f"{self.name}, {phase.replace('_', ' ')}, loss {figures['loss']:.3f}"
        self.advance(number, None, note if agreement is None else f"{note}, agreement {agreement:.4f}")
