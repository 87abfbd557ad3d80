"""The candidates of a batch of anchors: all items, or the batch's positives and uniform negatives.

Hands on, for each step, one shape whatever the choice (`Batch`); `sampling` needs no Keras.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys.config import TrainConfig

IGNORE = -1.0
"""Target of a candidate that is neither positive nor negative for an anchor: the anchor itself."""


class Batch(NamedTuple):
    """B anchors against C candidates; every anchor is one of the candidates."""

    candidates: NDArray[np.int32]
    """Item numbers, int32 [C], each once."""
    anchors: NDArray[np.int32]
    """Positions of the anchors among the candidates, int32 [B]."""
    targets: NDArray[np.float32]
    """Pair weights, float32 [B, C]: > 0 positive, 0 negative, -1 ignore."""
    log_inclusion: NDArray[np.float32]
    """Log of the probability that the candidate takes part in the step, float32 [C]."""
    anchor_weights: NDArray[np.float32]
    """Weight of each anchor in the loss, float32 [B], mean 1 over all anchors."""


class Sampler:
    """Draws the batches of one pass after the other from a matrix of pairs.

    Args:
        pairs: symmetric pair weights, float32 [num_items, num_items]; anchors are the rows that have any.
        config: batch size, candidates, anchor power.
        rng: source of all randomness.
    """

    def __init__(self, pairs: sparse.csr_array, config: TrainConfig, rng: np.random.Generator) -> None:
        self.pairs = pairs
        self.config = config
        self.rng = rng
        self.num_items = pairs.shape[0]
        totals = np.asarray(pairs.sum(axis=1)).ravel()
        self.anchors = np.flatnonzero(totals).astype(np.int32)
        weights = totals**config.anchor_power
        self.anchor_weights = (weights / weights[self.anchors].mean()).astype(np.float32)
        self.batch_size = min(config.batch_size, len(self.anchors))
        self.num_candidates = self._num_candidates()

    def _num_candidates(self) -> int:
        """A fixed number, so that the training step is compiled once."""
        sampled = self.batch_size + self.config.max_positives + self.config.negatives
        whole = self.num_items <= max(self.config.whole_catalogue_up_to, sampled)
        return self.num_items if whole else sampled

    def __len__(self) -> int:
        """Batches a pass."""
        return math.ceil(len(self.anchors) / self.batch_size)

    def pass_order(self) -> NDArray[np.int32]:
        """The anchors of one pass in random order, the first ones again to fill the last batch."""
        return np.resize(self.rng.permutation(self.anchors), len(self) * self.batch_size)

    def batch(self, anchors: NDArray[np.int32]) -> Batch:
        """Candidates and targets of some anchors, int32 [B]."""
        rows = self.pairs[anchors]
        if self.num_candidates == self.num_items:
            candidates = np.arange(self.num_items, dtype=np.int32)
            log_inclusion = np.zeros(self.num_items, np.float32)
        else:
            candidates, log_inclusion = self._sample(anchors, rows)
        position = np.full(self.num_items, -1, np.int32)
        position[candidates] = np.arange(len(candidates), dtype=np.int32)

        targets = np.zeros((len(anchors), len(candidates)), np.float32)
        row = np.repeat(np.arange(len(anchors)), np.diff(rows.indptr))
        column = position[rows.indices]
        present = column >= 0
        targets[row[present], column[present]] = rows.data[present]
        targets[np.arange(len(anchors)), position[anchors]] = IGNORE
        return Batch(candidates, position[anchors], targets, log_inclusion, self.anchor_weights[anchors])

    def _sample(
        self, anchors: NDArray[np.int32], rows: sparse.csr_array
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Anchors and positives for certain, and uniform others up to the fixed number.

        Given the batch, an item of the first kind takes part with probability 1 and any other with
        m / (n - number of the first kind), so weighting each by the inverse keeps the softmax's
        denominator unbiased (Horvitz and Thompson, 1952). Where the positives are more than
        `max_positives`, a part of them is drawn by weight, and the rest is not among the others: a known
        positive never stands in as a negative.
        """
        weight = np.asarray(rows.sum(axis=0)).ravel()
        weight[anchors] = 0
        positives = np.flatnonzero(weight).astype(np.int32)
        others = np.ones(self.num_items, bool)
        others[anchors] = False
        others[positives] = False
        pool = np.flatnonzero(others).astype(np.int32)
        # more than `max_positives` where there are too few others to make up the fixed number
        room = max(self.config.max_positives, self.num_candidates - len(anchors) - len(pool))
        if len(positives) > room:
            share = weight[positives] / weight[positives].sum()
            positives = self.rng.choice(positives, room, replace=False, p=share)
        certain = np.concatenate([anchors, positives])
        drawn = self.rng.choice(pool, self.num_candidates - len(certain), replace=False)
        inclusion = np.log(max(len(drawn), 1) / max(len(pool), 1))
        log_inclusion = np.concatenate([np.zeros(len(certain)), np.full(len(drawn), inclusion)])
        return np.concatenate([certain, drawn]).astype(np.int32), log_inclusion.astype(np.float32)
