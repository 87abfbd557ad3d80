"""Brute-force neighbours behind the index's interface: the oracle that an index is measured against."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recsys.embeddings import Vectors

BLOCK = 1_024
"""Queries at a time: bounds the [BLOCK, num_items] similarities."""


class ExactIndex:
    """Nearest neighbours by comparing with every item.

    Args:
        vectors: float32 [num_items, dimension], unit length.
    """

    def __init__(self, vectors: Vectors) -> None:
        self.vectors = vectors

    def __len__(self) -> int:
        return len(self.vectors)

    def neighbours(self, numbers: NDArray[np.int32], k: int) -> NDArray[np.int32]:
        """The `k` nearest other items of each item, nearest first; int32 [len(numbers), k], -1 pads."""
        best = np.full((len(numbers), k), -1, np.int32)
        width = min(k, len(self) - 1)
        for start in range(0, len(numbers), BLOCK):
            block = numbers[start : start + BLOCK]
            similarities = self.vectors[block] @ self.vectors.T
            similarities[np.arange(len(block)), block] = -np.inf
            best[start : start + BLOCK, :width] = top(similarities, width)
        return best


def top(scores: NDArray[np.float32], k: int) -> NDArray[np.int32]:
    """Columns of the `k` largest scores of each row, largest first, ties by column; int32 [rows, k]."""
    cut = np.partition(scores, -k, axis=1)[:, -k]  # the k-th largest of each row
    row, column = np.nonzero(scores >= cut[:, None])  # k a row, and more where several equal the cut
    order = np.lexsort((column, -scores[row, column], row))
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    return column[order][rank < k].reshape(len(scores), k).astype(np.int32)
