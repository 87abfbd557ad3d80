"""Exact similarities, and exact nearest neighbors by comparing with every item.

The recall of an index is measured against `ExactIndex`. Similarities in results are those of `exact_similarities`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from recsys.index.distances import COSINE, Distance
from recsys.index.embeddings import Vectors, weighted_means
from recsys.index.queries import PADDING, Queries

BLOCK = 256
"""Queries compared at a time; with more, the similarities do not stay in the processor's cache."""

PIECE = 1 << 18
"""Numbers multiplied at a time in one thread; with more, BLAS starts threads that cost more than they save."""

GROUPS = 16
"""Groups of similarities, as a multiple of k, whose maxima bound the k-th largest. With more groups the bound is
closer, and sorting the maxima takes longer."""

CELLS = 2**26
"""Similarities computed at a time: for large catalogs fewer queries are compared together, which bounds memory."""


class ExactIndex:
    """Nearest neighbors by comparing with every item; same interface as `recsys.index.annoy_index.Index`.

    Args:
        vectors: float32 [num_items, dimension], of length 1 if the distance requires it.
        distance: between the vectors.
        mask: items that can be returned, bool [num_items]; None for all.
    """

    def __init__(self, vectors: Vectors, distance: Distance = COSINE, mask: NDArray[np.bool_] | None = None) -> None:
        self.vectors = vectors
        self.distance = distance
        self.excluded = np.empty(0, np.int64) if mask is None else np.flatnonzero(~mask)

    def __len__(self) -> int:
        return len(self.vectors)

    def top_k(self, queries: Queries, k: int) -> NDArray[np.int32]:
        """Return the `k` items nearest to the weighted mean of each query's items, nearest first.

        Returns:
            Item numbers, int32 [n, k], ties by item number, without excluded items; -1 pads short rows.
        """
        result = np.full((len(queries), k), PADDING, np.int32)
        width = min(k, len(self))
        step = self._block_size()
        for start in range(0, len(queries), step):
            similarities = self._similarities(queries[start : start + step])
            nearest = top_columns(similarities, width)
            excluded = np.take_along_axis(similarities, nearest, axis=1) == -np.inf
            result[start : start + step, :width] = np.where(excluded, PADDING, nearest)
        return result

    def ranks(self, queries: Queries, targets: NDArray[np.int32], k: int) -> NDArray[np.int64]:
        """Return the rank, from 0, of each target in `top_k`, `k` if it is not among the first `k`; int64 [n].

        Nothing is sorted: the rank of a target is the number of items before it.
        """
        ranks = np.empty(len(queries), np.int64)
        step = self._block_size()
        for start in range(0, len(queries), step):
            similarities = self._similarities(queries[start : start + step])
            target = targets[start : start + step]
            of_target = similarities[np.arange(len(target)), target][:, None]
            # row by row: counting along an axis takes five times as long
            before = np.fromiter(map(np.count_nonzero, similarities > of_target), np.int64, len(target))
            for row in np.flatnonzero(before < k):  # elsewhere ties do not matter
                before[row] += np.count_nonzero(similarities[row, : target[row]] == of_target[row])
            ranks[start : start + step] = np.where(of_target[:, 0] == -np.inf, k, before)
        return np.minimum(ranks, k)

    def neighbors(self, item_numbers: NDArray[np.int32], k: int) -> NDArray[np.int32]:
        """Return the `k` nearest other items of each item, int32 [n, k], as `top_k`."""
        return self.top_k(Queries.from_items(item_numbers), k)

    def _block_size(self) -> int:
        return max(1, min(BLOCK, CELLS // len(self)))

    def _similarities(self, queries: Queries) -> NDArray[np.float32]:
        """Return the similarity of each query to every item, -inf for excluded items, float32 [n, num_items]."""
        query_vectors = weighted_means(self.vectors, queries.items, queries.weights)
        similarities = self.distance.similarities(query_vectors, self.vectors)
        similarities[:, self.excluded] = -np.inf
        row, column = np.nonzero(queries.excluded >= 0)
        similarities[row, queries.excluded[row, column]] = -np.inf
        return similarities


def take(vectors: Vectors, rows: NDArray[np.integer]) -> Vectors:
    """Return some rows, all of which must exist; less than half the time of an index, which checks each row."""
    return vectors.take(rows, axis=0, mode="clip")


def item_vector(vectors: Vectors, item_number: int, distance: Distance) -> NDArray[np.float64]:
    """Return the query vector of an item, float64 [dimension], for cosine normalized to length 1 in float64."""
    query: NDArray[np.float64] = vectors[item_number].astype(np.float64)
    if distance.unit_norm:
        query /= math.sqrt(np.dot(query, query))  # for one row faster than `@`
    return query


def exact_similarities(distance: Distance, query_vector: NDArray[np.float64], vectors: Vectors) -> NDArray[np.float64]:
    """Return the similarity of each vector, [n, dimension], to a query vector, [dimension]; float64 [n].

    Computed row by row: an item has the same similarity, to the last bit, whatever other items are compared with it.
    For cosine the query vector must have length 1.
    """
    step = max(PIECE // len(query_vector), 1)
    if len(vectors) > step:
        parts = (vectors[start : start + step] for start in range(0, len(vectors), step))
        return np.concatenate([exact_similarities(distance, query_vector, part) for part in parts])
    rows = vectors.astype(np.float64)
    if distance.unit_norm:
        return np.add.reduce(rows * query_vector, axis=1)  # type: ignore[no-any-return]
    return np.asarray(distance.similarity(distance.between(query_vector, rows)), np.float64)


def rounding_error(dimension: int) -> float:
    """Return a bound on the difference between a similarity of `Distance.similarities` and of `exact_similarities`."""
    return (dimension + 8) * 2.0**-23


def lower_bounds(similarities: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """Return for each row a number that at least `k` of its similarities reach, and few more; float32 [n].

    It is the k-th largest of the maxima of groups, which takes a tenth of the time of sorting out the k-th largest.
    """
    num_columns = similarities.shape[1]
    if not 0 < k < num_columns:
        return np.full(len(similarities), -np.inf, np.float32)
    group_size = max(num_columns // (GROUPS * k), 1)
    num_groups = num_columns // group_size
    grouped = similarities[:, : group_size * num_groups].reshape(len(similarities), group_size, num_groups)
    return np.partition(grouped.max(axis=1), -k, axis=1)[:, -k]


def top_columns(scores: NDArray[np.float32], k: int) -> NDArray[np.int32]:
    """Return the columns of the `k` largest scores of each row, largest first, ties by column; int32 [rows, k]."""
    cells = np.flatnonzero(scores >= lower_bounds(scores, k)[:, None])  # a third of the time of a nonzero by rows
    row, column = np.divmod(cells, scores.shape[1])
    order = np.lexsort((column, -scores[row, column], row))
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    return column[order][rank < k].reshape(len(scores), k).astype(np.int32)
