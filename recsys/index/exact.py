"""Brute-force neighbors behind the index's interface: the oracle that an index is measured against."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recsys.index.distances import COSINE, Distance
from recsys.index.embeddings import Vectors, means
from recsys.index.queries import Queries

BLOCK = 256
"""Queries at a time: of more, the similarities have left the cache before they are compared."""

CELLS = 2**26
"""Similarities at a time: with many items fewer queries are compared together, so that memory does not follow them."""


class ExactIndex:
    """Nearest neighbors by comparing with every item.

    Args:
        vectors: float32 [num_items, dimension], of length 1 if the distance asks for it.
        distance: what "near" means.
        among: what may be an answer, bool [num_items]; everything where it is None.
    """

    def __init__(self, vectors: Vectors, distance: Distance = COSINE, among: NDArray[np.bool_] | None = None) -> None:
        self.vectors = vectors
        self.distance = distance
        self.left_out = np.empty(0, np.int64) if among is None else np.flatnonzero(~among)

    def __len__(self) -> int:
        return len(self.vectors)

    def answer(self, queries: Queries, k: int) -> NDArray[np.int32]:
        """The `k` items nearest to the weighted mean of each query's items, nearest first.

        Returns:
            int32 [n, k], ties by number, nothing that the query excludes; -1 pads where there are no more.
        """
        best = np.full((len(queries), k), -1, np.int32)
        width = min(k, len(self))
        block = self._block()
        for start in range(0, len(queries), block):
            similarities = self._similarities(queries[start : start + block])
            nearest = top(similarities, width)
            left_out = np.take_along_axis(similarities, nearest, axis=1) == -np.inf
            best[start : start + block, :width] = np.where(left_out, -1, nearest)
        return best

    def ranks(self, queries: Queries, targets: NDArray[np.int32], k: int) -> NDArray[np.int64]:
        """Rank from 0 of each target in `answer`, `k` where it is not among the first `k`; int64 [n].

        Nothing is sorted: a target's rank is the number of items before it.
        """
        rank = np.empty(len(queries), np.int64)
        block = self._block()
        for start in range(0, len(queries), block):
            similarities = self._similarities(queries[start : start + block])
            target = targets[start : start + block]
            own = similarities[np.arange(len(target)), target][:, None]
            # row by row: counting along an axis takes five times as long
            before = np.fromiter(map(np.count_nonzero, similarities > own), np.int64, len(target))
            for row in np.flatnonzero(before < k):  # ties matter to no other
                before[row] += np.count_nonzero(similarities[row, : target[row]] == own[row])
            rank[start : start + block] = np.where(own[:, 0] == -np.inf, k, before)
        return np.minimum(rank, k)

    def _block(self) -> int:
        return max(1, min(BLOCK, CELLS // len(self)))

    def _similarities(self, queries: Queries) -> NDArray[np.float32]:
        """Of each query to every item, -inf to what is no answer or excluded, float32 [n, num_items]."""
        similarities = self.distance.similarities(means(self.vectors, queries.items, queries.weights), self.vectors)
        similarities[:, self.left_out] = -np.inf
        row, column = np.nonzero(queries.excluded >= 0)
        similarities[row, queries.excluded[row, column]] = -np.inf
        return similarities

    def neighbors(self, numbers: NDArray[np.int32], k: int) -> NDArray[np.int32]:
        """The `k` nearest other items of each item, int32 [n], as `answer` gives them."""
        return self.answer(Queries.of_items(numbers), k)


def top(scores: NDArray[np.float32], k: int) -> NDArray[np.int32]:
    """Columns of the `k` largest scores of each row, largest first, ties by column; int32 [rows, k]."""
    cut = np.partition(scores, -k, axis=1)[:, -k]  # the k-th largest of each row
    row, column = np.nonzero(scores >= cut[:, None])  # k a row, and more where several equal the cut
    order = np.lexsort((column, -scores[row, column], row))
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    return column[order][rank < k].reshape(len(scores), k).astype(np.int32)
