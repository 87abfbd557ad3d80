"""train: pairs -> tower.

A fit takes passes over pairs, then over histories, and at the end puts new items among the known ones. There are
two: one on everything before the validation targets, which says how many passes are best, and with which recency a
history is looked up; then one of so many passes on everything before the test targets. That one is kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipelines.context.metrics_log import MetricsLog
from pipelines.context.progress import Progress
from pipelines.prepare import stage as prepare
from recsys.config.sections import Config
from recsys.data.catalog import Catalog
from recsys.data.cooccurrence import Weight
from recsys.data.labeled_pairs import LabeledPairs
from recsys.data.pairs import Pairs
from recsys.data.sequences import Sequences
from recsys.data.splits import Split, Target, TimeCut
from recsys.errors import InputError, ReleaseError
from recsys.evaluation.baseline_search import QUERY_KINDS, make_queries
from recsys.evaluation.metrics import TARGET_METRIC, choose_recency, evaluation_report
from recsys.evaluation.protocol import PROTOCOL
from recsys.features.encoding import Features
from recsys.index.distances import DISTANCES
from recsys.index.embeddings import Vectors
from recsys.index.exact import ExactIndex
from recsys.index.queries import default_recency
from recsys.model.batches import Batches, HistoryBatches, LabeledBatches, PairBatches
from recsys.model.checkpoint import Checkpoint
from recsys.release import remote as depot
from recsys.release.formats import CATALOG, FEATURES, TOWER
from recsys.release.runs import Run

if TYPE_CHECKING:
    from recsys.model.trainer import OnPass

STAGE = "train"
CHECKPOINTS = ".checkpoints"

SLACK = 0.02
"""Passes over histories are dropped where they make the score worse by more than this share of it, which is about what
one seed differs from another by: a release without them is another kind of release, above all in its tail."""

BEFORE: dict[Target, Weight] = {"validation": "weight_before_validation", "test": "weight"}
"""Which pairs are known before a target."""


def train(config: Config, run: Run, progress: Progress, metrics: MetricsLog) -> dict[str, Any]:
    """Do the stage if it is not done, and return its manifest.

    Raises:
        StageError: prepare was not run, there is nothing to train on, or training diverged.
        InputError: `data.warm_start` is no release, or of another shape.
    """
    if run.done(STAGE):
        return run.manifest(STAGE)
    with progress.stage(STAGE) as advance, run.stage(STAGE, "passes") as (folder, manifest):

        def on_tuning_pass(number: int, figures: dict[str, float]) -> None:
            score = figures.get(f"validation_{TARGET_METRIC}")
            note = f"loss {figures['loss']:.3f}" + (f", validation NDCG@20 {score:.4f}" if score is not None else "")
            advance(number, config.train.passes + config.train.history_passes, note)
            # the rest is in the manifest: a database that is asked for every figure takes longer than the pass
            shown = {name: value for name, value in figures.items() if "_at_" not in name or TARGET_METRIC in name}
            metrics.log({f"train_{name}": value for name, value in shown.items()}, number)

        def on_final_pass(number: int, figures: dict[str, float]) -> None:
            advance(number, max(1, sum(best.passes.values())), f"final fit, loss {figures['loss']:.3f}")
            metrics.log({"final_loss": figures["loss"]}, number)

        def on_new_pass(number: int, figures: dict[str, float]) -> None:
            advance(number, note=f"new items, loss {figures['loss']:.3f}")

        most = {"pairs": config.train.passes, "histories": config.train.history_passes}
        best = fit_before(
            "validation", config, run, most, on_tuning_pass, on_new_pass=on_new_pass, checkpoints=folder / CHECKPOINTS
        )
        judged = judge(config, run, best.vectors)
        final = fit_before(
            "test", config, run, best.passes, on_final_pass, recency=best.recency, on_new_pass=on_new_pass,
            checkpoints=folder / CHECKPOINTS,
        )  # fmt: skip
        shutil.rmtree(folder / CHECKPOINTS)
        final.tower.save(folder / TOWER)
        final.features.save(folder / FEATURES)
        manifest.update(
            passes=best.passes,
            **judged,
            curve=best.curve,
            final_curve=final.curve,
            feature_rate=final.feature_rate,
            warm_start=final.warm_start,
        )
        reached = judged["validation"].get("last_item", {}).get(TARGET_METRIC)
        advance(1, 1, f"{best.passes['pairs']} passes" + (f", validation NDCG@20 {reached:.4f}" if reached else ""))
    return run.manifest(STAGE)


class Fitted(NamedTuple):
    """A tower, and how it came to be."""

    tower: Any
    features: Features
    vectors: Vectors
    """Embeddings of the catalog, float32 [num_items, dimension]."""
    passes: dict[str, int]
    """Over `pairs`, and then over `histories`."""
    recency: float | None
    """With which histories were trained; None where none were."""
    curve: list[dict[str, float]]
    """Figures of each pass."""
    feature_rate: float
    """How many times faster than ids features learned."""
    warm_start: dict[str, dict[str, int]]
    """Weights that were `copied` from an earlier tower and those that are `new`, by encoder."""


def fit_before(
    target: Target,
    config: Config,
    run: Run,
    passes: Mapping[str, int],
    on_pass: OnPass,
    *,
    recency: float | None = None,
    on_history_pass: OnPass | None = None,
    on_new_pass: OnPass = lambda *_: None,
    checkpoints: Path | None = None,
) -> Fitted:
    """A tower trained on what is known before a target.

    Before the validation target, `passes` are the most, and the look-ups say how many are best; before the test
    target, where nothing may be looked at, they are done as they are. Histories are trained with the recency
    that is given, else with that of the best pass over pairs. `on_history_pass` is called after a pass over
    histories, where `on_pass` is not to be; passes are counted on. Then new items get encoders of their own among
    what was learned, in twice as many passes as there were over pairs; `on_new_pass` counts them from 1. A fit that was
    killed goes on from its checkpoint, if there is a folder for them.
    """
    from recsys.model import optimizer, tower  # noqa: PLC0415 - TensorFlow takes seconds
    from recsys.model import trainer as training  # noqa: PLC0415

    catalog = Catalog.load(run.path(prepare.STAGE, CATALOG))
    split = load_split(run)
    pairs = load_pairs(run, BEFORE[target], len(catalog))
    batches: Batches
    if config.data.labeled_pairs:
        labeled, _ = load_labeled(run, config.train.seed)
        batches = LabeledBatches(labeled, len(catalog), config)
        counts = np.bincount(np.concatenate([labeled.first, labeled.second]), minlength=len(catalog))
    else:
        batches, counts = PairBatches(pairs, config), pairs.counts
    features = Features.fit(catalog.frame, config.items, config.tower, counts)
    inputs = features.transform(catalog.frame)
    known = inputs["id"] > 0
    # new items are placed at the end, and in nobody's way before
    among = None if config.data.labeled_pairs else known
    validation = None
    if target == "validation":
        holdout = split.holdout(target, config.train.validation_users, config.train.seed)
        validation = training.Validation(holdout, config, among) if len(holdout) else None
    model = tower.build(features, config.tower, config.train.seed)
    copied: dict[str, dict[str, int]] = {}
    if config.data.warm_start is not None:
        earlier = earlier_release(config.data.warm_start)
        copied = tower.warm_start(model, features, tower.load(earlier / TOWER), Features.load(earlier / FEATURES))

    touched = split.sequences.items[split.known_before(target)]
    rate = optimizer.feature_rate(config.train.feature_lead, max(len(touched), 1) / max(len(np.unique(touched)), 1))

    def checkpoint(phase: str) -> Checkpoint | None:
        return Checkpoint(checkpoints / f"{target}-{phase}.npz") if checkpoints else None

    fit = training.fit(
        model, features, inputs, batches, config,
        passes=passes["pairs"], validation=validation, feature_rate=rate, checkpoint=checkpoint("pairs"),
        on_pass=on_pass,
    )  # fmt: skip
    done, curve, vectors = {"pairs": fit.passes, "histories": 0}, fit.curve, fit.vectors
    if not passes["histories"] or config.data.labeled_pairs:
        recency = None
    else:
        recency = recency or fit.recency or default_recency(PROTOCOL.recencies)
        told = on_history_pass or on_pass
        refined = training.fit(
            model, features, inputs, HistoryBatches(split, target, pairs, config, recency), config,
            passes=passes["histories"], validation=validation, to_beat=(1 - SLACK) * fit.score, refine=True,
            feature_rate=rate,
            checkpoint=checkpoint("histories"),
            on_pass=lambda number, figures: told(len(fit.curve) + number, figures),
        )  # fmt: skip
        done["histories"] = passes["histories"] if refined.passes else 0
        curve, vectors = curve + refined.curve, refined.vectors
    if config.train.new_items and len(features.input_names) > 1:
        new = tower.of_features(model, features, config.tower, config.train.seed)
        placed = training.fit(
            new, features, inputs, batches, config,
            passes=2 * done["pairs"], among=vectors, checkpoint=checkpoint("new-items"), on_pass=on_new_pass,
        )  # fmt: skip
        model, vectors = tower.joined(model, new), np.where(known[:, None], vectors, placed.vectors)
    return Fitted(model, features, vectors, done, recency, curve, rate, copied)


def earlier_release(source: str) -> Path:
    """The release to go on from, checked.

    Raises:
        InputError: it is none, or damaged.
    """
    try:
        return depot.load(source).path
    except ReleaseError as error:
        raise InputError(f"data.warm_start must be the folder of a release: {error}") from None


def judge(config: Config, run: Run, vectors: Vectors) -> dict[str, Any]:
    """The recency that is best on the validation target, and all figures there, by exact search."""
    split = load_split(run)
    validation = split.holdout("validation", config.evaluate.users)
    if not len(validation):
        return {"recency": None, "validation": {}}
    index = ExactIndex(vectors, DISTANCES[config.tower.distance])
    recency, _ = choose_recency(index, validation, PROTOCOL.recencies, PROTOCOL.history_items)
    popularity = np.bincount(split.sequences.items[split.known_before("validation")], minlength=len(vectors))
    figures = {
        look_up: evaluation_report(
            index,
            make_queries(validation, look_up, recency, PROTOCOL),
            validation.targets,
            popularity,
            PROTOCOL.resamples,
        )
        for look_up in QUERY_KINDS
    }
    return {"recency": recency, "validation": figures}


def load_split(run: Run) -> Split:
    """What prepare wrote, in known and held-out interactions."""
    prepared = run.manifest(prepare.STAGE)
    folder = run.path(prepare.STAGE, prepare.SEQUENCES)
    sequences = Sequences.load(folder / name for name in prepared["sequences"])
    return Split(sequences, TimeCut(*prepared["cut"]) if prepared["cut"] else None)


def load_pairs(run: Run, weight: Weight, num_items: int) -> Pairs:
    """What prepare wrote."""
    folder = run.path(prepare.STAGE, prepare.PAIRS)
    return Pairs([folder / name for name in run.manifest(prepare.STAGE)["pairs"]], num_items, weight)


def load_labeled(run: Run, seed: int) -> tuple[LabeledPairs, LabeledPairs]:
    """Pairs that people judged: to train on, and to calibrate with."""
    path = run.path(prepare.STAGE, prepare.LABELED)
    return LabeledPairs.load(path).split(seed)
