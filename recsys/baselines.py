"""The bar for every run: neighbours by popularity, by co-occurrence and by ItemKNN.

Each is fitted on the same part of the log as the tower and is asked through the same interface.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys.sequences import Sequences
from recsys.splitting import Target, known_before

BLOCK = 512


class Popularity:
    """The most touched items, whatever the query.

    Args:
        counts: interactions an item, [num_items].
    """

    def __init__(self, counts: NDArray[np.float32]) -> None:
        self.order = np.argsort(-counts, kind="stable").astype(np.int32)

    def neighbours(self, numbers: NDArray[np.int32], k: int) -> NDArray[np.int32]:
        """The `k` most touched other items; int32 [len(numbers), k], -1 pads."""
        answers = np.full((len(numbers), k), -1, np.int32)
        for row, number in enumerate(numbers):
            others = self.order[: k + 1]
            others = others[others != number][:k]
            answers[row, : len(others)] = others
        return answers


class ItemKNN:
    """Items that the same users touched, by count or by its cosine.

    The score of i for j is c_ij / (|i| |j| + shrinkage), where c_ij counts the users of both and |i| is the
    square root of the users of i (Sarwar et al., 2001; shrinkage as in Bell and Koren, 2007). Without
    `cosine` it is c_ij itself: plain co-occurrence. Items that no user shares are no neighbours.

    Args:
        touched: which user touched which item, 0 or 1, float32 [num_users, num_items].
        cosine: divide by the norms.
        shrinkage: added to the product of the norms; larger trusts rare items less.
    """

    def __init__(self, touched: sparse.csr_array, *, cosine: bool, shrinkage: float = 0.0) -> None:
        self.by_item = touched.T.tocsr()
        self.touched = touched
        self.cosine = cosine
        self.shrinkage = shrinkage
        self.norms = np.sqrt(np.asarray(touched.sum(axis=0)).ravel())

    def neighbours(self, numbers: NDArray[np.int32], k: int) -> NDArray[np.int32]:
        """The `k` best other items of each item; int32 [len(numbers), k], -1 pads."""
        answers = np.full((len(numbers), k), -1, np.int32)
        for start in range(0, len(numbers), BLOCK):
            block = numbers[start : start + BLOCK]
            together = (self.by_item[block] @ self.touched).tocoo()  # [block, num_items]
            other = together.col != block[together.row]
            row, column, score = together.row[other], together.col[other], together.data[other]
            if self.cosine:
                score = score / (self.norms[block[row]] * self.norms[column] + self.shrinkage)
            order = np.lexsort((column, -score, row))
            row, column = row[order], column[order]
            rank = np.arange(len(row)) - np.searchsorted(row, row)
            best = rank < k
            answers[start + row[best], rank[best]] = column[best]
        return answers


def touched_before(sequences: Sequences, target: Target, num_items: int) -> sparse.csr_array:
    """Which user touched which item before the target, 0 or 1, float32 [num_users, num_items]."""
    known = known_before(sequences, target)
    shape = (len(sequences), num_items)
    coordinates = (sequences.users[known], sequences.items[known])
    matrix = sparse.coo_array((np.ones(int(known.sum()), np.float32), coordinates), shape=shape).tocsr()
    matrix.data[:] = 1  # an item touched twice is touched
    return matrix
