"""train: fit the tower to the pairs.

The validation fit leaves out a share of the users. It selects the number of passes, and its neighbors are compared with
what these users associate. The final fit trains the tower of the release: the same number of passes over the
interactions of all users before the test targets. See `recsys.model.fit_plan`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.context.metrics_log import MetricsLog
from pipelines.context.progress import Advance, Progress
from pipelines.prepare import stage as prepare
from recsys.config.sections import Config
from recsys.config.senses import Sense
from recsys.data.catalog import Catalog
from recsys.data.labeled_pairs import LabeledPairs
from recsys.data.pairs import Pairs
from recsys.data.sequences import Sequences
from recsys.data.splits import WEIGHTS, Split, Target, TimeCut
from recsys.errors import InputError, ReleaseError
from recsys.evaluation.baseline_search import QUERY_KINDS, make_queries
from recsys.evaluation.likeness import Evidence, agreement_report
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

EVIDENCE = "evidence.npz"
"""Name of the file with the evidence of likeness."""
PAIRS: Mapping[Sense, str] = {"next": prepare.PAIRS, "similar": prepare.SIMILAR_PAIRS}
"""Folder of the pairs of a sense in the prepare stage."""


def train(config: Config, run: Run, progress: Progress, metrics: MetricsLog) -> dict[str, Any]:
    """Run the stage if it has not been completed, and return its manifest.

    Returns:
        The manifest: `passes` of each phase; `history_recency` with which the tower was trained; `recency` of history
        queries and `validation` figures (`measure_validation`); `evidence_items`, the number of items that the users
        held out associate; `likeness` of the validation fit (`measure_likeness`), {} if these are too few; `curve` and
        `final_curve`, the figures of each pass; `feature_rate`; `warm_start`.

    Raises:
        StageError: the prepare stage has not been completed, there are no pairs, or the loss is not finite.
        InputError: `data.warm_start` is not a release, or its tower has another dimension or distance.
    """
    if run.done(STAGE):
        return run.manifest(STAGE)
    with progress.stage(STAGE) as advance, run.stage(STAGE, "passes") as (folder, manifest):
        # before the first fit, so that a release that does not fit ends the stage at once
        earlier = load_earlier_tower(config, "next")
        checkpoints = folder / CHECKPOINTS
        on_pass: OnPhasePass = _ValidationProgress(config, advance, metrics)
        selected = fit_tower(config, run, validation_plan(config), on_pass, checkpoints=checkpoints)
        split = load_split(run)
        validation = measure_validation(config, split, selected.embeddings)
        evidence = None if config.data.labeled_pairs else Evidence.of_held_out_users(split, len(selected.embeddings))
        likeness = {}
        if evidence is not None and evidence.is_enough:
            evidence.save(folder / EVIDENCE)
            likeness = measure_likeness(config, split, selected.embeddings, evidence)
        plan = final_plan(config, selected.passes, selected.recency)
        on_pass = _FinalProgress(selected.passes, advance, metrics)
        final = fit_tower(config, run, plan, on_pass, earlier=earlier, checkpoints=checkpoints)
        shutil.rmtree(checkpoints)
        final.tower.save(folder / TOWER)
        final.features.save(folder / FEATURES)
        manifest.update(
            passes=selected.passes._asdict(),
            history_recency=selected.recency,
            **validation,
            evidence_items=0 if evidence is None else len(evidence.items),
            likeness=likeness,
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
    config: Config,
    run: Run,
    plan: FitPlan,
    on_pass: OnPhasePass,
    *,
    sense: Sense = "next",
    evidence: Evidence | None = None,
    earlier: EarlierTower | None = None,
    checkpoints: Path | None = None,
) -> FittedTower:
    """Fit a tower to the prepared data.

    Args:
        config: the complete config.
        run: a run whose prepare stage has been completed.
        plan: phases of the fit.
        on_pass: called after each pass.
        sense: of the pairs.
        evidence: if given, passes are validated by likeness instead of the held-out targets.
        earlier: warm start from this tower. A validation fit has none, because it has seen the users held out.
        checkpoints: folder of the checkpoints from which an interrupted fit resumes.

    Raises:
        StageError: there are no pairs, or the loss is not finite.
    """
    from recsys.model.tower_fit import TowerFit  # noqa: PLC0415 - TensorFlow takes seconds

    data = load_fit_data(config, run, plan.target, sense)._replace(evidence=evidence, earlier=earlier)
    return TowerFit(plan, data, config, checkpoints=checkpoints, on_pass=on_pass).run()


def load_fit_data(config: Config, run: Run, target: Target, sense: Sense = "next") -> FitData:
    """Load the outputs of the prepare stage."""
    from recsys.model.tower_fit import FitData  # noqa: PLC0415 - TensorFlow takes seconds

    catalog = Catalog.load(run.path(prepare.STAGE, CATALOG))
    return FitData(
        catalog.frame,
        load_split(run),
        load_pairs(run, target, len(catalog), sense),
        load_labeled(run, config.train.seed)[0] if config.data.labeled_pairs else None,
    )


def load_earlier_tower(config: Config, sense: Sense) -> EarlierTower | None:
    """Load the tower of a sense from the release of a warm start; None if the config names none.

    Raises:
        InputError: `data.warm_start` is not a release, or damaged, or its tower has another dimension or distance.
    """
    from recsys.model import tower, warm_start  # noqa: PLC0415 - TensorFlow takes seconds
    from recsys.model.tower_fit import EarlierTower  # noqa: PLC0415

    if not config.data.warm_start:
        return None
    try:
        folder = remote.load(config.data.warm_start).space(sense).path
    except ReleaseError as error:
        raise InputError(f"data.warm_start must be the folder of a release: {error}") from None
    earlier = EarlierTower(tower.load(folder / TOWER), Features.load(folder / FEATURES))
    warm_start.require_same_shape(config.tower, earlier.tower)
    return earlier


def measure_validation(config: Config, split: Split, embeddings: Vectors) -> dict[str, Any]:
    """Measure the embeddings of a validation fit on its targets, by exact search among the items of its training data.

    Returns:
        `recency`: the best recency for history queries; `validation`: the reports of
        `recsys.evaluation.metrics.evaluation_report` for `last_item` and `history`. None and {} if no interaction is
        held out.
    """
    holdout = split.holdout("validation", config.evaluate.users)
    if not len(holdout):
        return {"recency": None, "validation": {}}
    popularity = split.popularity("validation", len(embeddings))
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


def measure_likeness(config: Config, split: Split, embeddings: Vectors, evidence: Evidence) -> dict[str, Any]:
    """Compare the neighbors by embeddings of a validation fit with what the users held out associate.

    Returns:
        The report of `recsys.evaluation.likeness.agreement_report`, by exact search among the items of its training
        data.
    """
    popularity = split.popularity("validation", len(embeddings))
    index = ExactIndex(embeddings, DISTANCES[config.tower.distance], popularity > 0)
    return agreement_report(index, popularity, PROTOCOL.resamples, evidence)


def load_evidence(run: Run) -> Evidence | None:
    """Return what the users held out associate, as the stage saved it; None if that is too little."""
    return Evidence.load(run.path(STAGE, EVIDENCE)) if run.manifest(STAGE)["likeness"] else None


def load_split(run: Run) -> Split:
    """Load the sequences of all users and their split."""
    prepared = run.manifest(prepare.STAGE)
    folder = run.path(prepare.STAGE, prepare.SEQUENCES)
    sequences = Sequences.load(folder / name for name in prepared["sequences"])
    return Split(sequences, TimeCut(*prepared["time_cut"]) if prepared["time_cut"] else None)


def load_pairs(run: Run, target: Target, num_items: int, sense: Sense = "next") -> Pairs:
    """Open the pairs of a sense with their weights in the training data for a target."""
    folder = run.path(prepare.STAGE, PAIRS[sense])
    return Pairs([folder / name for name in run.manifest(prepare.STAGE)[PAIRS[sense]]], num_items, WEIGHTS[target])


def load_labeled(run: Run, seed: int) -> tuple[LabeledPairs, LabeledPairs]:
    """Load the labeled pairs: the part for training, and the part for calibration."""
    path = run.path(prepare.STAGE, prepare.LABELED_PAIRS)
    return LabeledPairs.load(path).split(seed)
