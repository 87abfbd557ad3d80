"""Losses over one batch shape: anchors [B, d], candidates [C, d], targets [B, C]. They use only `keras.ops`.

A target > 0 is the weight of a positive, 0 a negative, and -1 is ignored. See `docs/explanation/losses.md`.

Only d is known while a training step is traced: no loss may depend on the static number of candidates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

from keras import ops

from recsys.config.sections import TowerConfig, TrainConfig
from recsys.index.distances import DISTANCES, Distance

NUM_NEGATIVES = 16
"""Contrastive loss: number of nearest negatives of each anchor that contribute."""
NUM_POSITIVES = 16
"""Semi-hard triplets: number of heaviest positives of each anchor that contribute; limits the memory of [B, P, C]."""
ROUNDING = 1e-6
"""Squared distances below this share of the squared lengths are rounding errors of float32."""
IGNORED = -1e9
"""Logit of an ignored candidate: its probability is 0; an infinite logit times a share of 0 would be NaN."""
FAR = 1e30
"""Larger than any distance; infinity would become NaN in the gradient of masked entries."""


class Loss(ABC):
    """Base class: the loss of each anchor against the candidates of the batch."""

    @abstractmethod
    def __call__(self, anchors: Any, candidates: Any, targets: Any, log_inclusion: Any, log_popularity: Any) -> Any:
        """Compute the loss.

        Args:
            anchors: float32 [B, d]; anchors and candidates have unit length if the distance is cosine.
            candidates: float32 [C, d].
            targets: float32 [B, C]: > 0 is the weight of a positive, 0 a negative, -1 is ignored. Ignored candidates
                change neither the loss nor any gradient.
            log_inclusion: log of the probability that a candidate is part of the batch, float32 [C].
            log_popularity: popularity correction of each candidate, added to the logits, float32 [C].

        Returns:
            Float32 [B], finite. It depends on the ratios of the weights of an anchor's positives, not on their sum.
        """


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Cross-entropy between an anchor's positives and the softmax over the candidates.

    The default, for interactions: it compares an anchor with all candidates and weighs them by their similarity, so no
    negatives have to be mined. All positives of an anchor are targets, in proportion to their weights, so there are no
    accidental hits. A candidate with target -1 has probability 0.

    The log of the inclusion probability is subtracted from the logits of drawn candidates (Bengio and Senécal, 2008):
    the expected gradient approaches that of the whole catalog. An anchor's own positives are always in the batch and
    are not corrected (arXiv 2507.09331, RecSys 2025). The popularity correction is added to all logits: embeddings then
    need not express popularity (Yi et al., 2019; "logit adjustment", Menon et al., 2021). Queries never add it.

    The loss of an anchor without positives is 0.

    Args:
        distance: see `scores`.
        temperature: divides the scores; positive. Manhattan distances sum over the dimensions, so they need a
            temperature that is about the square root of the dimension times larger.
    """

    distance: Distance
    temperature: float

    def __call__(self, anchors: Any, candidates: Any, targets: Any, log_inclusion: Any, log_popularity: Any) -> Any:
        """See `Loss`."""
        correction = log_popularity - ops.where(targets > 0, 0.0, log_inclusion)  # [B, C]
        correction = ops.where(targets < 0, IGNORED, correction)
        logits = scores(self.distance, anchors, candidates) / self.temperature + correction
        shares, any_positive = _shares(targets)
        loss = ops.categorical_crossentropy(shares, logits, from_logits=True)  # [B]
        return ops.where(any_positive, loss, 0.0)


@dataclass(frozen=True)
class Contrastive(Loss):
    """Contrastive loss (Hadsell, Chopra and LeCun, 2006, without the factors of ½).

    For labeled pairs, and where a distance must mean the same for all items: one threshold separates "same" from
    "different".

    The loss is the weighted mean of d² over the positives, plus the mean of max(0, margin - d)² over the
    `NUM_NEGATIVES` nearest negatives of the anchor, or over all if there are fewer. A mean over the whole catalog would
    be dominated by distant negatives; a mean over the negatives within the margin would decrease when another one
    enters it. The number of negatives depends only on the targets, so the loss never decreases when a negative comes
    nearer.

    The loss of an anchor without positives, or without negatives, has the other term only.

    Args:
        distance: see `distances`.
        margin: in units of the distance.
    """

    distance: Distance
    margin: float

    def __call__(self, anchors: Any, candidates: Any, targets: Any, log_inclusion: Any, log_popularity: Any) -> Any:  # noqa: ARG002 - no probabilities to correct
        """See `Loss`."""
        distance_matrix = distances(self.distance, anchors, candidates)  # [B, C]
        shares, _ = _shares(targets)
        pull = ops.sum(shares * ops.square(distance_matrix), axis=1)
        shortfall = ops.where(targets == 0, ops.maximum(self.margin - distance_matrix, 0.0), 0.0)
        nearest, _ = ops.top_k(_padded(shortfall, NUM_NEGATIVES, 0.0), NUM_NEGATIVES)  # [B, NUM_NEGATIVES]
        negatives = ops.sum(ops.cast(targets == 0, "float32"), axis=1)
        push = ops.sum(ops.square(nearest), axis=1) / ops.clip(negatives, 1.0, float(NUM_NEGATIVES))
        return pull + push


@dataclass(frozen=True)
class Triplet(Loss):
    """Triplet loss: each positive should be nearer than a negative by a margin; weighted mean over the positives.

    For rankings in which only the order matters, not the distance. Each positive is compared with one negative:

    - `semi_hard`: the nearest negative that is farther than the positive; if all are nearer, the farthest negative
      (FaceNet: Schroff, Kalenichenko and Philbin, 2015; TensorFlow Addons has the same fallback). It does not
      collapse. Uses the `NUM_POSITIVES` heaviest positives of the anchor.
    - `hard`: the nearest negative. Learns fine differences fastest, but may collapse all items into one point, where
      the loss is the margin and the gradient is small.
    - `soft_margin`: the nearest negative, with log(1 + exp(positive - negative)) instead of a margin, so the gradient
      never becomes 0 (Hermans, Beyer and Leibe, 2017, "batch hard").

    The loss of an anchor without positives or without negatives is 0.

    Args:
        distance: see `distances`. Not squared, as Hermans et al. recommend; the cosine distance is half the squared
            distance of FaceNet.
        margin: in units of the distance; not used by `soft_margin`.
        mining: which negative is used.
    """

    distance: Distance
    margin: float
    mining: Literal["semi_hard", "hard", "soft_margin"] = "semi_hard"

    def __call__(self, anchors: Any, candidates: Any, targets: Any, log_inclusion: Any, log_popularity: Any) -> Any:  # noqa: ARG002 - no probabilities to correct
        """See `Loss`."""
        distance_matrix = distances(self.distance, anchors, candidates)  # [B, C]
        is_negative = targets == 0
        if self.mining == "semi_hard":
            weights, positions = ops.top_k(_padded(targets, NUM_POSITIVES, -1.0), NUM_POSITIVES)  # [B, P]
            positive_distance = ops.take_along_axis(_padded(distance_matrix, NUM_POSITIVES, 0.0), positions, axis=1)
            negative_distance = _semi_hard(positive_distance, distance_matrix, is_negative)
        else:
            weights, positive_distance = targets, distance_matrix
            negative_distance = ops.min(ops.where(is_negative, distance_matrix, FAR), axis=1, keepdims=True)  # [B, 1]
        shares, _ = _shares(weights)
        usable = ops.logical_and(shares > 0, ops.any(is_negative, axis=1, keepdims=True))
        difference = ops.where(usable, positive_distance - negative_distance, 0.0)
        losses = (
            ops.softplus(difference) if self.mining == "soft_margin" else ops.maximum(difference + self.margin, 0.0)
        )
        return ops.sum(ops.where(usable, shares * losses, 0.0), axis=1)


def from_config(train: TrainConfig, tower: TowerConfig) -> Loss:
    """Return the loss of a config."""
    distance = DISTANCES[tower.distance]
    if train.loss == "cross_entropy":
        return CrossEntropy(distance, train.temperature)
    if train.loss == "contrastive":
        return Contrastive(distance, train.margin)
    return Triplet(distance, train.margin, train.mining)


def scores(distance: Distance, anchors: Any, candidates: Any) -> Any:
    """Return similarity scores, larger is nearer: [B, d] and [C, d] -> [B, C].

    Cosine: the inner product of the unit vectors. Euclidean: -d²/2, which for unit vectors is the cosine minus 1, so
    that the same temperature suits both. Manhattan: -d.
    """
    if distance.name == "cosine":
        return ops.matmul(anchors, ops.transpose(candidates))
    if distance.name == "euclidean":
        return -0.5 * _squares(anchors, candidates)
    if distance.name == "manhattan":
        return -_manhattan(ops.convert_to_tensor(anchors), ops.convert_to_tensor(candidates))
    raise NotImplementedError(distance.name)


def distances(distance: Distance, anchors: Any, candidates: Any) -> Any:
    """Return distances, at least 0: [B, d] and [C, d] -> [B, C].

    Cosine: 1 - cos, in [0, 2]. Euclidean: d, with gradient 0 where d is 0. Manhattan: d.
    """
    if distance.name == "cosine":
        return ops.maximum(1.0 - scores(distance, anchors, candidates), 0.0)
    if distance.name == "euclidean":
        squares = _squares(anchors, candidates)
        # the gradient of the square root is infinite at 0, and a masked infinity becomes NaN
        return ops.where(squares > 0, ops.sqrt(ops.where(squares > 0, squares, 1.0)), 0.0)
    if distance.name == "manhattan":
        return -scores(distance, anchors, candidates)
    raise NotImplementedError(distance.name)


def _squares(anchors: Any, candidates: Any) -> Any:
    """Squared Euclidean distances, [B, C], by one matrix product; 0 where they are smaller than the rounding error."""
    lengths = ops.sum(ops.square(anchors), axis=1)[:, None] + ops.sum(ops.square(candidates), axis=1)  # [B, C]
    squares = lengths - 2.0 * ops.matmul(anchors, ops.transpose(candidates))
    return ops.where(squares > ROUNDING * lengths, squares, 0.0)


@ops.custom_gradient  # type: ignore[untyped-decorator]
def _manhattan(anchors: Any, candidates: Any) -> Any:
    """Manhattan distances, [B, C], computed dimension by dimension, also in the gradient.

    All dimensions together would be [B, C, d]: 1.6 GB for 256 anchors, 12,000 candidates and 128 dimensions.
    """
    by_anchor, by_candidate = ops.transpose(anchors), ops.transpose(candidates)  # [d, B], [d, C]
    dimension = anchors.shape[1]

    def add(axis: Any, total: Any) -> Any:
        return total + ops.abs(by_anchor[axis][:, None] - by_candidate[axis])

    def gradient(*arguments: Any, upstream: Any = None) -> tuple[Any, Any]:
        slope = arguments[0] if upstream is None else upstream  # depends on the Keras backend

        def step(axis: Any, slopes: tuple[Any, Any]) -> tuple[Any, Any]:
            signed = slope * ops.sign(by_anchor[axis][:, None] - by_candidate[axis])
            return (
                ops.slice_update(slopes[0], (axis, 0), ops.sum(signed, axis=1)[None]),
                ops.slice_update(slopes[1], (axis, 0), -ops.sum(signed, axis=0)[None]),
            )

        zeros = (ops.zeros_like(by_anchor), ops.zeros_like(by_candidate))
        anchor_slopes, candidate_slopes = ops.fori_loop(0, dimension, step, zeros)
        return ops.transpose(anchor_slopes), ops.transpose(candidate_slopes)

    zero = ops.zeros_like(by_anchor[0])[:, None] + ops.zeros_like(by_candidate[0])  # [B, C]
    return ops.fori_loop(0, dimension, add, zero), gradient


def _shares(weights: Any) -> tuple[Any, Any]:
    """Share of each positive weight in the sum of its row, [B, n], and whether the row has any, [B]."""
    positive = ops.maximum(weights, 0.0)
    total = ops.sum(positive, axis=1, keepdims=True)
    return positive / ops.where(total > 0, total, 1.0), total[:, 0] > 0


def _semi_hard(positive_distance: Any, distance_matrix: Any, is_negative: Any) -> Any:
    """Distance of the semi-hard negative of each positive: [B, P], [B, C] and [B, C] -> [B, P]."""
    farther = ops.logical_and(
        is_negative[:, None, :], distance_matrix[:, None, :] > positive_distance[:, :, None]
    )  # [B, P, C]
    nearest = ops.min(ops.where(farther, distance_matrix[:, None, :], FAR), axis=2)
    farthest = ops.max(ops.where(is_negative, distance_matrix, -FAR), axis=1, keepdims=True)
    return ops.where(nearest < FAR, nearest, farthest)


def _padded(rows: Any, columns: int, value: float) -> Any:
    """Append columns of a value, so that `top_k` also works with fewer candidates."""
    return ops.pad(rows, ((0, 0), (0, columns)), constant_values=value)
