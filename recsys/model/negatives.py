"""The candidates of a training batch: which items are compared with the anchors, and which of them are positives.

Kinds of candidates (`candidates.kind`):

- `catalog`: all items; nothing to correct.
- `sampled`: the positives of the batch, and negatives drawn in proportion to a power of popularity.
- `in_batch`: one drawn positive per anchor; those of the other anchors are the negatives. Popular items are drawn more
  often.
- `mixed`: in-batch candidates and drawn negatives, because in-batch candidates rarely include items of the tail
  (Yang et al., 2020).

A known positive of an anchor is never its negative, and an item that is nobody's positive is no negative at all. The
loss corrects drawn candidates by the log of their inclusion probability.
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
"""Target of a candidate that is neither a positive nor a negative of an anchor, such as the anchor itself."""

SMALL_CATALOG = 5_000
"""Number of items up to which `auto` compares anchors with the whole catalog; see
`docs/decisions/0021-sampled-candidates.md`."""


class Anchors(NamedTuple):
    """B anchors: each is an item, or a history of several weighted items."""

    items: NDArray[np.int32]
    """Item numbers, int32 [B, L]; -1 pads at the end."""
    shares: NDArray[np.float32]
    """Weights of the items of an anchor, float32 [B, L]; 0 where padded."""
    positives: sparse.csr_array
    """Weights of the positives, float32 [B, num_items]; at least one per row."""
    weights: NDArray[np.float32]
    """Weight of each anchor in the loss, float32 [B]; the mean over all anchors is 1."""


class Batch(NamedTuple):
    """B anchors and C candidates; all items of the anchors are among the candidates."""

    candidates: NDArray[np.int32]
    """Item numbers, int32 [C]."""
    anchors: NDArray[np.int32]
    """Positions of the anchors' items among the candidates, int32 [B, L]; 0 where padded."""
    shares: NDArray[np.float32]
    """Weights of the items of an anchor, float32 [B, L]; 0 where padded."""
    targets: NDArray[np.float32]
    """Float32 [B, C]: > 0 is the weight of a positive, 0 a negative, -1 is ignored."""
    log_inclusion: NDArray[np.float32]
    """Log of the probability that the candidate is part of the batch, float32 [C]."""
    log_popularity: NDArray[np.float32]
    """Log of the candidate's popularity times `candidates.popularity_correction`, float32 [C]."""
    anchor_weights: NDArray[np.float32]
    """Weight of each anchor in the loss, float32 [B]; the mean over all anchors is 1."""


class Candidates(NamedTuple):
    """The candidates of a batch."""

    items: NDArray[np.int32]
    """Item numbers, int32 [C]; copies at the end fill up to the fixed number."""
    log_inclusion: NDArray[np.float32]
    """Log of the probability that the candidate is part of the batch, float32 [C]."""


class Sampler:
    """Draws the candidates of batches of anchors.

    Args:
        pairs: how often items are anchors and positives.
        config: how candidates are drawn.
        batch_size: anchors per batch.
        width: maximum number of items per anchor.
        rng: source of all randomness.

    Raises:
        StageError: there are no pairs.
    """

    def __init__(
        self, pairs: Pairs, config: CandidatesConfig, batch_size: int, width: int, rng: np.random.Generator
    ) -> None:
        anchor_totals, self.popularity, self.mean_share = pairs.totals
        if not anchor_totals.any():
            raise StageError(
                "training needs at least one pair of items with interactions by the same user. "
                "Received: none. Provide more interactions, or increase prepare.window."
            )
        self.num_items = pairs.num_items
        self.config = config
        self.batch_size = batch_size
        self.width = width
        self.rng = rng
        self.is_anchor = anchor_totals > 0
        self.num_anchors = np.count_nonzero(self.is_anchor)
        # items without popularity count like the rarest item
        popularity = np.maximum(self.popularity, self.popularity[self.popularity > 0].min())
        correction = config.popularity_correction
        self.log_popularity = (correction * np.log(popularity / self.popularity.sum())).astype(np.float32)
        """λ log p, where p is an item's share of all positives, float32 [num_items]."""
        self.draw_weights = popularity**config.popularity_power
        """Negatives are drawn in proportion to these, float64 [num_items]."""
        self.hard_negatives = np.empty((pairs.num_items, 0), np.int32)
        """Hard negatives of each item, int32 [num_items, n], -1 pads; see `recsys.model.hard_negatives`."""
        self.no_column = np.full(pairs.num_items, -1, np.int64)
        """Buffer for the column of each item: a batch must not take longer in a larger catalog."""
        self.not_positive = (1 - np.minimum(self.mean_share, 1 - 1e-9)) ** batch_size
        """Probability that an item is no drawn positive of a batch, float64 [num_items]."""
        drawn = self.not_positive < 1
        self.rarest_anchor = self.not_positive[self.is_anchor].max()
        self.rarest_other = self.not_positive[drawn & ~self.is_anchor].max(initial=0.0)
        self.kind, self.num_candidates = self._choose_kind()

    def _choose_kind(self) -> tuple[str, int]:
        """Return the kind of candidates, and their number, which is the same in all batches."""
        config = self.config
        num_anchor_items = self.batch_size * self.width
        num_hard = num_anchor_items * config.hard_negatives
        sizes = {
            "sampled": num_anchor_items + config.max_positives + config.negatives + num_hard,
            "in_batch": num_anchor_items + self.batch_size + num_hard,
            "mixed": num_anchor_items + self.batch_size + config.negatives + num_hard,
        }
        kind: str = config.kind
        if kind == "auto":
            is_small = self.num_items <= max(SMALL_CATALOG, sizes["sampled"])
            kind = "catalog" if is_small and not config.hard_negatives else "sampled"
        if kind == "catalog" or (kind != "in_batch" and sizes[kind] >= self.num_items):
            return "catalog", self.num_items
        return kind, sizes[kind]

    def batch(self, anchors: Anchors) -> Batch:
        """Draw candidates for some anchors, and set the targets."""
        is_item = anchors.items >= 0
        anchor_items = np.unique(anchors.items[is_item])
        drawn_positives = None
        if self.kind == "catalog":
            candidates = Candidates(np.arange(self.num_items, dtype=np.int32), np.zeros(self.num_items, np.float32))
        elif self.kind == "sampled":
            candidates = self._sampled(anchor_items, anchors.positives)
        else:
            drawn_positives = self._draw_positives(anchors.positives)
            candidates = self._in_batch(anchor_items, drawn_positives)
        # first position of each item among the candidates, -1 if it is none
        column = self.no_column
        column[candidates.items[::-1]] = np.arange(len(candidates.items))[::-1]  # the last assignment remains
        batch = Batch(
            candidates.items,
            np.where(is_item, column[anchors.items], 0).astype(np.int32),
            anchors.shares,
            self._targets(anchors, candidates.items, column, drawn_positives),
            candidates.log_inclusion,
            self.log_popularity[candidates.items],
            anchors.weights,
        )
        column[candidates.items] = -1
        return batch

    def _targets(
        self,
        anchors: Anchors,
        candidates: NDArray[np.int32],
        column: NDArray[np.int64],
        drawn_positives: NDArray[np.int32] | None,
    ) -> NDArray[np.float32]:
        """Targets of the anchors, float32 [B, C]; `column` is the position of each item among the candidates, or -1."""
        num_anchors = len(anchors.items)
        targets = np.zeros((num_anchors, len(candidates)), np.float32)
        # missing interactions of a new item are no evidence against it: as negatives, they would repel all items with
        # similar features, and new items lose 8% of their NDCG@20 on Toys
        targets[:, self.popularity[candidates] == 0] = IGNORE
        targets[:, column[candidates] != np.arange(len(candidates))] = IGNORE  # copies
        row = np.repeat(np.arange(num_anchors), np.diff(anchors.positives.indptr))
        positive_columns = column[anchors.positives.indices]
        is_candidate = positive_columns >= 0
        row, positive_columns = row[is_candidate], positive_columns[is_candidate]
        if drawn_positives is None:
            targets[row, positive_columns] = anchors.positives.data[is_candidate]
        else:
            targets[row, positive_columns] = IGNORE
            targets[np.arange(num_anchors), column[drawn_positives]] = 1
        is_item = anchors.items >= 0
        targets[np.nonzero(is_item)[0], column[anchors.items[is_item]]] = IGNORE
        return targets

    def _sampled(self, anchors: NDArray[np.int32], rows: sparse.csr_array) -> Candidates:
        """Return anchors, positives and hard negatives, and drawn negatives up to the fixed number.

        Given the batch, items of the first three kinds are candidates with probability 1. Weighting each candidate by
        the inverse of its inclusion probability keeps the denominator of the softmax unbiased (Horvitz and Thompson,
        1952). If there are more than `max_positives` positives, some of them are drawn by weight; the others are not
        drawn as negatives either, because a known positive must never be a negative.
        """
        positives, entry = np.unique(rows.indices, return_inverse=True)
        weights = np.bincount(entry, rows.data)
        is_positive = (weights > 0) & ~np.isin(positives, anchors)
        positives, weights = positives[is_positive], weights[is_positive]
        known = np.union1d(anchors, positives)
        hard = np.setdiff1d(self._draw_hard_negatives(anchors), known)
        known = np.union1d(known, hard)
        # exceeds `max_positives` if there are too few negatives to reach the fixed number
        num_negatives = self.num_items - len(known)
        room = max(self.config.max_positives, self.num_candidates - len(anchors) - len(hard) - num_negatives)
        if len(positives) > room:
            positives = self.rng.choice(positives, room, replace=False, p=weights / weights.sum())
        certain = np.concatenate([anchors, positives, hard])
        drawn, log_inclusion = self._draw(known, self.num_candidates - len(certain))
        return Candidates(
            np.concatenate([certain, drawn]).astype(np.int32),
            np.concatenate([np.zeros(len(certain)), log_inclusion]).astype(np.float32),
        )

    def _draw_positives(self, rows: sparse.csr_array) -> NDArray[np.int32]:
        """Draw one positive of each row by weight; item numbers, int32 [B]."""
        data = rows.data.astype(np.float64)
        sums = np.add.reduceat(data, rows.indptr[:-1])
        cumulative = np.cumsum(data / np.repeat(sums, np.diff(rows.indptr)))  # row r ends at r + 1
        points = np.arange(len(sums)) + self.rng.random(len(sums))
        entries = np.searchsorted(cumulative, points, side="right")
        positives: NDArray[np.int32] = rows.indices[np.clip(entries, rows.indptr[:-1], rows.indptr[1:] - 1)]
        return positives.astype(np.int32)

    def _in_batch(self, anchors: NDArray[np.int32], drawn_positives: NDArray[np.int32]) -> Candidates:
        """Return anchors, their drawn positives and hard negatives, and for `mixed` also drawn negatives.

        An item is in the batch as one of B anchors, or as the drawn positive of an anchor, with probability
        1 - (1 - B / anchors) (1 - mean share of an anchor's weight) ** B (sampled softmax with log Q correction; Yi et
        al., 2019). Hard negatives have probability 1, because they are not drawn. Items without pairs, which may be
        part of a history, have the probability of the rarest item.
        """
        hard = self._draw_hard_negatives(anchors)
        inside = np.unique(np.concatenate([anchors, drawn_positives, hard]))
        as_anchor = min(len(anchors) / self.num_anchors, 1 - 1e-9)

        def outside(items: NDArray[np.int32]) -> NDArray[np.float64]:
            probability: NDArray[np.float64] = self.not_positive[items]
            return np.where(self.is_anchor[items], (1 - as_anchor) * probability, probability)

        rarest = 1 - max((1 - as_anchor) * self.rarest_anchor, self.rarest_other)
        items, log_inclusion = inside, np.log(np.maximum(1 - outside(inside), rarest))
        if self.kind == "mixed":
            drawn, log_drawn = self._draw(inside, self.num_candidates - len(inside))
            # both ways into the batch count, so items inside get the probability with which they would be drawn
            rate = np.exp(log_drawn)
            rate_per_weight = (rate / self.draw_weights[drawn]).max()  # smaller for items drawn with probability 1
            rate_inside = np.minimum(rate_per_weight * self.draw_weights[inside], 1)
            log_inclusion = np.log(1 - outside(inside) * (1 - rate_inside))
            log_drawn = np.log(1 - outside(drawn) * (1 - rate))
            items, log_inclusion = np.concatenate([inside, drawn]), np.concatenate([log_inclusion, log_drawn])
        log_inclusion[np.searchsorted(inside, hard)] = 0
        num_copies = self.num_candidates - len(items)
        return Candidates(
            np.concatenate([items, np.repeat(items[:1], num_copies)]).astype(np.int32),
            np.concatenate([log_inclusion, np.zeros(num_copies)]).astype(np.float32),
        )

    def _draw_hard_negatives(self, anchors: NDArray[np.int32]) -> NDArray[np.int32]:
        """Draw hard negatives of each anchor; distinct item numbers, int32 [n]."""
        per_anchor = self.config.hard_negatives
        if not per_anchor or not self.hard_negatives.shape[1]:
            return np.empty(0, np.int32)
        available = (self.hard_negatives[anchors] >= 0).sum(axis=1)  # padding is at the end
        column = (self.rng.random((len(anchors), per_anchor)) * available[:, None]).astype(np.int64)
        negatives = np.unique(self.hard_negatives[anchors[:, None], column])
        return negatives[negatives >= 0]

    def _draw(self, known: NDArray[np.int32], number: int) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Draw distinct items that are not known; return them, and the log of their inclusion probabilities.

        Systematic sampling in random order (Madow, 1949): the inclusion probability of an item is exactly in proportion
        to popularity to the power of `popularity_power`, and at most 1.

        Args:
            known: item numbers, ascending and distinct, int32 [n].
            number: of items to draw; all others are returned if there are fewer.
        """
        size = self.num_items - len(known)
        if number >= size:
            return np.setdiff1d(np.arange(self.num_items, dtype=np.int32), known), np.zeros(size)
        if not self.config.popularity_power:
            rank = self.rng.choice(size, number, replace=False)
            # each known item below an item adds 1 to its number
            drawn = rank + np.searchsorted(known - np.arange(len(known)), rank, side="right")
            return drawn.astype(np.int32), np.full(number, math.log(number / size))
        pool = np.setdiff1d(np.arange(self.num_items, dtype=np.int32), known)
        inclusion = _inclusion_probabilities(self.draw_weights[pool], number)
        order = self.rng.permutation(size)
        cumulative = np.cumsum(inclusion[order])
        cumulative *= number / cumulative[-1]  # rounding must not lose the last item
        points = np.arange(number) + self.rng.random()
        drawn = order[np.minimum(np.searchsorted(cumulative, points), size - 1)]
        return pool[drawn], np.log(inclusion[drawn])


def _inclusion_probabilities(weights: NDArray[np.float64], number: int) -> NDArray[np.float64]:
    """Probabilities in proportion to the weights, at most 1, with sum `number`; float64 [len(weights)]."""
    is_certain = np.zeros(len(weights), bool)
    while True:
        share = (number - is_certain.sum()) * weights / weights[~is_certain].sum()
        exceeds = ~is_certain & (share > 1)
        if not exceeds.any():
            return np.where(is_certain, 1.0, share)
        is_certain |= exceeds
