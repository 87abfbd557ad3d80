"""Recommenders that score every item for a query: the base classes of the baselines.

Most baselines have a score for every two items; the scores of a query are the weighted sum of its items' rows. Items
with score 0 have nothing in common with the query and are not recommended.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys.index.exact import lower_bounds
from recsys.index.queries import PADDING, Queries

CELLS = 2**23
"""Scores computed at a time, by all threads together: bounds memory for any catalog size."""

THREADS = os.cpu_count() or 1
"""Blocks of queries scored at a time; SciPy's products and most of NumPy run beside other threads."""

Counts = NDArray[np.integer[Any]] | NDArray[np.floating[Any]]


class ScoringModel(ABC):
    """Recommends the items with the highest scores.

    Args:
        num_items: size of the catalog.
        counts: breaks ties, larger first, [num_items]; without it, and for equal counts, ties go by item number.
    """

    def __init__(self, num_items: int, counts: Counts | None = None) -> None:
        self.num_items = num_items
        self.tie_order = np.arange(num_items)
        if counts is not None:
            self.tie_order[by_count(counts)] = np.arange(num_items)

    @abstractmethod
    def scores(self, queries: sparse.csr_array) -> sparse.csr_array | NDArray[np.float32]:
        """Return the scores of all items, [n, num_items], for queries as float64 weights [n, num_items]."""

    def top_k(self, queries: Queries, k: int) -> NDArray[np.int32]:
        """Return the `k` items with the largest positive scores, without excluded ones; int32 [n, k], -1 pads.

        Scores that are equal in float32 are ties.
        """
        result = np.full((len(queries), k), PADDING, np.int32)

        def search(start: int, block: Queries) -> None:
            scores = self.scores(_to_matrix(block, self.num_items))
            masks = allowed_masks(block.excluded, self.num_items)
            for row, ((item_numbers, score), allowed) in enumerate(zip(_rows(scores), masks, strict=True), start):
                eligible = (score > 0) & allowed[item_numbers]
                best = self._best(item_numbers[eligible], score[eligible], k)
                result[row, : len(best)] = best

        self._for_each_block(queries, search)
        return result

    def ranks(self, queries: Queries, targets: NDArray[np.int32], k: int) -> NDArray[np.int64]:
        """Return the rank, from 0, of each target in `top_k`, `k` if it is not among the first `k`; int64 [n].

        Nothing is sorted: the rank of a target is the number of items before it.
        """
        ranks = np.empty(len(queries), np.int64)

        def rank(start: int, block: Queries) -> None:
            ranks[start : start + len(block)] = self._ranks_of_block(block, targets[start : start + len(block)], k)

        self._for_each_block(queries, rank)
        return np.minimum(ranks, k)

    def _ranks_of_block(self, block: Queries, target: NDArray[np.int32], k: int) -> NDArray[np.int64]:
        """Return the rank of each target of a block, at least `k` if it is not recommended; int64 [n]."""
        scores, excluded = self.scores(_to_matrix(block, self.num_items)), _excluded_mask(block, self.num_items)
        rows = np.arange(len(block))
        target_score = np.asarray(scores[rows, target], np.float32)
        eligible = (target_score > 0) & ~excluded[rows, target]
        row, item_number, score = _not_below(np.where(eligible, target_score, np.inf), scores)
        first = (score > target_score[row]) | (self.tie_order[item_number] < self.tie_order[target[row]])
        before = np.bincount(row[first & ~excluded[row, item_number]], minlength=len(block))
        return np.where(eligible, before, k)

    def _for_each_block(self, queries: Queries, process: Callable[[int, Queries], None]) -> None:
        """Call `process` with the first row of each block of queries, and the block, in several threads.

        A block has one query, or at most `CELLS / THREADS` scores.
        """
        step = max(1, CELLS // (THREADS * self.num_items))
        starts = range(0, len(queries), step)
        blocks = (queries[start : start + step] for start in starts)
        with ThreadPoolExecutor(THREADS) as executor:
            list(executor.map(process, starts, blocks))

    def _best(self, item_numbers: NDArray[np.int32], score: NDArray[np.float32], k: int) -> NDArray[np.int32]:
        if len(item_numbers) > k:  # sort only the items that are not below a bound of the k-th largest score
            candidates = score >= lower_bounds(score[None], k)[0]
            item_numbers, score = item_numbers[candidates], score[candidates]
        return item_numbers[np.lexsort((self.tie_order[item_numbers], -score))[:k]]


class NeighborhoodModel(ScoringModel):
    """Scores from a sparse item-item matrix, float64 [num_items, num_items], not negative.

    In small catalogs a matrix with many values is stored with its zeros: products sum in the same order, and on
    MovieLens 100k, with a quarter to two thirds of the cells, they take a quarter of the time.
    """

    DENSE_SHARE = 0.05
    """Share of cells with values from which the zeros are stored."""
    DENSE_MAX_ITEMS = 5_000
    """Limit of the catalog: 200 MB."""

    def __init__(self, matrix: sparse.csr_array) -> None:
        num_items = matrix.shape[0]
        super().__init__(num_items)
        is_dense = num_items <= self.DENSE_MAX_ITEMS and matrix.nnz > self.DENSE_SHARE * num_items**2
        self.matrix: sparse.csr_array | NDArray[np.float64] = matrix.toarray() if is_dense else matrix

    def scores(self, queries: sparse.csr_array) -> sparse.csr_array | NDArray[np.float32]:
        """Return the scores of all items, [n, num_items]."""
        scores = queries @ self.matrix
        return scores.astype(np.float32) if isinstance(scores, np.ndarray) else scores

    def ranks(self, queries: Queries, targets: NDArray[np.int32], k: int) -> NDArray[np.int64]:
        """Return the rank, from 0, of each target in `top_k`, `k` if it is not among the first `k`; int64 [n].

        In a large catalog most targets have score 0, which is cheap to determine; all items are scored only for the
        other queries.
        """
        has_score = np.empty(len(queries), np.bool_)

        def check(start: int, block: Queries) -> None:
            rows = slice(start, start + len(block))
            has_score[rows] = self._has_score(block, targets[rows])

        self._for_each_block(queries, check)
        scored = np.flatnonzero(has_score)
        ranks = np.full(len(queries), k, np.int64)
        ranks[scored] = super().ranks(queries[scored], targets[scored], k)
        return ranks

    def _has_score(self, queries: Queries, targets: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Return which targets have a positive score, bool [n]."""
        weights = _to_matrix(queries, self.num_items)
        row = np.repeat(np.arange(len(queries)), np.diff(weights.indptr))
        score = weights.data * self.matrix[weights.indices, targets[row]]
        has_score: NDArray[np.bool_] = np.bincount(row, score, minlength=len(queries)) > 0
        return has_score


def by_count(counts: Counts) -> NDArray[np.int32]:
    """Return the item numbers by descending count, ties by item number; int32 [num_items]."""
    return np.argsort(-counts.astype(np.float64), kind="stable").astype(np.int32)


def allowed_masks(excluded: NDArray[np.int32], num_items: int) -> Iterator[NDArray[np.bool_]]:
    """Yield for each query the items that are not excluded, bool [num_items]; the buffer is reused."""
    allowed = np.ones(num_items, np.bool_)
    for row in excluded:
        item_numbers = row[row >= 0]
        allowed[item_numbers] = False
        yield allowed
        allowed[item_numbers] = True


def _to_matrix(queries: Queries, num_items: int) -> sparse.csr_array:
    """Return the queries as weights, float64 [n, num_items]; the order of their items is lost."""
    row, column = np.nonzero(queries.items >= 0)
    coordinates = (row, queries.items[row, column])
    weights = queries.weights[row, column].astype(np.float64)
    matrix = sparse.coo_array((weights, coordinates), shape=(len(queries), num_items)).tocsr()
    matrix.eliminate_zeros()
    return matrix


def _excluded_mask(queries: Queries, num_items: int) -> NDArray[np.bool_]:
    """Return which items are excluded from each query, bool [n, num_items]."""
    excluded = np.zeros((len(queries), num_items), np.bool_)
    row, column = np.nonzero(queries.excluded >= 0)
    excluded[row, queries.excluded[row, column]] = True
    return excluded


def _rows(scores: sparse.csr_array | NDArray[np.float32]) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float32]]]:
    """Yield for each query item numbers and their scores; items that are not listed have score 0."""
    if isinstance(scores, np.ndarray):
        item_numbers = np.arange(scores.shape[1], dtype=np.int32)
        yield from ((item_numbers, row) for row in scores)
    else:
        data = scores.data.astype(np.float32)
        for start, end in zip(scores.indptr[:-1], scores.indptr[1:], strict=True):
            yield scores.indices[start:end], data[start:end]


def _not_below(
    bounds: NDArray[np.float32], scores: sparse.csr_array | NDArray[np.float32]
) -> tuple[NDArray[np.integer[Any]], NDArray[np.integer[Any]], NDArray[np.float32]]:
    """Return row, item number and float32 score of all scores that reach the bound of their row, which is positive."""
    if isinstance(scores, np.ndarray):
        row, item_number = np.nonzero(scores >= bounds[:, None])
        return row, item_number, scores[row, item_number]
    data, size = scores.data.astype(np.float32), np.diff(scores.indptr)
    cells = np.flatnonzero(data >= np.repeat(bounds, size))
    rows = np.repeat(np.arange(len(bounds), dtype=np.int32), size)
    return rows[cells], scores.indices[cells], data[cells]
