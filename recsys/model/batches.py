"""What training draws its steps from: pairs, users' histories, or pairs that people judged.

Each gives passes of batches of one shape, so that the training step is compiled once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys.config.sections import Config
from recsys.data.labeled_pairs import LabeledPairs
from recsys.data.pairs import Block, Pairs, concatenate
from recsys.data.splits import Split, Target
from recsys.errors import StageError
from recsys.evaluation.protocol import PROTOCOL
from recsys.model.negatives import IGNORE, Anchors, Batch, Sampler


class PairBatches:
    """Batches of items against what they were touched together with, streamed from disk.

    Args:
        pairs: positives of each anchor.
        config: `train` and `candidates`.

    Raises:
        StageError: there is not one pair.
    """

    def __init__(self, pairs: Pairs, config: Config) -> None:
        self.rng = np.random.default_rng(config.train.seed)
        self.pairs = pairs
        self.shuffle_pairs = config.train.shuffle_pairs
        totals, _, _ = pairs.totals
        self.num_anchors = int((totals > 0).sum())
        self.batch_size = max(1, min(config.train.batch_size, self.num_anchors))
        self.sampler = Sampler(pairs, config.candidates, self.batch_size, 1, self.rng)
        weights = totals**config.train.anchor_power
        self.anchor_weights = (weights / weights[totals > 0].mean()).astype(np.float32)

    def __len__(self) -> int:
        """Batches a pass."""
        return math.ceil(self.num_anchors / self.batch_size)

    def one_pass(self) -> Iterator[Batch]:
        """All anchors in random order; the last batch is filled up with some that had their turn."""
        held: list[Block] = []
        number = 0
        first: Block | None = None
        for block in self.pairs.shuffled(self.rng, self.shuffle_pairs):
            first = first or block.take(np.arange(min(self.batch_size, len(block.anchors))))
            held.append(block)
            number += len(block.anchors)
            if number >= self.batch_size:
                whole = concatenate(held)
                full = number - number % self.batch_size
                for start in range(0, full, self.batch_size):
                    yield self._batch(whole.take(np.arange(start, start + self.batch_size)))
                held, number = [whole.take(np.arange(full, number))], number - full
        if number and first is not None:
            filler = concatenate([*held, first])
            yield self._batch(filler.take(np.resize(np.arange(len(filler.anchors)), self.batch_size)))

    def _batch(self, block: Block) -> Batch:
        items = block.anchors[:, None]
        anchors = Anchors(items, np.ones(items.shape, np.float32), block.rows, self.anchor_weights[block.anchors])
        return self.sampler.batch(anchors)


class HistoryBatches:
    """Batches of users' histories against what came next.

    The anchor is the recency-weighted mean of the newest items before a moment, as a look-up from a history
    makes it; the positives are the items of the `window` after it, weighted by `decay` as pairs are. What the
    history holds is neither: where nothing else follows, the moment has no positive that counts.

    Args:
        split: users' items.
        target: only what is known before it is used.
        pairs: popularity of the items.
        config: `train`, `prepare`, and `candidates`.
        recency: weight of a step back, in (0, 1].
    """

    LEAST = 0.01
    """An item of a history that weighs less than this is left out: time and memory."""

    SAMPLED = 1_024
    """Positives of a batch at most, and negatives, where the candidates are left to us. A history has few
    positives, and there are many of them: on Toys that takes half the time of the whole catalog and finds as
    much."""

    def __init__(self, split: Split, target: Target, pairs: Pairs, config: Config, recency: float) -> None:
        self.rng = np.random.default_rng(config.train.seed)
        sequences, known = split.sequences, split.known_before(target)
        self.items = sequences.items
        self.starts = np.repeat(sequences.offsets[:-1], sequences.lengths)
        # the first position of the user that is not known; known ones come first
        ends = sequences.offsets[:-1] + np.bincount(sequences.users[known], minlength=len(sequences))
        self.ends = np.repeat(ends, sequences.lengths)
        position = np.arange(len(self.items))
        self.moments = position[(position > self.starts) & (position < self.ends)]
        self.batch_size = max(1, min(config.train.batch_size, len(self.moments)))
        self.recency = recency
        width = PROTOCOL.history_items
        if recency < 1:
            width = min(width, math.ceil(math.log(self.LEAST) / math.log(recency)))
        self.window, self.decay = config.prepare.window, config.prepare.decay
        candidates = config.candidates
        if candidates.kind == "auto":
            sampled = {"kind": "sampled", "max_positives": self.SAMPLED, "negatives": self.SAMPLED}
            candidates = candidates.model_copy(update=sampled)
        self.sampler = Sampler(pairs, candidates, self.batch_size, width, self.rng)

    def __len__(self) -> int:
        """Batches a pass; what does not fill one is left out."""
        return len(self.moments) // self.batch_size

    def one_pass(self) -> Iterator[Batch]:
        """All moments in random order."""
        order = self.rng.permutation(self.moments)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield self._batch(order[start : start + self.batch_size])

    def _batch(self, moments: NDArray[np.int64]) -> Batch:
        step = np.arange(self.sampler.width)
        back = moments[:, None] - 1 - step
        before = back >= self.starts[moments][:, None]
        items = np.where(before, self.items[np.maximum(back, 0)], -1).astype(np.int32)
        shares = np.where(before, self.recency**step, 0).astype(np.float32)
        ahead = moments[:, None] + np.arange(self.window)
        after = ahead < self.ends[moments][:, None]
        following = self.items[np.minimum(ahead, len(self.items) - 1)]
        new = after & ~(following[:, :, None] == items[:, None, :]).any(axis=2)
        after = np.where(new.any(axis=1, keepdims=True), new, after)  # every row keeps at least one
        row, step = np.nonzero(after)
        positives = sparse.coo_array(
            ((step + 1.0) ** -self.decay, (row, following[after])),
            shape=(len(moments), self.sampler.num_items),
            dtype=np.float32,
        ).tocsr()
        positives.sum_duplicates()
        anchors = Anchors(items, shares, positives, np.ones(len(moments), np.float32))
        return self.sampler.batch(anchors)


class LabeledBatches:
    """Batches of items against what they were judged with; all else is ignored.

    An anchor is given at most `PARTNERS` that are the same and as many that are not, so a heap of easy "not the
    same" does not drown the rest. What was judged both ways counts as the same.

    Args:
        labeled: judged pairs, used in both directions.
        num_items: size of the catalog.
        config: `train`.

    Raises:
        StageError: no pair is the same.
    """

    PARTNERS = 8

    def __init__(self, labeled: LabeledPairs, num_items: int, config: Config) -> None:
        if not labeled.same.any():
            raise StageError(
                "training needs at least one labeled pair that is the same. Received: none. "
                "Give more rows with same = 1."
            )
        self.rng = np.random.default_rng(config.train.seed)
        self.num_items = num_items
        self.same = _judged(labeled, labeled.same, num_items)
        other = _judged(labeled, ~labeled.same, num_items)
        self.other = sparse.csr_array(other > self.same).astype(np.float32)
        self.anchors = np.flatnonzero(np.diff(self.same.indptr)).astype(np.int32)
        self.batch_size = max(1, min(config.train.batch_size, len(self.anchors)))
        self.num_candidates = min(num_items, self.batch_size * (1 + 2 * self.PARTNERS))

    def __len__(self) -> int:
        """Batches a pass."""
        return math.ceil(len(self.anchors) / self.batch_size)

    def one_pass(self) -> Iterator[Batch]:
        """All anchors in random order, the first ones again to fill the last batch."""
        order = np.resize(self.rng.permutation(self.anchors), len(self) * self.batch_size)
        for start in range(0, len(order), self.batch_size):
            yield self._batch(order[start : start + self.batch_size])

    def _batch(self, anchors: NDArray[np.int32]) -> Batch:
        row, partner, target = [], [], []
        for matrix, value in ((self.other, 0.0), (self.same, 1.0)):
            chosen = self._some(matrix[anchors])
            row.append(chosen[0])
            partner.append(chosen[1])
            target.append(np.full(len(chosen[0]), value, np.float32))
        used = np.unique(np.concatenate([anchors, *partner])).astype(np.int32)
        candidates = np.concatenate([used, np.repeat(used[:1], self.num_candidates - len(used))])
        position = np.zeros(self.num_items, np.int32)
        position[used] = np.arange(len(used))
        targets = np.full((len(anchors), len(candidates)), IGNORE, np.float32)
        targets[np.concatenate(row), position[np.concatenate(partner)]] = np.concatenate(target)
        nothing = np.zeros(len(candidates), np.float32)
        ones = np.ones((len(anchors), 1), np.float32)
        return Batch(candidates, position[anchors][:, None], ones, targets, nothing, nothing, ones[:, 0])

    def _some(self, rows: sparse.csr_array) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Row and column of at most `PARTNERS` entries of each row, at random."""
        row = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
        order = np.lexsort((self.rng.random(len(row)), row))
        rank = np.arange(len(row)) - np.searchsorted(row, row)
        kept = order[rank < self.PARTNERS]
        return row[kept], rows.indices[kept]


Batches = PairBatches | HistoryBatches | LabeledBatches
"""What training draws its steps from: passes of batches of one shape, and the `rng` of all their randomness."""


def _judged(labeled: LabeledPairs, rows: NDArray[np.bool_], num_items: int) -> sparse.csr_array:
    """Some judged pairs in both directions, float32 [num_items, num_items]."""
    first = np.concatenate([labeled.first[rows], labeled.second[rows]])
    second = np.concatenate([labeled.second[rows], labeled.first[rows]])
    ones = np.ones(len(first), np.float32)
    matrix = sparse.coo_array((ones, (first, second)), shape=(num_items, num_items)).tocsr()
    matrix.data[:] = 1
    return matrix
