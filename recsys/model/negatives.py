"""The candidates of a batch of anchors, and which of them are positives.

Hands on, for each step, one shape whatever the choice (`Batch`); `sampling` needs no Keras.

- `catalog`: every item is a candidate. Nothing to correct.
- `sampled`: the batch's positives, and negatives drawn by popularity to a power.
- `in_batch`: one drawn positive an anchor; the others' positives are the negatives, popular ones more often.
- `mixed`: the same, and drawn negatives: in-batch candidates alone leave the tail out (Yang et al., 2020).

A known positive of an anchor never stands in as its negative, nor does what is nobody's positive. What was drawn is
corrected by the log of its inclusion probability.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys.config.sections import CandidatesConfig
from recsys.data.pairs import Pairs
from recsys.errors import StageError

IGNORE = -1.0
"""Target of a candidate that is neither positive nor negative for an anchor, as the anchor itself."""


class Anchors(NamedTuple):
    """What is to be near its positives: B items, or B histories of several weighted items each."""

    items: NDArray[np.int32]
    """Item numbers, int32 [B, L]; -1 pads at the end."""
    shares: NDArray[np.float32]
    """Weights of the items, float32 [B, L]; 0 where padded."""
    positives: sparse.csr_array
    """Weights of the positives, float32 [B, num_items]; at least one a row."""
    weights: NDArray[np.float32]
    """Of each anchor in the loss, float32 [B], mean 1 over all anchors."""


class Batch(NamedTuple):
    """B anchors against C candidates; all items of the anchors are among the candidates."""

    candidates: NDArray[np.int32]
    """Item numbers, int32 [C]."""
    anchors: NDArray[np.int32]
    """Positions of the anchors' items among the candidates, int32 [B, L]; 0 where padded."""
    shares: NDArray[np.float32]
    """Weights of those items, float32 [B, L]; 0 where padded."""
    targets: NDArray[np.float32]
    """Weights, float32 [B, C]: > 0 positive, 0 negative, -1 ignore."""
    log_inclusion: NDArray[np.float32]
    """Log of the probability that the candidate takes part in the step, float32 [C]."""
    log_popularity: NDArray[np.float32]
    """Log of the candidate's popularity times `popularity_correction`, float32 [C]."""
    anchor_weights: NDArray[np.float32]
    """Weight of each anchor in the loss, float32 [B]."""


class Drawn(NamedTuple):
    """Candidates of a step."""

    items: NDArray[np.int32]
    """Item numbers, int32 [C]."""
    log_inclusion: NDArray[np.float32]
    """Float32 [C]."""


class Sampler:
    """Draws the candidates of batches of anchors.

    Args:
        pairs: how often items are anchors and positives.
        config: what the positives are told apart from.
        batch_size: anchors of a batch.
        width: items of an anchor at most.
        rng: source of all randomness.

    Raises:
        StageError: there is not one pair.
    """

    def __init__(
        self, pairs: Pairs, config: CandidatesConfig, batch_size: int, width: int, rng: np.random.Generator
    ) -> None:
        as_anchor, self.popularity, self.share = pairs.totals
        if not as_anchor.any():
            raise StageError(
                "training needs at least one pair of items that one user touched. "
                "Received: none. Give more interactions, or a wider prepare.window."
            )
        self.num_items = pairs.num_items
        self.config = config
        self.batch_size = batch_size
        self.width = width
        self.rng = rng
        self.is_anchor = as_anchor > 0
        rarest = self.popularity[self.popularity > 0].min()
        seen = np.maximum(self.popularity, rarest)  # what was never seen counts as the rarest
        self.log_popularity = (config.popularity_correction * np.log(seen / self.popularity.sum())).astype(np.float32)
        """λ log p, where p is an item's share of all positives, float32 [num_items]."""
        self.draw_size = seen**config.popularity_power
        """What the probability to be drawn is in proportion to, float64 [num_items]."""
        self.hard = np.empty((pairs.num_items, 0), np.int32)
        """Hard negatives of each item, int32 [num_items, n], -1 pads; `recsys.model.hard_negatives` finds them."""
        self.kind, self.num_candidates = self._shape()

    def _shape(self) -> tuple[str, int]:
        """The kind of candidates, and their fixed number, so that the training step is compiled once."""
        config, items = self.config, self.batch_size * self.width
        hard = items * config.hard_negatives
        wanted = {
            "sampled": items + config.max_positives + config.negatives + hard,
            "in_batch": items + self.batch_size + hard,
            "mixed": items + self.batch_size + config.negatives + hard,
        }
        kind: str = config.kind
        if kind == "auto":
            small = self.num_items <= max(config.whole_catalog_up_to, wanted["sampled"])
            kind = "catalog" if small and not config.hard_negatives else "sampled"
        if kind == "catalog" or (kind != "in_batch" and wanted[kind] >= self.num_items):
            return "catalog", self.num_items
        return kind, wanted[kind]

    def batch(self, anchors: Anchors) -> Batch:
        """Candidates and targets of some anchors."""
        there = anchors.items >= 0
        own = np.unique(anchors.items[there])
        chosen = None
        if self.kind == "catalog":
            drawn = Drawn(np.arange(self.num_items, dtype=np.int32), np.zeros(self.num_items, np.float32))
        elif self.kind == "sampled":
            drawn = self._sampled(own, anchors.positives)
        else:
            chosen = self._one_positive(anchors.positives)
            drawn = self._in_batch(own, chosen)

        place = np.arange(len(drawn.items))
        position = np.full(self.num_items, -1, np.int64)
        position[drawn.items[::-1]] = place[::-1]  # of an item that stands there twice, the first
        number = len(anchors.items)
        targets = np.zeros((number, len(drawn.items)), np.float32)
        # that an item was not touched yet is no evidence against it, and would push away all that looks like it: as
        # negatives, new items lose 8% of their NDCG@20 on Toys
        targets[:, self.popularity[drawn.items] == 0] = IGNORE
        targets[:, position[drawn.items] != place] = IGNORE  # fills up to the fixed number
        row = np.repeat(np.arange(number), np.diff(anchors.positives.indptr))
        column = position[anchors.positives.indices]
        present = column >= 0
        if chosen is None:
            targets[row[present], column[present]] = anchors.positives.data[present]
        else:
            targets[row[present], column[present]] = IGNORE
            targets[np.arange(number), position[chosen]] = 1
        targets[np.nonzero(there)[0], position[anchors.items[there]]] = IGNORE
        return Batch(
            drawn.items,
            np.where(there, position[anchors.items], 0).astype(np.int32),
            anchors.shares,
            targets,
            drawn.log_inclusion,
            self.log_popularity[drawn.items],
            anchors.weights,
        )

    def _sampled(self, anchors: NDArray[np.int32], rows: sparse.csr_array) -> Drawn:
        """Anchors, positives and hard negatives for certain, and drawn others up to the fixed number.

        Given the batch, an item of the first kind takes part with probability 1, so weighting each by the
        inverse of its inclusion probability keeps the softmax's denominator unbiased (Horvitz and Thompson,
        1952). Where the positives are more than `max_positives`, a part of them is drawn by weight, and the rest
        is not among the others: a known positive never stands in as a negative.
        """
        weight = np.asarray(rows.sum(axis=0, dtype=np.float64)).ravel()
        weight[anchors] = 0
        positives = np.flatnonzero(weight).astype(np.int32)
        others = np.ones(self.num_items, bool)
        others[anchors] = False
        others[positives] = False
        hard = self._hard(anchors)
        hard = hard[others[hard]]
        others[hard] = False
        pool = np.flatnonzero(others).astype(np.int32)
        # more than `max_positives` where there are too few others to make up the fixed number
        room = max(self.config.max_positives, self.num_candidates - len(anchors) - len(hard) - len(pool))
        if len(positives) > room:
            share = weight[positives] / weight[positives].sum()
            positives = self.rng.choice(positives, room, replace=False, p=share)
        certain = np.concatenate([anchors, positives, hard])
        drawn, log_inclusion = self._draw(pool, self.num_candidates - len(certain))
        return Drawn(
            np.concatenate([certain, drawn]).astype(np.int32),
            np.concatenate([np.zeros(len(certain)), log_inclusion]).astype(np.float32),
        )

    def _one_positive(self, rows: sparse.csr_array) -> NDArray[np.int32]:
        """One positive of each row, drawn by weight, int32 [B]."""
        data = rows.data.astype(np.float64)
        sums = np.add.reduceat(data, rows.indptr[:-1])
        running = np.cumsum(data / np.repeat(sums, np.diff(rows.indptr)))  # row r ends at r + 1
        wanted = np.arange(len(sums)) + self.rng.random(len(sums))
        place = np.searchsorted(running, wanted, side="right")
        chosen: NDArray[np.int32] = rows.indices[np.clip(place, rows.indptr[:-1], rows.indptr[1:] - 1)]
        return chosen.astype(np.int32)

    def _in_batch(self, anchors: NDArray[np.int32], chosen: NDArray[np.int32]) -> Drawn:
        """The anchors and their drawn positives, hard negatives, for `mixed` drawn others.

        An item is in the batch as one of B anchors out of all, or as the drawn positive of one:
        1 - (1 - B / anchors) (1 - its mean share of an anchor's weight) ** B (sampled softmax with log Q;
        Yi et al., 2019). A hard negative was not drawn: it takes part for certain. What has no pair, and stands in
        a history all the same, counts as the rarest.
        """
        hard = self._hard(anchors)
        inside = np.unique(np.concatenate([anchors, chosen, hard]))
        as_anchor = np.where(self.is_anchor, min(len(anchors) / self.is_anchor.sum(), 1 - 1e-9), 0.0)
        outside = (1 - as_anchor) * (1 - np.minimum(self.share, 1 - 1e-9)) ** len(chosen)
        rarest = 1 - outside[outside < 1].max()
        items, log_inclusion = inside, np.log(np.maximum(1 - outside[inside], rarest))
        if self.kind == "mixed":
            others = np.ones(self.num_items, bool)
            others[inside] = False
            pool = np.flatnonzero(others).astype(np.int32)
            drawn, log_drawn = self._draw(pool, self.num_candidates - len(inside))
            # either way into the step counts: those inside would have been drawn as those are that were
            rate = np.exp(log_drawn)
            per_size = (rate / self.draw_size[drawn]).max()  # less for what is drawn for certain
            rate_inside = np.minimum(per_size * self.draw_size[inside], 1)
            log_inclusion = np.log(1 - outside[inside] * (1 - rate_inside))
            log_drawn = np.log(1 - outside[drawn] * (1 - rate))
            items, log_inclusion = np.concatenate([inside, drawn]), np.concatenate([log_inclusion, log_drawn])
        log_inclusion[np.searchsorted(inside, hard)] = 0
        fill = self.num_candidates - len(items)
        return Drawn(
            np.concatenate([items, np.repeat(items[:1], fill)]).astype(np.int32),
            np.concatenate([log_inclusion, np.zeros(fill)]).astype(np.float32),
        )

    def _hard(self, anchors: NDArray[np.int32]) -> NDArray[np.int32]:
        """Some hard negatives of each anchor, different ones, int32."""
        wanted = self.config.hard_negatives
        if not wanted or not self.hard.shape[1]:
            return np.empty(0, np.int32)
        there = (self.hard[anchors] >= 0).sum(axis=1)  # padding stands at the end
        column = (self.rng.random((len(anchors), wanted)) * there[:, None]).astype(np.int64)
        found = np.unique(self.hard[anchors[:, None], column])
        return found[found >= 0]

    def _draw(self, pool: NDArray[np.int32], number: int) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """`number` different items of the pool, and the log of each one's inclusion probability.

        Systematic sampling in random order (Madow, 1949): an item is drawn with exactly the probability that is
        asked for, in proportion to popularity to the power of `popularity_power`, at most 1.
        """
        if number >= len(pool):
            return pool, np.zeros(len(pool))
        if not self.config.popularity_power:
            return self.rng.choice(pool, number, replace=False), np.full(number, math.log(number / len(pool)))
        inclusion = _inclusion(self.draw_size[pool], number)
        order = self.rng.permutation(len(pool))
        running = np.cumsum(inclusion[order])
        running *= number / running[-1]  # rounding must not lose the last one
        ticks = np.arange(number) + self.rng.random()
        drawn = order[np.minimum(np.searchsorted(running, ticks), len(pool) - 1)]
        return pool[drawn], np.log(inclusion[drawn])


def _inclusion(size: NDArray[np.float64], number: int) -> NDArray[np.float64]:
    """Inclusion probabilities in proportion to size, at most 1, that sum to `number`; float64 [len(size)]."""
    certain = np.zeros(len(size), bool)
    while True:
        share = (number - certain.sum()) * size / size[~certain].sum()
        over = ~certain & (share > 1)
        if not over.any():
            return np.where(certain, 1.0, share)
        certain |= over
