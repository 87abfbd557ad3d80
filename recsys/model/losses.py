"""Losses over one batch shape: anchors [B, d], candidates [C, d], targets [B, C]. Only `keras.ops`.

A target > 0 is the weight of a positive, 0 a negative, -1 is left out. See `docs/explanation/losses.md`.
No shape is known while a step is traced but d, so that nothing here may depend on the number of candidates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

from keras import ops

from recsys.config.sections import TowerConfig, TrainConfig
from recsys.index.distances import DISTANCES, Distance

NEGATIVES = 16
"""Contrastive: nearest negatives of each anchor that are pushed away."""
POSITIVES = 16
"""Semi-hard triplets: heaviest positives of each anchor that a negative is looked up for; bounds [B, P, C]."""
ROUNDING = 1e-6
"""Squared distances below this share of the squared lengths are rounding errors of float32."""
FAR = 1e30
"""Further than anything; infinity would turn into NaN in the gradient of what is masked."""


class Loss(ABC):
    """The loss of each anchor against the candidates of the batch."""

    @abstractmethod
    def __call__(self, anchors: Any, candidates: Any, targets: Any, log_inclusion: Any, log_popularity: Any) -> Any:
        """Compute it.

        Args:
            anchors: float32 [B, d]; of length 1 if the distance asks for it, as are the candidates.
            candidates: float32 [C, d].
            targets: float32 [B, C]: > 0 the weight of a positive, 0 a negative, -1 neither. A candidate that is
                neither changes nothing and gets no gradient.
            log_inclusion: log of the probability that a candidate takes part in the step, float32 [C].
            log_popularity: what to add for popularity, already scaled by its factor, float32 [C].

        Returns:
            Float32 [B], finite. Only the proportions of an anchor's weights count.
        """


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Cross-entropy between an anchor's positives and the softmax over the candidates.

    For interactions, and the default: it compares with all candidates at once and weighs them by how near they are,
    so nothing has to be mined. Every positive of the anchor is a target at once, in proportion to its weight, so
    there are no accidental hits. A candidate with target -1 has probability exactly 0.

    What was drawn is corrected by minus the log of its inclusion probability (Bengio and Senécal, 2008), so that the
    gradient tends to the one over the whole catalog. An anchor's own positives are there for certain, and are not
    corrected (arXiv 2507.09331, RecSys 2025). The popularity is added to all candidates: what it explains, the
    embeddings need not (Yi et al., 2019; "logit adjustment", Menon et al., 2021). Look-ups never add it.

    An anchor without positives loses nothing.

    Args:
        distance: its score is `scores`.
        temperature: divides the score; > 0. Manhattan sums over dimensions, so its scores need about the square root
            of their number times as much.
    """

    distance: Distance
    temperature: float

    def __call__(self, anchors: Any, candidates: Any, targets: Any, log_inclusion: Any, log_popularity: Any) -> Any:
        """See `Loss`."""
        drawn = ops.where(targets > 0, 0.0, log_inclusion)  # [B, C]
        logits = scores(self.distance, anchors, candidates) / self.temperature + log_popularity - drawn
        logits = ops.where(targets < 0, float("-inf"), logits)
        log_partition = ops.logsumexp(logits, axis=1)  # [B]
        # -inf times 0 is NaN: ignored logits must not reach the product
        shares, any_positive = _shares(targets)
        expected = ops.sum(shares * ops.where(targets < 0, 0.0, logits), axis=1)
        return ops.where(any_positive, log_partition - expected, 0.0)


@dataclass(frozen=True)
class Contrastive(Loss):
    """Positives come near, negatives go beyond a margin (Hadsell, Chopra and LeCun, 2006, without its factors of ½).

    For pairs that people judged, and where a distance must mean the same for all items: one threshold tells "same"
    from "different".

    The loss is the weighted mean of d² over the positives, plus the mean of max(0, margin - d)² over the anchor's
    `NEGATIVES` nearest negatives, or all if there are fewer. A mean over all of a catalog would be diluted by
    those that are far already; one over those within the margin would fall when one more enters it. The
    number is fixed by the targets alone, so a negative that comes nearer never makes the loss smaller.

    An anchor without positives has its negatives pushed away, one without negatives its positives drawn near.

    Args:
        distance: its distance is `distances`.
        margin: in units of the distance.
    """

    distance: Distance
    margin: float

    def __call__(self, anchors: Any, candidates: Any, targets: Any, log_inclusion: Any, log_popularity: Any) -> Any:  # noqa: ARG002 - no probabilities to correct
        """See `Loss`."""
        apart = distances(self.distance, anchors, candidates)  # [B, C]
        shares, _ = _shares(targets)
        pull = ops.sum(shares * ops.square(apart), axis=1)
        short = ops.where(targets == 0, ops.maximum(self.margin - apart, 0.0), 0.0)
        nearest, _ = ops.top_k(_widened(short, NEGATIVES, 0.0), NEGATIVES)  # [B, NEGATIVES]
        negatives = ops.sum(ops.cast(targets == 0, "float32"), axis=1)
        push = ops.sum(ops.square(nearest), axis=1) / ops.clip(negatives, 1.0, float(NEGATIVES))
        return pull + push


@dataclass(frozen=True)
class Triplet(Loss):
    """Positives are nearer than a negative by a margin; mean over the positives by weight.

    For rankings where only the order matters, not how far apart things are. It looks at one negative for each
    positive, and which one decides:

    - `semi_hard`: the nearest negative that is farther than the positive; if all are nearer, the farthest of them
      (FaceNet: Schroff, Kalenichenko and Philbin, 2015; TensorFlow Addons falls back alike). It does not
      collapse. Looks at the anchor's `POSITIVES` heaviest positives.
    - `hard`: the nearest negative of all. Fastest to learn fine differences, and may collapse everything into
      one point, where the loss is the margin and the gradient small.
    - `soft_margin`: the nearest one with log(1 + exp(positive - negative)): no margin to choose, and it never
      stops pulling (Hermans, Beyer and Leibe, 2017, "batch hard").

    An anchor without positives or without negatives loses nothing.

    Args:
        distance: its distance is `distances`. Not squared, as Hermans et al. advise; the cosine distance is half
            the square of FaceNet's.
        margin: in units of the distance; `soft_margin` has none.
        mining: which negative.
    """

    distance: Distance
    margin: float
    mining: Literal["semi_hard", "hard", "soft_margin"] = "semi_hard"

    def __call__(self, anchors: Any, candidates: Any, targets: Any, log_inclusion: Any, log_popularity: Any) -> Any:  # noqa: ARG002 - no probabilities to correct
        """See `Loss`."""
        apart = distances(self.distance, anchors, candidates)  # [B, C]
        negative = targets == 0
        if self.mining == "semi_hard":
            weights, positions = ops.top_k(_widened(targets, POSITIVES, -1.0), POSITIVES)  # [B, P]
            near = ops.take_along_axis(_widened(apart, POSITIVES, 0.0), positions, axis=1)
            far = _semi_hard(near, apart, negative)
        else:
            weights, near = targets, apart
            far = ops.min(ops.where(negative, apart, FAR), axis=1, keepdims=True)  # [B, 1]
        shares, _ = _shares(weights)
        usable = ops.logical_and(shares > 0, ops.any(negative, axis=1, keepdims=True))
        behind = ops.where(usable, near - far, 0.0)
        each = ops.softplus(behind) if self.mining == "soft_margin" else ops.maximum(behind + self.margin, 0.0)
        return ops.sum(ops.where(usable, shares * each, 0.0), axis=1)


def of(train: TrainConfig, tower: TowerConfig) -> Loss:
    """The loss of a config."""
    distance = DISTANCES[tower.distance]
    if train.loss == "cross_entropy":
        return CrossEntropy(distance, train.temperature)
    if train.loss == "contrastive":
        return Contrastive(distance, train.margin)
    return Triplet(distance, train.margin, train.mining)


def scores(distance: Distance, anchors: Any, candidates: Any) -> Any:
    """How near each candidate is, larger is nearer: [B, d] and [C, d] to [B, C].

    Cosine: the product of the unit vectors. Euclidean: -d²/2, which on unit vectors is the cosine minus 1, so that
    one temperature fits both. Manhattan: -d.
    """
    if distance.name == "cosine":
        return ops.matmul(anchors, ops.transpose(candidates))
    if distance.name == "euclidean":
        return -0.5 * _squares(anchors, candidates)
    return -_manhattan(ops.convert_to_tensor(anchors), ops.convert_to_tensor(candidates))


def distances(distance: Distance, anchors: Any, candidates: Any) -> Any:
    """How far each candidate is, at least 0: [B, d] and [C, d] to [B, C].

    Cosine: 1 - cos, in [0, 2]. Euclidean: d, its gradient 0 where nothing is between the two. Manhattan: d.
    """
    if distance.name == "cosine":
        return ops.maximum(1.0 - scores(distance, anchors, candidates), 0.0)
    if distance.name == "euclidean":
        squares = _squares(anchors, candidates)
        # the slope of the root is infinite at 0, and a masked infinity is NaN
        return ops.where(squares > 0, ops.sqrt(ops.where(squares > 0, squares, 1.0)), 0.0)
    return -scores(distance, anchors, candidates)


def _squares(anchors: Any, candidates: Any) -> Any:
    """Squared Euclidean distances, [B, C], by one product; 0 where rounding leaves nothing of them."""
    lengths = ops.sum(ops.square(anchors), axis=1)[:, None] + ops.sum(ops.square(candidates), axis=1)  # [B, C]
    squares = lengths - 2.0 * ops.matmul(anchors, ops.transpose(candidates))
    return ops.where(squares > ROUNDING * lengths, squares, 0.0)


@ops.custom_gradient  # type: ignore[untyped-decorator]
def _manhattan(anchors: Any, candidates: Any) -> Any:
    """Manhattan distances, [B, C], one dimension after the other, also in the gradient.

    XLA would hold all of [B, C, d] on a CPU, 1.6 GB for 256 anchors, 12,000 candidates and 128 dimensions.
    """
    one, other = ops.transpose(anchors), ops.transpose(candidates)  # [d, B], [d, C]
    dimension = anchors.shape[1]

    def add(axis: Any, total: Any) -> Any:
        return total + ops.abs(one[axis][:, None] - other[axis])

    def gradient(*arguments: Any, upstream: Any = None) -> tuple[Any, Any]:
        slope = arguments[0] if upstream is None else upstream  # Keras's backends differ here

        def step(axis: Any, slopes: tuple[Any, Any]) -> tuple[Any, Any]:
            signed = slope * ops.sign(one[axis][:, None] - other[axis])
            return (
                ops.slice_update(slopes[0], (axis, 0), ops.sum(signed, axis=1)[None]),
                ops.slice_update(slopes[1], (axis, 0), -ops.sum(signed, axis=0)[None]),
            )

        by_one, by_other = ops.fori_loop(0, dimension, step, (ops.zeros_like(one), ops.zeros_like(other)))
        return ops.transpose(by_one), ops.transpose(by_other)

    nothing = ops.zeros_like(one[0])[:, None] + ops.zeros_like(other[0])
    return ops.fori_loop(0, dimension, add, nothing), gradient


def _shares(weights: Any) -> tuple[Any, Any]:
    """Of the positive weights: each one's part of the row's sum, and whether the row has any; [B, n] and [B]."""
    positive = ops.maximum(weights, 0.0)
    total = ops.sum(positive, axis=1, keepdims=True)
    return positive / ops.where(total > 0, total, 1.0), total[:, 0] > 0


def _semi_hard(near: Any, apart: Any, negative: Any) -> Any:
    """Distance of the semi-hard negative for each positive: [B, P], [B, C] and [B, C] to [B, P]."""
    farther = ops.logical_and(negative[:, None, :], apart[:, None, :] > near[:, :, None])  # [B, P, C]
    nearest = ops.min(ops.where(farther, apart[:, None, :], FAR), axis=2)
    farthest = ops.max(ops.where(negative, apart, -FAR), axis=1, keepdims=True)
    return ops.where(nearest < FAR, nearest, farthest)


def _widened(rows: Any, columns: int, value: float) -> Any:
    """So many columns of one value behind, so that `top_k` finds enough also among few candidates."""
    return ops.pad(rows, ((0, 0), (0, columns)), constant_values=value)
