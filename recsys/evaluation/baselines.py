"""The bar for every run: popularity, co-occurrence, ItemKNN, EASE and content alone.

Each is fitted on the same part of the log as the tower and is asked through the same interface. But for
popularity, each has a score for every two items; that of a query of several items is the weighted sum of their
rows. What scores nothing shares nothing with the query, and is not named.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys.data.splits import Split, Target
from recsys.index.queries import Queries

CELLS = 2**23
"""Scores at a time: bounds the memory of an answer whatever the size of the catalog."""

Counts = NDArray[np.integer[Any]] | NDArray[np.floating[Any]]


class Popularity:
    """The most touched items, whatever the query; equals by number.

    Args:
        counts: interactions an item, [num_items].
    """

    def __init__(self, counts: Counts) -> None:
        self.order = _most_first(counts)

    def top_k(self, queries: Queries, k: int) -> NDArray[np.int32]:
        """The `k` most touched items that are not excluded; int32 [n, k], -1 pads."""
        answers = np.full((len(queries), k), -1, np.int32)
        candidates = self.order[: k + queries.excluded.shape[1]]  # enough to fill any of the answers
        for row, allowed in enumerate(_allowed(queries.excluded, len(self.order))):
            named = candidates[allowed[candidates]][:k]
            answers[row, : len(named)] = named
        return answers


class _Scored(ABC):
    """Answers by a score of each item for each query.

    Args:
        num_items: size of the catalog.
        counts: settles ties, the larger first, [num_items]; without it, and among equals, by item number.
    """

    def __init__(self, num_items: int, counts: Counts | None = None) -> None:
        self.num_items = num_items
        self.tie_order = np.arange(num_items)
        if counts is not None:
            self.tie_order[_most_first(counts)] = np.arange(num_items)

    @abstractmethod
    def scores(self, asked: sparse.csr_array) -> sparse.csr_array | NDArray[np.float32]:
        """Scores of all items, [rows, num_items], for queries given as float64 weights [rows, num_items]."""

    def top_k(self, queries: Queries, k: int) -> NDArray[np.int32]:
        """The `k` items with the largest scores above 0 that are not excluded; int32 [n, k], -1 pads.

        Scores that are equal in float32 are ties.
        """
        answers = np.full((len(queries), k), -1, np.int32)
        for start, block in self._blocks(queries):
            scores = self.scores(_weights(block, self.num_items))
            allowed_of = _allowed(block.excluded, self.num_items)
            for row, ((numbers, score), allowed) in enumerate(zip(_rows(scores), allowed_of, strict=True), start):
                possible = (score > 0) & allowed[numbers]
                named = self._best(numbers[possible], score[possible], k)
                answers[row, : len(named)] = named
        return answers

    def ranks(self, queries: Queries, targets: NDArray[np.int32], k: int) -> NDArray[np.int64]:
        """Rank from 0 of each target in `answer`, `k` where it is not among the first `k`; int64 [n].

        Nothing is sorted: a target's rank is the number of items before it.
        """
        rank = np.empty(len(queries), np.int64)
        for start, block in self._blocks(queries):
            scores, excluded = self.scores(_weights(block, self.num_items)), _excluded(block, self.num_items)
            every, target = np.arange(len(block)), targets[start : start + len(block)]
            own = np.asarray(scores[every, target], np.float32)
            named = (own > 0) & ~excluded[every, target]
            row, number, score = _not_below(np.where(named, own, np.inf), scores)
            first = (score > own[row]) | (self.tie_order[number] < self.tie_order[target[row]])
            before = np.bincount(row[first & ~excluded[row, number]], minlength=len(block))
            rank[start : start + len(block)] = np.where(named, before, k)
        return np.minimum(rank, k)

    def _blocks(self, queries: Queries) -> Iterator[tuple[int, Queries]]:
        """Queries with at most `CELLS` scores, or one, and the place of the first of them."""
        rows = max(1, CELLS // self.num_items)
        for start in range(0, len(queries), rows):
            yield start, queries[start : start + rows]

    def _best(self, numbers: NDArray[np.int32], score: NDArray[np.float32], k: int) -> NDArray[np.int32]:
        if len(numbers) > k:  # sort only what can be in the answer: those not below the k-th largest
            near = score >= np.partition(score, -k)[-k]
            numbers, score = numbers[near], score[near]
        return numbers[np.lexsort((self.tie_order[numbers], -score))[:k]]


class _Neighborhood(_Scored):
    """Scores from a sparse matrix of all items by all, float64 [num_items, num_items], nothing below 0."""

    def __init__(self, matrix: sparse.csr_array) -> None:
        super().__init__(matrix.shape[0])
        self.matrix = matrix

    def scores(self, asked: sparse.csr_array) -> sparse.csr_array:
        return asked @ self.matrix

    def ranks(self, queries: Queries, targets: NDArray[np.int32], k: int) -> NDArray[np.int64]:
        """Rank from 0 of each target in `answer`, `k` where it is not among the first `k`; int64 [n].

        Most targets of a large catalog share nothing with the query, which is cheap to see; only for the others
        are all items scored.
        """
        rank = np.full(len(queries), k, np.int64)
        for start, block in self._blocks(queries):
            target = targets[start : start + len(block)]
            near = np.flatnonzero(self._shared(block, target))
            rank[start + near] = super().ranks(block[near], target[near], k)
        return rank

    def _shared(self, queries: Queries, targets: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Which targets share something with an item of the query, bool [n]."""
        asked = _weights(queries, self.num_items)
        row = np.repeat(np.arange(len(queries)), np.diff(asked.indptr))
        own = asked.data * self.matrix[asked.indices, targets[row]]
        shared: NDArray[np.bool_] = np.bincount(row, own, minlength=len(queries)) > 0
        return shared


class CoOccurrence(_Neighborhood):
    """Items that the same users touched, by the number of these users.

    Args:
        shared: what `users_of_both` gives, [num_items, num_items].
    """

    def __init__(self, shared: sparse.csr_array) -> None:
        super().__init__(_others(shared).tocsr())


class ItemKNN(_Neighborhood):
    """Items that the same users touched, by cosine.

    The score of j for i is c_ij / (|i| |j| + shrinkage), where c_ij counts the users of both and |i| is the
    square root of the users of i (Sarwar et al., 2001; shrinkage as in Bell and Koren, 2007).

    Args:
        shared: what `users_of_both` gives, [num_items, num_items].
        shrinkage: added to the product of the norms; larger trusts rare items less.
    """

    def __init__(self, shared: sparse.csr_array, shrinkage: float = 0.0) -> None:
        norms = np.sqrt(shared.diagonal())
        super().__init__(_shrunk(_others(shared), norms, norms, shrinkage))


class WindowedItemKNN(_Neighborhood):
    """Items touched shortly after one another, by the pair weights that the tower is trained on.

    The score of j for i is c_ij / (sqrt(c_i. c_.j) + shrinkage), where c_ij is the weight of the pair, c_i. that
    of all pairs of i, and c_.j that of all pairs with j: ItemKNN's formula where only near items count.

    Args:
        pairs: what `recsys.data.cooccurrence.to_matrix` gives, [num_items, num_items].
        shrinkage: added to the product of the norms; larger trusts rare items less.
    """

    def __init__(self, pairs: sparse.csr_array, shrinkage: float = 0.0) -> None:
        anchors, positives = (np.sqrt(np.asarray(pairs.sum(axis=axis, dtype=np.float64)).ravel()) for axis in (1, 0))
        super().__init__(_shrunk(_others(pairs), anchors, positives, shrinkage))


class Ease(_Scored):
    """EASE: the linear model of items by the other items with the least squared error, in closed form.

    With P = (X'X + penalty I)^-1 the weights are B_ij = -P_ij / P_jj, and 0 on the diagonal; a query scores with
    the sum of its rows of B (Steck, Embarrassingly Shallow Autoencoders for Sparse Data, 2019,
    arXiv 1905.03375). Fitting inverts a dense float32 matrix: time grows with num_items cubed (2 num_items^3
    operations), memory is three matrices of 4 num_items^2 bytes (5,000 items: 0.3 GB), of which one stays.

    Args:
        shared: what `users_of_both` gives, [num_items, num_items]: the X'X of the formula.
        penalty: of the squared weights, above 0.
    """

    def __init__(self, shared: sparse.csr_array, penalty: float) -> None:
        super().__init__(shared.shape[0])
        gram = shared.astype(np.float32).toarray()
        np.fill_diagonal(gram, gram.diagonal() + penalty)
        self.matrix = np.linalg.inv(gram)
        self.matrix /= -self.matrix.diagonal().copy()
        np.fill_diagonal(self.matrix, 0)

    def scores(self, asked: sparse.csr_array) -> NDArray[np.float32]:
        """Scores of all items, float32 [rows, num_items]."""
        return np.asarray(asked.astype(np.float32) @ self.matrix)


class Content(_Scored):
    """Items with the same attributes, by the cosine of their bags; knows nothing of interactions.

    Args:
        bags: attributes of each item with their weights, [num_items, num_attributes]; see
            `recsys.features.tfidf.tfidf_matrix`.
        popularity: interactions an item, [num_items], to settle ties by; without it they go by item number.
    """

    def __init__(self, bags: sparse.csr_array, popularity: Counts | None = None) -> None:
        super().__init__(bags.shape[0], popularity)
        bags = bags.astype(np.float64)
        lengths = np.sqrt(np.asarray(bags.multiply(bags).sum(axis=1)).ravel())
        self.unit = bags.multiply(1 / np.where(lengths > 0, lengths, 1)[:, None]).tocsr()
        self.by_attribute = self.unit.T.tocsr()

    def scores(self, asked: sparse.csr_array) -> sparse.csr_array:
        """Scores of all items, float64 [rows, num_items]; the matrix of all items by all is never made."""
        return (asked @ self.unit) @ self.by_attribute


def touched_before(split: Split, target: Target, num_items: int) -> sparse.csr_array:
    """Which user touched which item before the target, 0 or 1, float32 [num_users, num_items]."""
    sequences, known = split.sequences, split.known_before(target)
    shape = (len(sequences), num_items)
    coordinates = (sequences.users[known], sequences.items[known])
    matrix = sparse.coo_array((np.ones(int(known.sum()), np.float32), coordinates), shape=shape).tocsr()
    matrix.data[:] = 1  # an item touched twice is touched
    return matrix


def users_of_both(touched: sparse.csr_array) -> sparse.csr_array:
    """How many users touched both of two items, float32 [num_items, num_items]; the diagonal: those of one.

    Args:
        touched: what `touched_before` gives, float32 [num_users, num_items].
    """
    return (touched.T @ touched).tocsr()


def _most_first(counts: Counts) -> NDArray[np.int32]:
    """Item numbers by falling count, equals by number; int32 [num_items]."""
    return np.argsort(-counts.astype(np.float64), kind="stable").astype(np.int32)


def _weights(queries: Queries, num_items: int) -> sparse.csr_array:
    """Queries as a matrix, float64 [n, num_items]; its columns are sorted, so the order of the items is lost."""
    row, column = np.nonzero(queries.items >= 0)
    coordinates = (row, queries.items[row, column])
    weights = queries.weights[row, column].astype(np.float64)
    matrix = sparse.coo_array((weights, coordinates), shape=(len(queries), num_items)).tocsr()
    matrix.eliminate_zeros()
    return matrix


def _allowed(excluded: NDArray[np.int32], num_items: int) -> Iterator[NDArray[np.bool_]]:
    """For each query which items may be named, bool [num_items]: one buffer, good until the next query."""
    allowed = np.ones(num_items, np.bool_)
    for row in excluded:
        out = row[row >= 0]
        allowed[out] = False
        yield allowed
        allowed[out] = True


def _excluded(queries: Queries, num_items: int) -> NDArray[np.bool_]:
    """Which item may not be named, bool [n, num_items]."""
    excluded = np.zeros((len(queries), num_items), np.bool_)
    row, column = np.nonzero(queries.excluded >= 0)
    excluded[row, queries.excluded[row, column]] = True
    return excluded


def _rows(scores: sparse.csr_array | NDArray[np.float32]) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float32]]]:
    """Numbers and scores of the items of each query; what is left out scores 0."""
    if isinstance(scores, np.ndarray):
        everything = np.arange(scores.shape[1], dtype=np.int32)
        yield from ((everything, row) for row in scores)
    else:
        data = scores.data.astype(np.float32)
        for start, end in zip(scores.indptr[:-1], scores.indptr[1:], strict=True):
            yield scores.indices[start:end], data[start:end]


def _not_below(
    bounds: NDArray[np.float32], scores: sparse.csr_array | NDArray[np.float32]
) -> tuple[NDArray[np.integer[Any]], NDArray[np.integer[Any]], NDArray[np.float32]]:
    """Row, item number and float32 score of all that scores no less than the bound of its row, which is above 0."""
    if isinstance(scores, np.ndarray):
        row, number = np.nonzero(scores >= bounds[:, None])
        return row, number, scores[row, number]
    data, size = scores.data.astype(np.float32), np.diff(scores.indptr)
    kept = np.flatnonzero(data >= np.repeat(bounds, size))
    row_of = np.repeat(np.arange(len(bounds), dtype=np.int32), size)
    return row_of[kept], scores.indices[kept], data[kept]


def _others(matrix: sparse.csr_array) -> sparse.coo_array:
    """The same without the diagonal, float64."""
    cells = matrix.tocoo()
    off = cells.row != cells.col
    coordinates = (cells.row[off], cells.col[off])
    return sparse.coo_array((cells.data[off].astype(np.float64), coordinates), shape=matrix.shape)


def _shrunk(
    cells: sparse.coo_array, left: NDArray[np.float64], right: NDArray[np.float64], shrinkage: float
) -> sparse.csr_array:
    """Each cell divided by the norms of its row and column and the shrinkage."""
    data = cells.data / (left[cells.row] * right[cells.col] + shrinkage)
    return sparse.coo_array((data, (cells.row, cells.col)), shape=cells.shape).tocsr()
