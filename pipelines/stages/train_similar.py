"""train for the sense `similar`: decide whether it has its own embeddings, and train their tower.

Candidates are trained without a share of the users, and compared by the agreement of their neighbors with what these
users associate (`recsys.evaluation.likeness`). The first candidate is the recipe of `next`; the other one replaces it
only if its agreement is above the interval of the first. If `next` stays the best, one set of embeddings serves both
senses. Otherwise the tower of the other candidate is trained again on all users, in as many passes.
"""

from __future__ import annotations

import json
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
from recsys.data.catalog import Catalog
from recsys.data.splits import Split, Weight
from recsys.data.storage import atomic_write
from recsys.evaluation.baselines import user_item_matrix
from recsys.evaluation.likeness import AGREEMENT, MAX_ITEMS, Evidence, likeness_report
from recsys.evaluation.protocol import PROTOCOL
from recsys.index.distances import DISTANCES
from recsys.index.embeddings import Vectors
from recsys.index.exact import ExactIndex
from recsys.model.fit_plan import (
    FitPlan,
    Passes,
    PhaseName,
    final_plan,
    similar_candidate_plan,
    similar_plan,
    without_new_items,
)
from recsys.release.formats import CATALOG, FEATURES, TOWER
from recsys.release.runs import Run

if TYPE_CHECKING:
    from recsys.model.tower_fit import EarlierTower, FittedTower, OnPhasePass

EVIDENCE = "evidence.npz"
"""Name of the file with the evidence of likeness."""
MIN_ITEMS = 100
"""With evidence of fewer items, the interval of the agreement is too wide to compare candidates."""

NEXT, SIMILAR, WITH_FEATURES = "next", "similar", "similar_features"
CANDIDATES: Mapping[str, Mapping[str, Any]] = {SIMILAR: {}, WITH_FEATURES: {"tower.id_dropout": 0.3}}
"""Name of a candidate -> settings that differ from the config."""
SPARSE = 25.0
"""Mean number of interactions of an item below which the candidate relies more on features: on Last.fm, with 14, this
agrees better with other users; on MovieLens 100k, with 60, not beyond the interval."""


class Choice(NamedTuple):
    """The outcome of the comparison."""

    best: str
    """Name of the candidate."""
    reason: str
    candidates: Mapping[str, Mapping[str, Any]]
    """Name -> `passes` and `likeness` of each candidate."""


def train_similar(config: Config, run: Run, progress: Progress, metrics: MetricsLog) -> dict[str, Any]:
    """Run the stage unless it is done, and return its manifest.

    Args:
        config: the complete config.
        run: the run in the sense `similar`.
        progress: receives the progress.
        metrics: receives the agreement of each candidate.

    Returns:
        The manifest: `space`, the sense whose embeddings answer `similar`; `candidate`, the best one; `reason`;
        `candidates`, the passes and the likeness of each candidate, {} without evidence; `passes` of the final fit, if
        there was one.

    Raises:
        StageError: the stage of `next` has not been run, or the loss is not finite.
        InputError: `data.warm_start` is not a release, or its tower has another dimension or distance.
    """
    if run.done(train.STAGE):
        return run.manifest(train.STAGE)
    with progress.stage(run.name(train.STAGE)) as advance, run.stage(train.STAGE, "candidates") as (folder, manifest):
        choice = _choose(config, run, folder, advance)
        manifest |= {
            "space": "next" if choice.best == NEXT else "similar",
            "candidate": choice.best,
            "reason": choice.reason,
            "candidates": choice.candidates,
        }
        metrics.log({f"agreement_{name}": each["likeness"][AGREEMENT] for name, each in choice.candidates.items()})
        if choice.best != NEXT:
            passes = choice.candidates[choice.best]["passes"]
            recipe = candidate_config(config, choice.best)
            fits = _Fits(recipe, run, "weight", _FitProgress("final fit", advance), folder / train.CHECKPOINTS)
            final = fits.fit("final", similar_plan(recipe, passes), "similar_pairs")
            final.tower.save(folder / TOWER)
            final.features.save(folder / FEATURES)
            manifest |= {"passes": passes, "curve": final.curve, "warm_start": final.warm_start}
        shutil.rmtree(folder / train.CHECKPOINTS, ignore_errors=True)
        advance(1, 1, choice.reason)
    return run.manifest(train.STAGE)


def has_own_space(run: Run) -> bool:
    """Return whether the sense `similar` has embeddings of its own."""
    space: str = run.of("similar").manifest(train.STAGE)["space"]
    return space == "similar"


def _choose(config: Config, run: Run, folder: Path, advance: Advance) -> Choice:
    """Compare the candidates, and write the evidence."""
    if not config.similar.enabled:
        return Choice(NEXT, "one space serves both senses, because similar.enabled is off", {})
    if config.data.labeled_pairs:
        return Choice(NEXT, "one space serves both senses, because labeled pairs say what is alike", {})
    advance(0, None, "evidence of likeness")
    split = train.load_split(run)
    evidence = evidence_of_held_out_users(split, run.manifest(prepare.STAGE)["num_items"])
    if len(evidence.items) < MIN_ITEMS:
        reason = (
            f"one space serves both senses, because the users left out associate {len(evidence.items)} items, fewer "
            f"than {MIN_ITEMS}"
        )
        return Choice(NEXT, reason, {})
    evidence.save(folder / EVIDENCE)
    names = [NEXT]
    prepared = run.manifest(prepare.STAGE)
    if prepared["similar_pairs"]:
        names.append(candidate_name(split))
    results: dict[str, dict[str, Any]] = {}
    for name in names:
        path = folder / f"{name}.json"
        if not path.exists():  # else an interrupted process has measured it
            on_pass, checkpoints = _FitProgress(name, advance), folder / train.CHECKPOINTS
            result = measure_candidate(config, run, name, evidence, on_pass, checkpoints=checkpoints)
            with atomic_write(path) as draft:
                draft.write_text(json.dumps(result), encoding="utf-8")
        results[name] = json.loads(path.read_text(encoding="utf-8"))
    best = best_candidate({name: result["likeness"] for name, result in results.items()})
    agreement = results[best]["likeness"][AGREEMENT]
    if best != NEXT:
        return Choice(
            best, f"own space, agreement {agreement:.4f}, {results[NEXT]['likeness'][AGREEMENT]:.4f} by next", results
        )
    because = "no candidate agrees better with other users beyond the interval"
    if len(names) == 1:
        because = f"{prepared['share_in_window']:.0%} of the pairs of a history are within the window of next"
    return Choice(best, f"one space serves both senses, because {because}; agreement {agreement:.4f}", results)


def candidate_name(split: Split) -> str:
    """Return the name of the candidate for the sense `similar` that fits the density of the data."""
    items = split.sequences.items[split.known_before("test")]
    return WITH_FEATURES if len(items) < SPARSE * len(np.unique(items)) else SIMILAR


def candidate_config(config: Config, name: str) -> Config:
    """Return the config with which a candidate for the sense `similar` is trained."""
    schedule = {f"train.{key}": getattr(config.similar, key) for key in ("learning_rate", "temperature")}
    return with_settings(config, {**schedule, **CANDIDATES[name]})


def measure_candidate(
    config: Config, run: Run, name: str, evidence: Evidence, on_pass: OnPhasePass, *, checkpoints: Path | None = None
) -> dict[str, Any]:
    """Fit a candidate without the users left out, and compare its neighbors with what these users associate.

    Args:
        config: the complete config.
        run: the run in the sense `similar`; its prepare stage is finished.
        name: `NEXT`, which repeats the passes of the finished stage of `next`, or one of `CANDIDATES`.
        evidence: of `evidence_of_held_out_users`.
        on_pass: called after each pass.
        checkpoints: folder of the checkpoints from which an interrupted fit resumes.

    Returns:
        JSON-serializable: `passes`; `likeness`, a report of `recsys.evaluation.likeness.likeness_report`; `curve`, the
        figures of each pass.
    """
    recipe = config if name == NEXT else candidate_config(config, name)
    return _Fits(recipe, run, "weight_without_held_out", on_pass, checkpoints).measure(name, evidence)


def best_candidate(likeness: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the name of the best candidate, given the likeness reports of all in the order of comparison.

    A candidate replaces the best so far only if its agreement is above the interval of that one.
    """
    best, *others = likeness
    for name in others:
        _, high = likeness[best]["intervals"][AGREEMENT]
        if likeness[name][AGREEMENT] > high:
            best = name
    return best


def evidence_of_held_out_users(split: Split, num_items: int) -> Evidence:
    """Return what the users left out associate before their test targets."""
    held_out = split.known_before("test") & split.held_out[split.sequences.users]
    interactions = user_item_matrix(split.sequences, held_out, num_items)[split.held_out]
    return Evidence.from_interactions(interactions, MAX_ITEMS)


class _FitProgress:
    """Shows the passes of a fit."""

    def __init__(self, name: str, advance: Advance) -> None:
        self.name, self.advance = name, advance

    def __call__(self, phase: PhaseName, number: int, figures: Mapping[str, float]) -> None:
        agreement = figures.get(f"validation_{AGREEMENT}")
        note = f"{self.name}, {phase.replace('_', ' ')}, loss {figures['loss']:.3f}"
        self.advance(number, None, note if agreement is None else f"{note}, agreement {agreement:.4f}")


class _Fits:
    """Fits a tower to some of the users."""

    def __init__(
        self, config: Config, run: Run, weight: Weight, on_pass: OnPhasePass, checkpoints: Path | None
    ) -> None:
        self.config, self.run, self.weight, self.on_pass, self.checkpoints = config, run, weight, on_pass, checkpoints
        self.catalog = Catalog.load(run.path(prepare.STAGE, CATALOG))
        split = train.load_split(run)
        mask = split.training_mask(weight)
        self.popularity = np.bincount(split.sequences.items[mask], minlength=len(self.catalog))
        if weight == "weight_without_held_out":
            split = Split(split.sequences.select(~split.held_out), split.time_cut)
        self.split = split

    def measure(self, name: str, evidence: Evidence) -> dict[str, Any]:
        """Fit a candidate and return its passes, likeness and learning curve."""
        if name == NEXT:
            trained = self.run.of("next").manifest(train.STAGE)
            plan = final_plan(self.config, Passes(**trained["passes"]), trained["history_recency"])
            fitted = self.fit(name, without_new_items(plan), "pairs")
        else:
            fitted = self.fit(name, similar_candidate_plan(self.config), "similar_pairs", evidence)
        likeness = self._likeness(fitted.embeddings, evidence)
        return {"passes": sum(fitted.passes), "likeness": likeness, "curve": fitted.curve}

    def fit(self, name: str, plan: FitPlan, kind: train.PairKind, evidence: Evidence | None = None) -> FittedTower:
        """Fit a tower to the pairs of a kind; with evidence, the passes are validated by likeness."""
        from recsys.model.tower_fit import FitData, TowerFit  # noqa: PLC0415 - TensorFlow takes seconds

        pairs = train.load_pairs(self.run, self.weight, len(self.catalog), kind)
        data = FitData(self.catalog.frame, self.split, pairs, earlier=self._earlier_tower(), evidence=evidence)
        checkpoints = self.checkpoints / name if self.checkpoints else None
        return TowerFit(plan, data, self.config, checkpoints=checkpoints, on_pass=self.on_pass).run()

    def _earlier_tower(self) -> EarlierTower | None:
        """Return the tower of a warm start; candidates have none, because it has seen the users who judge them."""
        warm_start = self.config.data.warm_start
        if not warm_start or self.weight == "weight_without_held_out":
            return None
        return train.load_earlier_tower(warm_start, "similar")

    def _likeness(self, embeddings: Vectors, evidence: Evidence) -> dict[str, Any]:
        """Return the likeness report of embeddings among the items with interactions."""
        known = self.popularity > 0
        index = ExactIndex(embeddings, DISTANCES[self.config.tower.distance], known)
        items = evidence.items[known[evidence.items]]
        return likeness_report(index, self.popularity, PROTOCOL.resamples, users=evidence, items=items)
