"""Brute-force neighbours behind the index's interface: the oracle that an index is measured against."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recsys.embeddings import Vectors, means
from recsys.queries import Queries
from recsys.similarity import COSINE, Distance

BLOCK = 1_024
"""Queries at a time: bounds the [BLOCK, num_items] similarities."""


class ExactIndex:
    """Nearest neighbours by comparing with every item.

    Args:
        vectors: float32 [num_items, dimension], of length 1 if the distance asks for it.
        distance: what "near" means.
    """

    def __init__(self, vectors: Vectors, distance: Distance = COSINE) -> None:
        self.vectors = vectors
        self.distance = distance

    def __len__(self) -> int:
        return len(self.vectors)

    def answer(self, queries: Queries, k: int) -> NDArray[np.int32]:
        """The `k` items nearest to the weighted mean of each query's items, nearest first.

        Returns:
            int32 [n, k], ties by number, nothing that the query excludes; -1 pads where the catalogue holds no more.
        """
        best = np.full((len(queries), k), -1, np.int32)
        width = min(k, len(self))
        for start in range(0, len(queries), BLOCK):
            block = queries[start : start + BLOCK]
            similarities = self.distance.similarities(means(self.vectors, block.items, block.weights), self.vectors)
            row, column = np.nonzero(block.excluded >= 0)
            similarities[row, block.excluded[row, column]] = -np.inf
            nearest = top(similarities, width)
            left_out = np.take_along_axis(similarities, nearest, axis=1) == -np.inf
            best[start : start + BLOCK, :width] = np.where(left_out, -1, nearest)
        return best

    def neighbours(self, numbers: NDArray[np.int32], k: int) -> NDArray[np.int32]:
        """The `k` nearest other items of each item, int32 [n], as `answer` gives them."""
        return self.answer(Queries.of_items(numbers), k)


def top(scores: NDArray[np.float32], k: int) -> NDArray[np.int32]:
    """Columns of the `k` largest scores of each row, largest first, ties by column; int32 [rows, k]."""
    cut = np.partition(scores, -k, axis=1)[:, -k]  # the k-th largest of each row
    row, column = np.nonzero(scores >= cut[:, None])  # k a row, and more where several equal the cut
    order = np.lexsort((column, -scores[row, column], row))
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    return column[order][rank < k].reshape(len(scores), k).astype(np.int32)
