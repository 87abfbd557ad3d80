"""Association of items over the whole histories of users, without the effect of popularity.

Co-occurrence counts say which items users touch together or next. They are large for any two popular items, and for
two items between which a third one mediates. The associations of this module remove the first effect (`shrunk_lift`),
or both (`partial_weights`), and so say which items are alike.

All functions process anchors in blocks, so that memory does not grow with the number of co-occurring pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse
from threadpoolctl import threadpool_limits

BLOCK_CELLS = 2**23
"""Number of co-occurring pairs in one block, approximately."""

NUM_NEIGHBORS = 200
"""Items on which an anchor is regressed. On MovieLens 100k, 100 find fewer films of a series, 400 a few more."""
DENSE_ITEMS = 8_192
"""Largest catalog whose common users are counted once for all items: 256 MiB."""

NEIGHBOR_SHRINKAGE = 10.0
"""Shrinkage of the cosine that selects these items."""


def shrunk_lift(
    interactions: sparse.csr_array, shrinkage: float, max_positives: int, anchors: NDArray[np.integer] | None = None
) -> sparse.csr_array:
    """Return how much more often two items have common users than their popularity explains.

    The lift of items i and j is c n / (c_i c_j), with the numbers of users n, of common users c, and of users of each
    item c_i and c_j. It is 1 for independent items. A lift of few common users is unreliable, so it is multiplied by
    c / (c + shrinkage).

    Args:
        interactions: whether a user interacted with an item, 0 or 1, [num_users, num_items].
        shrinkage: number of common users at which the lift is halved.
        max_positives: number of largest values kept for each anchor.
        anchors: item numbers of the anchors, [n]; None for all items.

    Returns:
        float32 [n, num_items], 0 for the anchor itself; column indices are sorted.
    """
    num_users = interactions.shape[0]
    counts = _item_counts(interactions)
    blocks = []
    for block, shared in _shared_users_by_block(interactions, anchors):
        row = np.repeat(block, np.diff(shared.indptr))
        common = shared.data.astype(np.float64)
        lift = common * num_users / (counts[row] * counts[shared.indices])
        shared.data = (lift * common / (common + shrinkage)).astype(np.float32)
        blocks.append(_largest(shared, max_positives))
    return sparse.vstack(blocks, format="csr", dtype=np.float32)


def partial_weights(
    interactions: sparse.csr_array,
    penalty: float,
    power: float,
    max_positives: int,
    anchors: NDArray[np.integer] | None = None,
) -> sparse.csr_array:
    """Return the direct association of items: what one says about another beyond what its other neighbors say.

    Each anchor is regressed on its `NUM_NEIGHBORS` nearest items by shrunk cosine, with an L2 penalty: the weights
    solve (G + penalty I) w = g, where G has the numbers of common users of two neighbors, and g those of the anchor and
    each neighbor. This is EASE (Steck, 2019, arXiv 1905.03375) within a neighborhood; its cost per anchor does not
    depend on the size of the catalog. Positive weights to the power `power` are kept: small ones are mostly noise.

    Args:
        interactions: whether a user interacted with an item, 0 or 1, [num_users, num_items].
        penalty: L2 penalty of the regression, above 0.
        power: exponent of the weights.
        max_positives: number of largest weights kept for each anchor.
        anchors: item numbers of the anchors, [n]; None for all items.

    Returns:
        float32 [n, num_items], 0 for the anchor itself; column indices are sorted. The rows with any weight sum to 1.
    """
    root = np.sqrt(_item_counts(interactions))
    count_common = _CommonUsers(interactions)
    blocks = []
    for block, shared in _shared_users_by_block(interactions, anchors):
        row = np.repeat(block, np.diff(shared.indptr))
        cosine = sparse.csr_array(
            (shared.data / (root[row] * root[shared.indices] + NEIGHBOR_SHRINKAGE), shared.indices, shared.indptr),
            shape=shared.shape,
        )
        nearest = _largest(cosine, NUM_NEIGHBORS)
        weights = np.zeros(nearest.nnz, np.float32)
        with threadpool_limits(1, "blas"):  # the matrices are too small for several threads, which wait for each other
            for number in range(len(block)):
                cells = slice(nearest.indptr[number], nearest.indptr[number + 1])
                neighbors = nearest.indices[cells]
                if len(neighbors):
                    common = count_common(np.append(neighbors, block[number])).astype(np.float64)
                    weights[cells] = _ridge_weights(common[:-1, :-1], common[:-1, -1], penalty)
        nearest.data = np.maximum(weights, 0) ** power
        nearest.eliminate_zeros()
        blocks.append(normalize_rows(_largest(nearest, max_positives)))
    return sparse.vstack(blocks, format="csr", dtype=np.float32)


def _ridge_weights(gram: NDArray[np.float64], target: NDArray[np.float64], penalty: float) -> NDArray[np.float64]:
    """Return the solution w of (gram + penalty I) w = target, [n]; `gram` is modified."""
    gram[np.diag_indices_from(gram)] += penalty
    factor = linalg.cho_factor(gram, check_finite=False)  # `linalg.solve` also estimates the condition
    weights: NDArray[np.float64] = linalg.cho_solve(factor, target, check_finite=False)
    return weights


class _CommonUsers:
    """Number of common users of any two of some items, [n, n]; of one item on the diagonal.

    Looked up in a dense matrix of all items of a small catalog, and counted for a large one.
    """

    def __init__(self, interactions: sparse.csr_array) -> None:
        interactions = interactions.astype(np.float32)
        self._by_item = interactions.tocsc()
        self._number = np.empty(interactions.shape[0], np.int32)
        self._all: NDArray[np.float32] | None = None
        if interactions.shape[1] <= DENSE_ITEMS:
            self._all = (interactions.T @ interactions).toarray()

    def __call__(self, items: NDArray[np.int32]) -> NDArray[np.float32]:
        if self._all is not None:
            return self._all[np.ix_(items, items)]
        columns = self._by_item[:, items]
        # numbers of these users in the order of their last cells: a matrix of all users would take longer to create
        self._number[columns.indices] = np.arange(columns.nnz, dtype=np.int32)
        by_user = sparse.csc_array(
            (columns.data, self._number[columns.indices], columns.indptr), shape=(columns.nnz, len(items))
        ).tocsr()
        counts: NDArray[np.float32] = (by_user.T @ by_user).toarray()
        return counts


def _item_counts(interactions: sparse.csr_array) -> NDArray[np.float64]:
    return np.asarray(interactions.sum(axis=0, dtype=np.float64)).ravel()


def _shared_users_by_block(
    interactions: sparse.csr_array, anchors: NDArray[np.integer] | None
) -> Iterator[tuple[NDArray[np.integer], sparse.csr_array]]:
    """Yield blocks of anchors, and the number of users that they share with each other item, [len(block), num_items].

    A block has about `BLOCK_CELLS` pairs, or one anchor.
    """
    interactions = interactions.astype(np.float32)
    by_item = interactions.T.tocsr()
    if anchors is None:
        anchors = np.arange(interactions.shape[1])
    # an upper limit of the number of pairs of each anchor: the interactions of its users
    pairs = (by_item @ np.diff(interactions.indptr).astype(np.float64))[anchors]
    number = np.cumsum(pairs) // BLOCK_CELLS
    starts = [0, *(np.flatnonzero(np.diff(number)) + 1).tolist(), len(anchors)]
    for start, stop in pairwise(starts):
        block = anchors[start:stop]
        shared = (by_item[block] @ interactions).tocsr()
        shared.data[np.repeat(block, np.diff(shared.indptr)) == shared.indices] = 0
        shared.eliminate_zeros()
        yield block, shared


def _largest(matrix: sparse.csr_array, k: int) -> sparse.csr_array:
    """Return the `k` largest values of each row, ties to the smaller column; columns are sorted."""
    matrix.sort_indices()
    kept = np.ones(matrix.nnz, np.bool_)
    for row in np.flatnonzero(np.diff(matrix.indptr) > k):
        cells = slice(matrix.indptr[row], matrix.indptr[row + 1])
        values = matrix.data[cells]
        smallest = np.partition(values, -k)[-k]
        kept[cells] = values > smallest
        ties = np.flatnonzero(values == smallest)[: k - np.count_nonzero(kept[cells])]
        kept[matrix.indptr[row] + ties] = True
    indptr = np.concatenate([[0], np.cumsum(kept)])[matrix.indptr]
    return sparse.csr_array((matrix.data[kept], matrix.indices[kept], indptr), shape=matrix.shape)


def normalize_rows(matrix: sparse.csr_array) -> sparse.csr_array:
    """Return the rows scaled to the sum 1, float32; rows of zeros stay zeros."""
    total = np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()
    scale = np.repeat(np.where(total > 0, total, 1), np.diff(matrix.indptr))
    return sparse.csr_array(((matrix.data / scale).astype(np.float32), matrix.indices, matrix.indptr), matrix.shape)
