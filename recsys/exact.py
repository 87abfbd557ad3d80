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
    if k < scores.shape[1]:
        columns = np.sort(np.argpartition(scores, -k, axis=1)[:, -k:], axis=1)
    else:
        columns = np.broadcast_to(np.arange(k), (len(scores), k))
    kept = np.take_along_axis(scores, columns, axis=1)
    order = np.argsort(-kept, axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1).astype(np.int32)
