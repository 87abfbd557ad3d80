"""Fit a tower on pairs.

Takes the catalog's tower inputs and a sampler of batches, hands on a trained tower and its curve. Knows no
MLflow and no files: who wants to watch passes `on_pass`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from recsys.config.sections import Config
from recsys.data.splits import Holdout
from recsys.errors import StageError
from recsys.evaluation.metrics import VALIDATION_SCORE, choose_recency, ranking_metrics, target_ranks, validation_score
from recsys.evaluation.protocol import PROTOCOL
from recsys.features.encoding import Features, Inputs
from recsys.index.distances import DISTANCES
from recsys.index.embeddings import Vectors
from recsys.index.exact import ExactIndex
from recsys.index.queries import Queries
from recsys.model import hard_negatives as mining
from recsys.model import losses, optimizer, tower
from recsys.model.batches import Batches, PairBatches
from recsys.model.checkpoint import Checkpoint, Progress
from recsys.model.negatives import Batch

ENCODE_BATCH = 4_096
HISTORY = "history_"
"""Before the names of figures of look-ups from a history; without it, from the last item."""
RECENCY = "validation_recency"
"""Name of the recency of those look-ups among the figures of a pass."""
RECENCY_USERS = 2_000
"""Users that the recency of a look is chosen with: it is flat around the best, and a choice asks once for each."""

XLA = "RECSYS_XLA"
"""Environment variable: 0 trains without XLA, which compiles for seconds what short fits, as in tests, run once."""

OnPass = Callable[[int, dict[str, float]], None]
"""Called after each pass with its number from 1 and its figures."""


class Fit(NamedTuple):
    """What training came to; the tower has the weights of the best pass."""

    vectors: Vectors
    """Embeddings of the catalog, float32 [num_items, dimension]."""
    passes: int
    """Passes that the weights took; 0 where none was better than the start."""
    score: float
    """`VALIDATION_SCORE` of those weights, -inf without validation."""
    recency: float | None
    """With which those weights look a history up best; None without validation, or where `passes` is 0."""
    curve: list[dict[str, float]]
    """Figures of each pass, the first pass first."""


class Siamese(keras.Model):
    """Both sides of the pairs through one tower, and the loss between them.

    Args:
        tower: inputs -> float32 [n, d].
        inputs: of the whole catalog, [num_items, ...] each; what the tower does not read is left aside.
        loss: of `recsys.model.losses`.
        unit: whether embeddings have length 1.
    """

    ANCHOR_POWER = 1.0
    """An anchor counts with its weight to this power."""

    def __init__(self, tower: keras.Model, inputs: Inputs, loss: losses.Loss, *, unit: bool) -> None:
        super().__init__()
        self.unit = unit
        self.tower = tower
        self.inputs_of_items = {name: ops.convert_to_tensor(inputs[name]) for name in tower.input}
        self.batch_loss = loss

    def call(self, batch: Batch, training: bool = False) -> tuple[Any, Any]:
        """Embeddings of the batch's anchors, float32 [B, d], and of its candidates, [C, d]."""
        candidates = self.tower(self._inputs(batch.candidates), training=training)
        anchors = ops.einsum("bl,bld->bd", batch.shares, ops.take(candidates, batch.anchors, axis=0))
        if self.unit:
            return ops.normalize(anchors, axis=1), candidates
        return anchors / ops.sum(batch.shares, axis=1, keepdims=True), candidates

    def _inputs(self, numbers: Any) -> dict[str, Any]:
        return {name: ops.take(table, numbers, axis=0) for name, table in self.inputs_of_items.items()}

    def compute_loss(self, x: Any, y: Any, y_pred: Any, *_: Any) -> Any:  # noqa: ARG002 - Keras's signature; `x` has the targets
        """Mean over the anchors, weighted."""
        batch = Batch(*x)
        anchors, candidates = y_pred
        loss = self.batch_loss(anchors, candidates, batch.targets, batch.log_inclusion, batch.log_popularity)  # [B]
        return ops.mean(loss * batch.anchor_weights**self.ANCHOR_POWER)


class Newcomers(Siamese):
    """Items by their features alone, as if nobody had touched them yet, among embeddings that stand still.

    An item's pairs say where it would stand if it were new: near what it was touched together with. Nothing that
    items with interactions answer changes by it. See `docs/decisions/0022-encoders-for-new-items.md`.

    Args:
        tower: of features, without the id.
        inputs: of the whole catalog.
        loss: of `recsys.model.losses`.
        unit: whether embeddings have length 1.
        among: embeddings of the catalog, float32 [num_items, d].
    """

    ANCHOR_POWER = 0.5
    """New items are not the popular ones, which would make up most of the loss."""

    def __init__(self, tower: keras.Model, inputs: Inputs, loss: losses.Loss, *, unit: bool, among: Vectors) -> None:
        super().__init__(tower, inputs, loss, unit=unit)
        self.among = ops.convert_to_tensor(among)

    def call(self, batch: Batch, training: bool = False) -> tuple[Any, Any]:
        """Embeddings of the batch's anchors by their newest item's features, [B, d], and of its candidates, [C, d]."""
        newest = ops.take(batch.candidates, batch.anchors[:, 0])
        return self.tower(self._inputs(newest), training=training), ops.take(self.among, batch.candidates, axis=0)


@dataclass
class Validation:
    """The look-ups that decide when to stop: from the last item, and from a history.

    Training must serve both, so the better pass is the one with the larger mean of the two NDCG@20. A history is
    looked up with the recency that is best for the pass, as a release is.
    """

    holdout: Holdout
    config: Config
    among: NDArray[np.bool_] | None = None
    """What may be found, bool [num_items]; everything where it is None."""

    def figures(self, vectors: Vectors) -> dict[str, float]:
        """HR, NDCG and MRR by exact search for both query kinds, the `VALIDATION_SCORE`, and the `RECENCY`."""
        index = ExactIndex(vectors, DISTANCES[self.config.tower.distance], self.among)
        few = self.holdout.subsample(RECENCY_USERS)
        recency, _ = choose_recency(index, few, PROTOCOL.recencies, PROTOCOL.history_items)
        asked = {
            "": Queries.from_items(self.holdout.queries),
            HISTORY: Queries.from_histories(self.holdout, recency, PROTOCOL.history_items),
        }
        found = {
            prefix: ranking_metrics(target_ranks(index, queries, self.holdout.targets))
            for prefix, queries in asked.items()
        }
        named = {f"validation_{prefix}{name}": value for prefix, one in found.items() for name, value in one.items()}
        return named | {VALIDATION_SCORE: validation_score(found.values()), RECENCY: recency}


def fit(
    model: keras.Model,
    features: Features,
    inputs: Inputs,
    batches: Batches,
    config: Config,
    *,
    passes: int,
    validation: Validation | None = None,
    to_beat: float = -np.inf,
    refine: bool = False,
    among: Vectors | None = None,
    feature_rate: float = 1.0,
    checkpoint: Checkpoint | None = None,
    on_pass: OnPass = lambda *_: None,
) -> Fit:
    """Train a tower, in place.

    Args:
        model: from `recsys.model.tower.build`, new or trained before.
        features: vocabularies that `inputs` were made with.
        inputs: tower inputs of the whole catalog.
        batches: what to train on.
        config: `train`, `tower` and `candidates`.
        passes: passes at most.
        validation: look-ups that decide when to stop and which pass to keep; without any, all passes are done
            and the last is kept.
        to_beat: where no pass has a better score than this, the tower stays as it is.
        refine: begin with a third of the learning rate, and let it fall to 0 over all passes; what was to thaw has
            done so.
        among: train `Newcomers` among these embeddings, float32 [num_items, d]; what was to thaw has done so too.
        feature_rate: of `recsys.model.optimizer.build`.
        checkpoint: written after each pass; where it is there, the fit goes on from it.
        on_pass: called after each pass that is done here.

    Raises:
        StageError: the loss was not finite.
    """
    siamese = _siamese(model, inputs, config, among)
    rate: Any = config.train.learning_rate
    if refine:
        rate = keras.optimizers.schedules.PolynomialDecay(rate / 3, passes * len(batches), end_learning_rate=0.0)
    learner = optimizer.build(config.train, model, features, rate, feature_rate=feature_rate)
    if refine or among is not None:
        learner.thaw()
    siamese.compile(optimizer=learner, jit_compile=os.environ.get(XLA) != "0")
    encode = tower.encoder(model, ENCODE_BATCH)
    learner.build(siamese.trainable_variables)
    state = [*siamese.variables, *learner.variables]
    progress, best_weights = Progress(to_beat), model.get_weights()
    if checkpoint is not None:
        progress, best_weights = checkpoint.restore(state, best_weights, batches) or (progress, best_weights)
    while len(progress.curve) < passes and not _out_of_patience(progress, validation, config):
        number = len(progress.curve) + 1
        figures = {"loss": _one_pass(siamese, batches, number)}
        figures |= _look(lambda: encode(inputs), batches, validation, config, number)
        if number == config.train.thaw_after:
            learner.thaw()
        progress.curve.append(figures)
        if validation is None or figures[VALIDATION_SCORE] > progress.best_score:
            progress.best_pass, progress.best_score = number, figures.get(VALIDATION_SCORE, to_beat)
            best_weights = model.get_weights()
        if checkpoint is not None:
            checkpoint.save(progress, state, best_weights, batches)
        on_pass(number, figures)
    model.set_weights(best_weights)
    recency = progress.curve[progress.best_pass - 1].get(RECENCY) if progress.best_pass else None
    return Fit(encode(inputs), progress.best_pass, progress.best_score, recency, progress.curve)


def _siamese(model: keras.Model, inputs: Inputs, config: Config, among: Vectors | None) -> Siamese:
    """What is trained: both sides of the pairs, or newcomers among embeddings."""
    loss, unit = losses.of(config.train, config.tower), DISTANCES[config.tower.distance].unit_norm
    if among is None:
        return Siamese(model, inputs, loss, unit=unit)
    return Newcomers(model, inputs, loss, unit=unit, among=among)


def _out_of_patience(progress: Progress, validation: Validation | None, config: Config) -> bool:
    """Whether too many passes were no better than the best one."""
    return validation is not None and len(progress.curve) - progress.best_pass >= config.train.patience


def _one_pass(siamese: Siamese, batches: Batches, number: int) -> float:
    """One pass over the anchors; the mean loss of its steps."""
    steps = [float(siamese.train_on_batch(batch, return_dict=True)["loss"]) for batch in _ahead(batches.one_pass())]
    loss = float(np.mean(steps))
    if not np.isfinite(loss):
        raise StageError(
            f"the loss must stay a finite number. Received: {loss} in pass {number}. Try a smaller train.learning_rate."
        )
    return loss


def _ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, the next one made while a step is computed."""
    with ThreadPoolExecutor(1) as maker:
        following = maker.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = maker.submit(next, batches, None)
            yield batch


def _look(
    vectors_now: Callable[[], Vectors], batches: Batches, validation: Validation | None, config: Config, number: int
) -> dict[str, float]:
    """What the tower does after a pass: figures of the look-ups; and of the hard negatives for the next pass."""
    mines = bool(config.candidates.hard_negatives) and number >= config.candidates.hard_after
    if validation is None and not mines:
        return {}
    vectors = vectors_now()
    figures = validation.figures(vectors) if validation is not None else {}
    if mines and isinstance(batches, PairBatches):
        mined = mining.mine(vectors, batches.pairs, DISTANCES[config.tower.distance], config.candidates, batches.rng)
        batches.sampler.hard = mined.negatives
        figures |= {f"hard_{name}": float(value) for name, value in mined.report.items()}
    return figures
