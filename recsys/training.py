"""Fit a tower on pairs.

Takes the catalogue's tower inputs and a sampler of batches, hands on a trained tower and its curve. Knows no
MLflow and no files: who wants to watch passes `on_pass`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import keras
import numpy as np
from keras import ops

from recsys import losses, mining, optimiser, tower
from recsys.batches import PairBatches
from recsys.config import Config
from recsys.embeddings import Vectors
from recsys.errors import StageError
from recsys.evaluation import TARGET_METRIC, metrics, ranks
from recsys.exact import ExactIndex
from recsys.features import Features, Inputs
from recsys.queries import Queries, middle
from recsys.sampling import Batch
from recsys.similarity import DISTANCES
from recsys.splitting import Holdout

ENCODE_BATCH = 4_096
HISTORY = "history_"
"""Before the names of figures of look-ups from a history; without it, from the last item."""

OnPass = Callable[[int, dict[str, float]], None]
"""Called after each pass with its number from 1 and its figures."""


class Batches(Protocol):
    """What training draws its steps from; see `recsys.batches`."""

    def __len__(self) -> int:
        """Batches a pass."""
        ...

    def one_pass(self) -> Iterator[Batch]:
        """The batches of one pass, all of the same shapes, so that the step is compiled once."""
        ...


class Fit(NamedTuple):
    """What training came to; the tower has the weights of the best pass."""

    vectors: Vectors
    """Embeddings of the catalogue, float32 [num_items, dimension]."""
    passes: int
    """Passes that the weights took; 0 where none was better than the start."""
    score: float
    """`Validation.score` of those weights, -inf without validation."""
    curve: list[dict[str, float]]
    """Figures of each pass, the first pass first."""


class Siamese(keras.Model):
    """Both sides of the pairs through one tower, and the loss between them.

    Args:
        tower: inputs -> float32 [n, d].
        inputs: of the whole catalogue, [num_items, ...] each.
        loss: of `recsys.losses`.
        unit: whether embeddings have length 1.
    """

    def __init__(self, tower: keras.Model, inputs: Inputs, loss: losses.Loss, *, unit: bool) -> None:
        super().__init__()
        self.unit = unit
        self.tower = tower
        self.inputs_of_items = {name: ops.convert_to_tensor(array) for name, array in inputs.items()}
        self.batch_loss = loss

    def call(self, batch: Batch, training: bool = False) -> Any:
        """Embeddings of the batch's candidates, float32 [C, d]."""
        inputs = {name: ops.take(table, batch.candidates, axis=0) for name, table in self.inputs_of_items.items()}
        return self.tower(inputs, training=training)

    def compute_loss(self, x: Any, y: Any, y_pred: Any, *_: Any) -> Any:  # noqa: ARG002 - Keras's signature; `x` has the targets
        """Mean over the anchors, weighted."""
        batch = Batch(*x)
        anchors = ops.einsum("bl,bld->bd", batch.shares, ops.take(y_pred, batch.anchors, axis=0))
        if self.unit:
            anchors = ops.normalize(anchors, axis=1)
        else:
            anchors = anchors / ops.sum(batch.shares, axis=1, keepdims=True)
        loss = self.batch_loss(anchors, y_pred, batch.targets, batch.log_inclusion, batch.log_popularity)  # [B]
        return ops.mean(loss * batch.anchor_weights)


@dataclass
class Validation:
    """The look-ups that decide when to stop: from the last item, and from a history.

    Training must serve both, so the better pass is the one with the larger mean of the two NDCG@20.
    """

    holdout: Holdout
    config: Config
    _queries: dict[str, Queries] = field(init=False)

    def __post_init__(self) -> None:
        evaluate = self.config.evaluate
        self._queries = {
            "": Queries.of_items(self.holdout.queries),
            HISTORY: Queries.of_histories(self.holdout, middle(evaluate.recency), evaluate.history),
        }

    def figures(self, vectors: Vectors) -> dict[str, float]:
        """HR, NDCG and MRR of both look-ups by exact search."""
        index = ExactIndex(vectors, DISTANCES[self.config.tower.distance])
        found: dict[str, float] = {}
        for prefix, queries in self._queries.items():
            values = metrics(ranks(index, queries, self.holdout.targets))
            found |= {f"validation_{prefix}{name}": value for name, value in values.items()}
        return found

    @staticmethod
    def score(figures: dict[str, float]) -> float:
        """What is to be as large as possible."""
        return (figures[f"validation_{TARGET_METRIC}"] + figures[f"validation_{HISTORY}{TARGET_METRIC}"]) / 2


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
    fade: bool = False,
    on_pass: OnPass = lambda *_: None,
) -> Fit:
    """Train a tower, in place.

    Args:
        model: from `recsys.tower.build`, new or trained before.
        features: vocabularies that `inputs` were made with.
        inputs: tower inputs of the whole catalogue.
        batches: what to train on.
        config: `train`, `tower` and `candidates`.
        passes: passes at most.
        validation: look-ups that decide when to stop and which pass to keep; without any, all passes are done
            and the last is kept.
        to_beat: score of the tower as it is: where no pass is better, it stays so.
        fade: begin with a third of the learning rate, and let it fall to 0 over all passes, for what refines; what
            was to thaw has done so.
        on_pass: called after each pass.

    Raises:
        StageError: the loss was not finite.
    """
    distance = DISTANCES[config.tower.distance]
    siamese = Siamese(model, inputs, losses.of(config.train, config.tower), unit=distance.unit)
    rate: Any = config.train.learning_rate
    if fade:
        rate = keras.optimizers.schedules.PolynomialDecay(rate / 3, passes * len(batches), end_learning_rate=0.0)
    learner = optimiser.build(config.train, model, features, rate)
    if fade:
        learner.thaw()
    siamese.compile(optimizer=learner, jit_compile=True)
    encode = tower.encoder(model, ENCODE_BATCH)
    curve: list[dict[str, float]] = []
    best_pass, best_score, best_weights = 0, to_beat, model.get_weights()
    for number in range(1, passes + 1):
        figures = {"loss": _one_pass(siamese, batches, number)}
        vectors = encode(inputs)
        if validation is not None:
            figures |= validation.figures(vectors)
        figures |= _mine(batches, vectors, config, number)
        if number == config.train.thaw_after:
            learner.thaw()
        curve.append(figures)
        on_pass(number, figures)
        if validation is None:
            best_pass = number
        elif Validation.score(figures) > best_score:
            best_pass, best_score, best_weights = number, Validation.score(figures), model.get_weights()
        elif number - best_pass >= config.train.patience:
            break
    if best_pass < len(curve):
        model.set_weights(best_weights)
    return Fit(encode(inputs), best_pass, best_score, curve)


def _one_pass(siamese: Siamese, batches: Batches, number: int) -> float:
    """One pass over the anchors; the mean loss of its steps."""
    siamese.reset_metrics()
    loss = np.nan
    for batch in _ahead(batches.one_pass()):
        loss = float(siamese.train_on_batch(batch, return_dict=True)["loss"])  # the mean so far
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


def _mine(batches: Batches, vectors: Vectors, config: Config, number: int) -> dict[str, float]:
    """Hard negatives for the next pass; what was found and dropped."""
    wanted = config.candidates.hard_negatives and number >= config.candidates.hard_after
    if not (wanted and isinstance(batches, PairBatches)):
        return {}
    mined = mining.mine(vectors, batches.pairs, DISTANCES[config.tower.distance], config.candidates, batches.rng)
    batches.sampler.hard = mined.negatives
    return {f"hard_{name}": float(value) for name, value in mined.report.items()}
