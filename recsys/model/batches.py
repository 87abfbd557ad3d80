"""Training batches from pairs, from the histories of users, or from labeled pairs.

All batches of a training have the same shape, so that its step is compiled once.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys.config.sections import CandidatesConfig, Config
from recsys.data.labeled_pairs import LabeledPairs
from recsys.data.pairs import Block, Pairs, concatenate
from recsys.data.splits import Split, Target
from recsys.errors import StageError
from recsys.evaluation.protocol import PROTOCOL
from recsys.index.distances import DISTANCES
from recsys.index.embeddings import Vectors
from recsys.model.hard_negatives import mine
from recsys.model.negatives import IGNORE, Anchors, Batch, Sampler

FIRST_MINED_PASS = 1
"""Passes before hard negatives are mined: the neighbors of an untrained tower mean nothing."""


class Batches(ABC):
    """Passes over the same anchors, in random order."""

    rng: np.random.Generator
    """The source of all randomness of the batches."""
    hard_negatives: NDArray[np.int32] = np.empty((0, 0), np.int32)
    """Hard negatives of each item, int32 [num_items, n], -1 pads."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of batches of a pass."""

    @abstractmethod
    def one_pass(self) -> Iterator[Batch]:
        """Yield the batches of one pass."""

    def mines_after(self, pass_number: int) -> bool:  # noqa: ARG002 - most batches have none
        """Return whether hard negatives are mined after this pass."""
        return False

    def mine_hard_negatives(self, embeddings: Vectors) -> dict[str, int]:  # noqa: ARG002
        """Replace the hard negatives, by embeddings of the catalog; return the numbers of `hard_negatives.Mined`."""
        return {}


class PairBatches(Batches):
    """Items as anchors, and the items of their pairs as positives; streamed from disk.

    Args:
        pairs: positives of each anchor.
        config: `train`, `candidates` and `tower.distance`.

    Raises:
        StageError: there are no pairs.
    """

    def __init__(self, pairs: Pairs, config: Config) -> None:
        self.rng = np.random.default_rng(config.train.seed)
        self.pairs = pairs
        self.config = config
        totals, _, _ = pairs.totals
        self.num_anchors = int((totals > 0).sum())
        self.batch_size = max(1, min(config.train.batch_size, self.num_anchors))
        self.sampler = Sampler(pairs, config.candidates, self.batch_size, 1, self.rng)
        self.anchor_weights = (totals / totals[totals > 0].mean()).astype(np.float32)
        """Sum of the weights of each item's pairs, divided by its mean over all anchors; float32 [num_items]."""

    def __len__(self) -> int:
        return math.ceil(self.num_anchors / self.batch_size)

    def one_pass(self) -> Iterator[Batch]:
        """Yield all anchors in random order; the last batch is filled up with anchors of earlier ones."""
        waiting: list[Block] = []
        num_waiting = 0
        filler: Block | None = None
        for block in self.pairs.shuffled(self.rng, self.config.resources.shuffled_pairs):
            filler = filler or block.take(np.arange(min(self.batch_size, len(block.anchors))))
            waiting.append(block)
            num_waiting += len(block.anchors)
            if num_waiting >= self.batch_size:
                joined = concatenate(waiting)
                end = num_waiting - num_waiting % self.batch_size
                for start in range(0, end, self.batch_size):
                    yield self._batch(joined.take(np.arange(start, start + self.batch_size)))
                waiting, num_waiting = [joined.take(np.arange(end, num_waiting))], num_waiting - end
        if num_waiting and filler is not None:
            last = concatenate([*waiting, filler])
            yield self._batch(last.take(np.resize(np.arange(len(last.anchors)), self.batch_size)))

    def _batch(self, block: Block) -> Batch:
        items = block.anchors[:, None]
        anchors = Anchors(items, np.ones(items.shape, np.float32), block.rows, self.anchor_weights[block.anchors])
        return self.sampler.batch(anchors)

    @property
    def hard_negatives(self) -> NDArray[np.int32]:
        """Hard negatives of each item, int32 [num_items, n], -1 pads."""
        return self.sampler.hard_negatives

    @hard_negatives.setter
    def hard_negatives(self, negatives: NDArray[np.int32]) -> None:
        self.sampler.hard_negatives = negatives

    def mines_after(self, pass_number: int) -> bool:
        """Return whether hard negatives are used in the pass after this one."""
        candidates = self.config.candidates
        return candidates.hard_negatives > 0 and pass_number >= FIRST_MINED_PASS

    def mine_hard_negatives(self, embeddings: Vectors) -> dict[str, int]:
        """Replace the hard negatives by those of the embeddings, float32 [num_items, d]."""
        distance = DISTANCES[self.config.tower.distance]
        mined = mine(embeddings, self.pairs, distance, self.rng)
        self.hard_negatives = mined.negatives
        return mined.report


class HistoryBatches(Batches):
    """Histories of users as anchors, and the items that followed as positives.

    A history is taken at each position of a user's sequence but the first. The anchor is the mean of the newest items
    before the position, weighted by recency, as in a history query. The positives are the items in the `window` from
    the position on, weighted by `decay` like pairs. Items of the history are not used as positives, unless no other
    items follow: then the positives have no effect.

    Args:
        split: sequences of all users.
        target: only the training data for this target are used.
        pairs: source of the popularity of the items.
        config: `train`, `prepare` and `candidates`.
        recency: weight of one step back, in (0, 1].
        max_items: maximum length of a history.
    """

    MIN_SHARE = 0.01
    """Items of a history with a smaller weight are omitted, to save time and memory."""

    NUM_CANDIDATES = 1_024
    """Maximum number of positives of a batch, and number of negatives, if `candidates.kind` is `auto`. Histories have
    few positives each, and there are many histories: on Toys this takes half the time of all items as candidates at
    equal quality."""

    def __init__(
        self,
        split: Split,
        target: Target,
        pairs: Pairs,
        config: Config,
        recency: float,
        *,
        max_items: int = PROTOCOL.history_items,
    ) -> None:
        self.rng = np.random.default_rng(config.train.seed)
        sequences, known = split.sequences, split.training_mask(target)
        self.items = sequences.items
        self.starts = np.repeat(sequences.offsets[:-1], sequences.lengths)
        # the position after the last known interaction of the user; known interactions come first
        ends = sequences.offsets[:-1] + np.bincount(sequences.users[known], minlength=len(sequences))
        self.ends = np.repeat(ends, sequences.lengths)
        position = np.arange(len(self.items))
        self.positions = position[(position > self.starts) & (position < self.ends)]
        self.batch_size = max(1, min(config.train.batch_size, len(self.positions)))
        self.recency = recency
        self.window, self.decay = config.prepare.window, config.prepare.decay
        length = max_items
        if recency < 1:
            length = min(length, math.ceil(math.log(self.MIN_SHARE) / math.log(recency)))
        self.sampler = Sampler(pairs, self._candidates(config.candidates), self.batch_size, length, self.rng)

    def _candidates(self, config: CandidatesConfig) -> CandidatesConfig:
        if config.kind != "auto":
            return config
        sampled = {"kind": "sampled", "max_positives": self.NUM_CANDIDATES, "negatives": self.NUM_CANDIDATES}
        return config.model_copy(update=sampled)

    def __len__(self) -> int:
        return len(self.positions) // self.batch_size

    def one_pass(self) -> Iterator[Batch]:
        """Yield all histories in random order; those that do not fill a batch are omitted."""
        order = self.rng.permutation(self.positions)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield self._batch(order[start : start + self.batch_size])

    def _batch(self, positions: NDArray[np.int64]) -> Batch:
        step = np.arange(self.sampler.width)
        backward = positions[:, None] - 1 - step
        in_history = backward >= self.starts[positions][:, None]
        items = np.where(in_history, self.items[np.maximum(backward, 0)], -1).astype(np.int32)
        shares = np.where(in_history, self.recency**step, 0).astype(np.float32)
        anchors = Anchors(items, shares, self._positives(positions, items), np.ones(len(positions), np.float32))
        return self.sampler.batch(anchors)

    def _positives(self, positions: NDArray[np.int64], items: NDArray[np.int32]) -> sparse.csr_array:
        """Weights of the positives of each history, float32 [B, num_items]; `items` are the histories, [B, L]."""
        forward = positions[:, None] + np.arange(self.window)
        is_positive = forward < self.ends[positions][:, None]
        following = self.items[np.minimum(forward, len(self.items) - 1)]
        is_new = is_positive & ~(following[:, :, None] == items[:, None, :]).any(axis=2)
        is_positive = np.where(is_new.any(axis=1, keepdims=True), is_new, is_positive)  # at least one per row
        row, step = np.nonzero(is_positive)
        positives = sparse.coo_array(
            ((step + 1.0) ** -self.decay, (row, following[is_positive])),
            shape=(len(positions), self.sampler.num_items),
            dtype=np.float32,
        ).tocsr()
        positives.sum_duplicates()
        return positives


class LabeledBatches(Batches):
    """Items of labeled pairs as anchors; pairs without a label are ignored.

    An anchor has at most `MAX_PARTNERS` positives and as many negatives, so that many easy negatives do not dominate
    the loss. A pair with both labels counts as positive.

    Args:
        labeled: labeled pairs, used in both directions.
        num_items: size of the catalog.
        config: `train`.

    Raises:
        StageError: no pair has the label "same".
    """

    MAX_PARTNERS = 8

    def __init__(self, labeled: LabeledPairs, num_items: int, config: Config) -> None:
        if not labeled.same.any():
            raise StageError(
                "training needs at least one labeled pair that is the same. Received: none. "
                "Add rows with same = 1 to data.labeled_pairs."
            )
        self.rng = np.random.default_rng(config.train.seed)
        self.num_items = num_items
        self.positives = _symmetric_matrix(labeled, labeled.same, num_items)
        negatives = _symmetric_matrix(labeled, ~labeled.same, num_items)
        self.negatives = sparse.csr_array(negatives > self.positives).astype(np.float32)
        self.anchors = np.flatnonzero(np.diff(self.positives.indptr)).astype(np.int32)
        self.batch_size = max(1, min(config.train.batch_size, len(self.anchors)))
        self.num_candidates = min(num_items, self.batch_size * (1 + 2 * self.MAX_PARTNERS))

    def __len__(self) -> int:
        return math.ceil(len(self.anchors) / self.batch_size)

    def one_pass(self) -> Iterator[Batch]:
        """Yield all anchors in random order; the last batch is filled up with the first anchors."""
        order = np.resize(self.rng.permutation(self.anchors), len(self) * self.batch_size)
        for start in range(0, len(order), self.batch_size):
            yield self._batch(order[start : start + self.batch_size])

    def _batch(self, anchors: NDArray[np.int32]) -> Batch:
        negative_rows, negatives = self._sample_partners(self.negatives[anchors])
        positive_rows, positives = self._sample_partners(self.positives[anchors])
        items = np.unique(np.concatenate([anchors, negatives, positives])).astype(np.int32)
        candidates = np.concatenate([items, np.repeat(items[:1], self.num_candidates - len(items))])
        column = np.zeros(self.num_items, np.int32)
        column[items] = np.arange(len(items))
        targets = np.full((len(anchors), len(candidates)), IGNORE, np.float32)
        targets[negative_rows, column[negatives]] = 0
        targets[positive_rows, column[positives]] = 1
        zeros = np.zeros(len(candidates), np.float32)
        ones = np.ones((len(anchors), 1), np.float32)
        return Batch(candidates, column[anchors][:, None], ones, targets, zeros, zeros, ones[:, 0])

    def _sample_partners(self, rows: sparse.csr_array) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Row and column of at most `MAX_PARTNERS` random entries of each row."""
        row = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
        order = np.lexsort((self.rng.random(len(row)), row))
        rank = np.arange(len(row)) - np.searchsorted(row, row)
        sample = order[rank < self.MAX_PARTNERS]
        return row[sample], rows.indices[sample]


def _symmetric_matrix(labeled: LabeledPairs, mask: NDArray[np.bool_], num_items: int) -> sparse.csr_array:
    """The labeled pairs of a mask in both directions, ones in float32 [num_items, num_items]."""
    first = np.concatenate([labeled.first[mask], labeled.second[mask]])
    second = np.concatenate([labeled.second[mask], labeled.first[mask]])
    ones = np.ones(len(first), np.float32)
    matrix = sparse.coo_array((ones, (first, second)), shape=(num_items, num_items)).tocsr()
    matrix.data[:] = 1
    return matrix
