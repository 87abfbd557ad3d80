"""The baselines that every run is compared with: popularity, co-occurrence, ItemKNN, EASE and content.

Each is fitted on the same part of the interactions as the tower, and evaluated through the same interface,
`recsys.evaluation.metrics.Recommender`. To add a baseline, add its class here, derived from a base class in
`recsys.evaluation.scoring`, and list its settings in `recsys.evaluation.baseline_search.baseline_variants`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys.data.sequences import Sequences
from recsys.data.splits import Split, Target
from recsys.evaluation.scoring import Counts, NeighborhoodModel, ScoringModel, allowed_masks, by_count
from recsys.features.tfidf import unit_length_rows
from recsys.index.queries import PADDING, Queries


class Popularity:
    """The items with the most interactions, for every query; ties by item number.

    Args:
        counts: interactions of each item, [num_items].
    """

    def __init__(self, counts: Counts) -> None:
        self.order = by_count(counts)

    def top_k(self, queries: Queries, k: int) -> NDArray[np.int32]:
        """Return the `k` most popular items that are not excluded; int32 [n, k], -1 pads."""
        result = np.full((len(queries), k), PADDING, np.int32)
        candidates = self.order[: k + queries.excluded.shape[1]]  # enough for every query
        for row, allowed in enumerate(allowed_masks(queries.excluded, len(self.order))):
            best = candidates[allowed[candidates]][:k]
            result[row, : len(best)] = best
        return result


class CoOccurrence(NeighborhoodModel):
    """Items with the most users in common.

    Args:
        shared: from `shared_users`, [num_items, num_items].
    """

    def __init__(self, shared: sparse.csr_array) -> None:
        super().__init__(_without_diagonal(shared).tocsr())


class ItemKNN(NeighborhoodModel):
    """Items with users in common, by cosine.

    The score of j for i is c_ij / (|i| |j| + shrinkage), where c_ij is the number of users of both and |i| the
    square root of the number of users of i (Sarwar et al., 2001; shrinkage as in Bell and Koren, 2007).

    Args:
        shared: from `shared_users`, [num_items, num_items].
        shrinkage: added to the product of the norms; larger values reduce the scores of rare items.
    """

    def __init__(self, shared: sparse.csr_array, shrinkage: float = 0.0) -> None:
        norms = np.sqrt(shared.diagonal())
        super().__init__(_shrunk_cosine(_without_diagonal(shared), norms, norms, shrinkage))


class WindowedItemKNN(NeighborhoodModel):
    """Items that users interact with shortly after one another, by the pair weights that the tower is trained on.

    The score of j for i is c_ij / (sqrt(c_i. c_.j) + shrinkage), where c_ij is the weight of the pair, c_i. the
    weight of all pairs of i, and c_.j that of all pairs with j: ItemKNN on pairs within a window.

    Args:
        pairs: from `recsys.data.cooccurrence.to_matrix`, [num_items, num_items].
        shrinkage: added to the product of the norms; larger values reduce the scores of rare items.
    """

    def __init__(self, pairs: sparse.csr_array, shrinkage: float = 0.0) -> None:
        anchors, positives = (np.sqrt(np.asarray(pairs.sum(axis=axis, dtype=np.float64)).ravel()) for axis in (1, 0))
        super().__init__(_shrunk_cosine(_without_diagonal(pairs), anchors, positives, shrinkage))


class Ease(ScoringModel):
    """EASE: the linear model that predicts each item from the others with the least squared error, in closed form.

    With P = (X'X + penalty I)^-1 the weights are B_ij = -P_ij / P_jj, and 0 on the diagonal; the scores of a query
    are the sum of its rows of B (Steck, Embarrassingly Shallow Autoencoders for Sparse Data, 2019,
    arXiv 1905.03375). Fitting inverts a dense float32 matrix: time grows with num_items cubed (2 num_items^3
    operations), memory is three matrices of 4 num_items^2 bytes (5,000 items: 0.3 GB), of which one remains.

    Args:
        shared: from `shared_users`, [num_items, num_items]: the X'X of the formula.
        penalty: L2 penalty of the weights, above 0.
    """

    def __init__(self, shared: sparse.csr_array, penalty: float) -> None:
        super().__init__(shared.shape[0])
        gram = shared.astype(np.float32).toarray()
        np.fill_diagonal(gram, gram.diagonal() + penalty)
        self.matrix = np.linalg.inv(gram)
        self.matrix /= -self.matrix.diagonal().copy()
        np.fill_diagonal(self.matrix, 0)

    def scores(self, queries: sparse.csr_array) -> NDArray[np.float32]:
        """Return the scores of all items, float32 [n, num_items]."""
        return np.asarray(queries.astype(np.float32) @ self.matrix)


class Content(ScoringModel):
    """Items with the same attributes, by cosine; does not use interactions.

    Args:
        attributes: weights of each item's attributes, [num_items, num_attributes]; see `recsys.features.tfidf`.
        popularity: interactions of each item, [num_items], to break ties; without it ties go by item number.
    """

    def __init__(self, attributes: sparse.csr_array, popularity: Counts | None = None) -> None:
        super().__init__(attributes.shape[0], popularity)
        self.normalized = unit_length_rows(attributes)
        self.by_attribute = self.normalized.T.tocsr()

    def scores(self, queries: sparse.csr_array) -> sparse.csr_array:
        """Return the scores of all items, float64 [n, num_items], without computing the item-item matrix."""
        return (queries @ self.normalized) @ self.by_attribute


def interaction_matrix(split: Split, target: Target, num_items: int) -> sparse.csr_array:
    """Return whether users and items interact in the training data for a target, float32 [num_users, num_items]."""
    return user_item_matrix(split.sequences, split.training_mask(target), num_items)


def user_item_matrix(sequences: Sequences, included: NDArray[np.bool_], num_items: int) -> sparse.csr_array:
    """Return whether a user interacted with an item, 0 or 1, float32 [num_users, num_items].

    Args:
        sequences: of all users.
        included: interactions that count, bool [num_interactions].
        num_items: size of the catalog.
    """
    coordinates = (sequences.users[included], sequences.items[included])
    ones = np.ones(int(included.sum()), np.float32)
    matrix = sparse.coo_array((ones, coordinates), shape=(len(sequences), num_items)).tocsr()
    matrix.data[:] = 1  # repeated interactions were summed
    return matrix


def shared_users(interactions: sparse.csr_array) -> sparse.csr_array:
    """Return the number of users of both of two items, float32 [num_items, num_items]; on the diagonal of one item.

    Args:
        interactions: from `interaction_matrix`, float32 [num_users, num_items].
    """
    return (interactions.T @ interactions).tocsr()


def _without_diagonal(matrix: sparse.csr_array) -> sparse.coo_array:
    """Return the matrix without its diagonal, float64."""
    cells = matrix.tocoo()
    off_diagonal = cells.row != cells.col
    coordinates = (cells.row[off_diagonal], cells.col[off_diagonal])
    return sparse.coo_array((cells.data[off_diagonal].astype(np.float64), coordinates), shape=matrix.shape)


def _shrunk_cosine(
    cells: sparse.coo_array, row_norms: NDArray[np.float64], column_norms: NDArray[np.float64], shrinkage: float
) -> sparse.csr_array:
    """Return each cell divided by the product of the norms of its row and column plus the shrinkage."""
    data = cells.data / (row_norms[cells.row] * column_norms[cells.col] + shrinkage)
    return sparse.coo_array((data, (cells.row, cells.col)), shape=cells.shape).tocsr()
