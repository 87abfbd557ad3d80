"""train: fit the tower to the pairs.

The validation fit selects the number of passes. The final fit trains the tower of the release: the same number of
passes over all interactions before the test targets. See `recsys.model.fit_plan`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipelines.context.metrics_log import MetricsLog
from pipelines.context.progress import Advance, Progress
from pipelines.prepare import stage as prepare
from recsys.config.sections import Config
from recsys.config.senses import Sense
from recsys.data.catalog import Catalog
from recsys.data.labeled_pairs import LabeledPairs
from recsys.data.pairs import Pairs
from recsys.data.sequences import Sequences
from recsys.data.splits import Split, Target, TimeCut, Weight
from recsys.errors import InputError, ReleaseError
from recsys.evaluation.baseline_search import QUERY_KINDS, make_queries
from recsys.evaluation.metrics import TARGET_METRIC, choose_recency, evaluation_report
from recsys.evaluation.protocol import PROTOCOL
from recsys.features.encoding import Features
from recsys.index.distances import DISTANCES
from recsys.index.embeddings import Vectors
from recsys.index.exact import ExactIndex
from recsys.model.fit_plan import FitPlan, Passes, PhaseName, final_plan, validation_plan
from recsys.release import remote
from recsys.release.formats import CATALOG, FEATURES, TOWER
from recsys.release.runs import Run

if TYPE_CHECKING:
    from recsys.model.tower_fit import EarlierTower, FitData, FittedTower, OnPhasePass

STAGE = "train"
CHECKPOINTS = ".checkpoints"

PairKind = Literal["pairs", "similar_pairs"]
"""Folder of the pairs of `next`, and of those of `similar`, in the prepare stage."""

WEIGHTS: dict[Target, Weight] = {"validation": "weight_before_validation", "test": "weight"}
"""Name of the pair weight that counts the interactions before each target."""


def train(config: Config, run: Run, progress: Progress, metrics: MetricsLog) -> dict[str, Any]:
    """Run the stage if it has not been completed, and return its manifest.

    Raises:
        StageError: the prepare stage has not been completed, there are no pairs, or the loss is not finite.
        InputError: `data.warm_start` is not a release, or its tower has another dimension or distance.
    """
    if run.done(STAGE):
        return run.manifest(STAGE)
    with progress.stage(STAGE) as advance, run.stage(STAGE, "passes") as (folder, manifest):
        checkpoints = folder / CHECKPOINTS
        on_pass = _ValidationProgress(config, advance, metrics)
        selected = fit_tower(config, run, validation_plan(config), on_pass, checkpoints=checkpoints)
        validation = measure_validation(config, run, selected.embeddings)
        plan = final_plan(config, selected.passes, selected.recency)
        final = fit_tower(config, run, plan, _FinalProgress(selected.passes, advance, metrics), checkpoints=checkpoints)
        shutil.rmtree(checkpoints)
        final.tower.save(folder / TOWER)
        final.features.save(folder / FEATURES)
        manifest.update(
            passes=selected.passes._asdict(),
            history_recency=selected.recency,
            **validation,
            curve=selected.curve,
            final_curve=final.curve,
            feature_rate=final.feature_rate,
            warm_start=final.warm_start,
        )
        ndcg = validation["validation"].get("last_item", {}).get(TARGET_METRIC)
        advance(1, 1, f"{selected.passes.pairs} passes" + (f", validation NDCG@20 {ndcg:.4f}" if ndcg else ""))
    return run.manifest(STAGE)


class _ValidationProgress:
    """Shows and logs the passes of the validation fit."""

    def __init__(self, config: Config, advance: Advance, metrics: MetricsLog) -> None:
        self.max_passes = config.train.passes + config.train.history_passes
        self.advance, self.metrics = advance, metrics

    def __call__(self, phase: PhaseName, number: int, figures: Mapping[str, float]) -> None:
        if phase == "new_items":
            self.advance(number, note=_note("new items", figures))
            return
        self.advance(number, self.max_passes, _note(phase, figures))
        # the manifest has all figures; a tracking server takes longer to log all of them than a pass may take
        logged = {name: value for name, value in figures.items() if "_at_" not in name or TARGET_METRIC in name}
        self.metrics.log({f"train_{name}": value for name, value in logged.items()}, number)


class _FinalProgress:
    """Shows the passes of the final fit, and logs their loss."""

    def __init__(self, passes: Passes, advance: Advance, metrics: MetricsLog) -> None:
        self.passes = sum(passes)
        self.advance, self.metrics = advance, metrics

    def __call__(self, phase: PhaseName, number: int, figures: Mapping[str, float]) -> None:
        if phase == "new_items":
            self.advance(number, note=_note("final fit, new items", figures))
            return
        self.advance(number, self.passes, _note(f"final fit, {phase}", figures))
        self.metrics.log({"final_loss": figures["loss"]}, number)


def _note(title: str, figures: Mapping[str, float]) -> str:
    ndcg = figures.get(f"validation_{TARGET_METRIC}")
    return f"{title}, loss {figures['loss']:.3f}" + (f", validation NDCG@20 {ndcg:.4f}" if ndcg is not None else "")


def fit_tower(
    config: Config, run: Run, plan: FitPlan, on_pass: OnPhasePass, *, checkpoints: Path | None = None
) -> FittedTower:
    """Fit a tower to the prepared data.

    Args:
        config: the complete config.
        run: a run whose prepare stage has been completed.
        plan: phases of the fit.
        on_pass: called after each pass.
        checkpoints: folder of the checkpoints from which an interrupted fit resumes.

    Raises:
        StageError: there are no pairs, or the loss is not finite.
        InputError: `data.warm_start` is not a release, or its tower has another dimension or distance.
    """
    from recsys.model.tower_fit import TowerFit  # noqa: PLC0415 - TensorFlow takes seconds

    data = load_fit_data(config, run, plan.target)
    return TowerFit(plan, data, config, checkpoints=checkpoints, on_pass=on_pass).run()


def load_fit_data(config: Config, run: Run, target: Target) -> FitData:
    """Load the outputs of the prepare stage, and the tower of a warm start."""
    from recsys.model.tower_fit import FitData  # noqa: PLC0415 - TensorFlow takes seconds

    catalog = Catalog.load(run.path(prepare.STAGE, CATALOG))
    return FitData(
        catalog.frame,
        load_split(run),
        load_pairs(run, WEIGHTS[target], len(catalog)),
        load_labeled(run, config.train.seed)[0] if config.data.labeled_pairs else None,
        load_earlier_tower(config.data.warm_start) if config.data.warm_start else None,
    )


def load_earlier_tower(release: str, sense: Sense = "next") -> EarlierTower:
    """Load the tower of a sense from a release, given its folder or URL, for a warm start.

    Raises:
        InputError: it is not a release, or it is damaged.
    """
    from recsys.model import tower  # noqa: PLC0415 - TensorFlow takes seconds
    from recsys.model.tower_fit import EarlierTower  # noqa: PLC0415

    try:
        folder = remote.load(release).space(sense).path
    except ReleaseError as error:
        raise InputError(f"data.warm_start must be the folder of a release: {error}") from None
    return EarlierTower(tower.load(folder / TOWER), Features.load(folder / FEATURES))


def measure_validation(config: Config, run: Run, embeddings: Vectors) -> dict[str, Any]:
    """Measure embeddings on the validation targets by exact search among the items that the fit was trained on.

    Returns:
        `recency`: the best recency for history queries; `validation`: the reports of
        `recsys.evaluation.metrics.evaluation_report` for `last_item` and `history`. None and {} if no interaction is
        held out.
    """
    split = load_split(run)
    holdout = split.holdout("validation", config.evaluate.users)
    if not len(holdout):
        return {"recency": None, "validation": {}}
    popularity = np.bincount(split.sequences.items[split.known_before("validation")], minlength=len(embeddings))
    retrievable = popularity > 0 if config.data.labeled_pairs is None else None
    index = ExactIndex(embeddings, DISTANCES[config.tower.distance], retrievable)
    recency, _ = choose_recency(index, holdout, PROTOCOL)
    figures = {
        kind: evaluation_report(
            index,
            make_queries(holdout, kind, recency, PROTOCOL),
            holdout.targets,
            popularity,
            PROTOCOL.resamples,
        )
        for kind in QUERY_KINDS
    }
    return {"recency": recency, "validation": figures}


def load_split(run: Run) -> Split:
    """Load the sequences of all users and their split."""
    prepared = run.manifest(prepare.STAGE)
    folder = run.path(prepare.STAGE, prepare.SEQUENCES)
    sequences = Sequences.load(folder / name for name in prepared["sequences"])
    return Split(sequences, TimeCut(*prepared["time_cut"]) if prepared["time_cut"] else None)


def load_pairs(run: Run, weight: Weight, num_items: int, kind: PairKind = "pairs") -> Pairs:
    """Open the pairs of a kind with one of their weights."""
    folder = run.path(prepare.STAGE, kind)
    return Pairs([folder / name for name in run.manifest(prepare.STAGE)[kind]], num_items, weight)


def load_labeled(run: Run, seed: int) -> tuple[LabeledPairs, LabeledPairs]:
    """Load the labeled pairs: the part for training, and the part for calibration."""
    path = run.path(prepare.STAGE, prepare.LABELED_PAIRS)
    return LabeledPairs.load(path).split(seed)
