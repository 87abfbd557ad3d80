import numpy as np
import pytest
from scipy import sparse

from recsys.data import association
from recsys.data.association import partial_weights, shrunk_lift

NUM_USERS, NUM_ITEMS = 31, 13


def user_items(seed=0, num_users=NUM_USERS, num_items=NUM_ITEMS):
    """Return whether users interacted with items, dense. Items have different popularity; item 4 has no users."""
    rng = np.random.default_rng(seed)
    dense = (rng.random((num_users, num_items)) < rng.uniform(0.1, 0.7, num_items)).astype(np.float32)
    dense[:, 4] = 0
    return dense


def matrix(dense):
    return sparse.csr_array(dense)


@pytest.fixture(params=[(1, 0), (40, 100), (10_000, 0)], ids=["many blocks", "dense counts", "one block"])
def blocks(request, monkeypatch):
    block_cells, dense_items = request.param
    monkeypatch.setattr(association, "BLOCK_CELLS", block_cells)
    monkeypatch.setattr(association, "DENSE_ITEMS", dense_items)


def naive_lift(dense, shrinkage):
    users = [{user for user in range(len(dense)) if dense[user, item]} for item in range(dense.shape[1])]
    result = np.zeros((len(users), len(users)))
    for i, users_i in enumerate(users):
        for j, users_j in enumerate(users):
            common = len(users_i & users_j)
            if i != j and common:
                lift = (common / len(dense)) / (len(users_i) / len(dense) * len(users_j) / len(dense))
                result[i, j] = lift * common / (common + shrinkage)
    return result


def naive_partial(dense, penalty, num_neighbors, shrinkage):
    """Return the regression weights of each item on its nearest items, by least squares on the interactions."""
    norms = np.linalg.norm(dense.astype(float), axis=0)
    result = np.zeros((dense.shape[1], dense.shape[1]))
    for item in range(dense.shape[1]):
        common = dense.T @ dense[:, item]
        cosine = common / (norms * norms[item] + shrinkage)
        cosine[item] = 0
        neighbors = [n for n in np.argsort(-cosine, kind="stable")[:num_neighbors] if cosine[n] > 0]
        if neighbors:
            features = np.vstack([dense[:, neighbors], np.sqrt(penalty) * np.eye(len(neighbors))])
            target = np.concatenate([dense[:, item], np.zeros(len(neighbors))])
            result[item, neighbors] = np.linalg.lstsq(features, target, rcond=None)[0]
    return result


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("shrinkage", [0.0, 2.5])
def test_lift_equals_naive_probabilities(shrinkage):
    dense = user_items()
    lift = shrunk_lift(matrix(dense), shrinkage, max_positives=NUM_ITEMS)
    assert lift.dtype == np.float32
    np.testing.assert_allclose(lift.toarray(), naive_lift(dense, shrinkage), rtol=1e-5)


def test_lift_of_independent_items_is_1():
    dense = np.array([[user < 30, user % 2 == 0] for user in range(60)], np.float32)
    np.testing.assert_allclose(shrunk_lift(matrix(dense), 0, 2).toarray(), [[0, 1], [1, 0]])


def test_shrinkage_halves_the_lift_of_as_many_common_users():
    dense = user_items()
    plain, shrunk = (shrunk_lift(matrix(dense), value, NUM_ITEMS).toarray() for value in (0, 4))
    common = dense.T @ dense
    np.fill_diagonal(common, 0)
    assert (common == 4).any()
    np.testing.assert_allclose(shrunk[common == 4], plain[common == 4] / 2, rtol=1e-6)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("num_neighbors", [3, 200])
def test_partial_weights_equal_naive_least_squares(monkeypatch, num_neighbors):
    monkeypatch.setattr(association, "NUM_NEIGHBORS", num_neighbors)
    monkeypatch.setattr(association, "NEIGHBOR_SHRINKAGE", 1.7)
    dense = user_items(seed=1)
    weights = partial_weights(matrix(dense), penalty=3.0, power=2.0, max_positives=NUM_ITEMS)
    naive = np.maximum(naive_partial(dense, 3.0, num_neighbors, 1.7), 0) ** 2
    expected = naive / np.where(naive.sum(axis=1, keepdims=True) > 0, naive.sum(axis=1, keepdims=True), 1)
    assert (expected > 0).sum() > NUM_ITEMS
    np.testing.assert_allclose(weights.toarray(), expected, rtol=1e-4, atol=1e-7)


def test_mediated_association_is_removed():
    """Users of 0 and of 2 have in common only that both like 1, so 0 and 2 have a lift but no partial weight."""
    rng = np.random.default_rng(3)
    middle = rng.random(4_000) < 0.5
    first, last = (np.where(middle, rng.random(4_000) < 0.8, rng.random(4_000) < 0.1) for _ in range(2))
    dense = np.stack([first, middle, last], axis=1).astype(np.float32)
    assert shrunk_lift(matrix(dense), 0, 3).toarray()[0, 2] > 1.2
    weights = partial_weights(matrix(dense), penalty=1.0, power=1.0, max_positives=3).toarray()
    assert weights[0, 2] < 0.2
    assert weights[0, 1] > 0.8


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("measure", [shrunk_lift, lambda x, value, k: partial_weights(x, value, 1.0, k)])
def test_keeps_the_largest_values_of_each_item(measure):
    dense = user_items(seed=2)
    every, largest = (measure(matrix(dense), 1.0, k).toarray() for k in (NUM_ITEMS, 3))
    for complete, row in zip(every, largest, strict=True):
        chosen = np.flatnonzero(row)
        assert len(chosen) == min(3, np.count_nonzero(complete))
        assert sorted(complete[chosen]) == sorted(np.sort(complete)[::-1][: len(chosen)])


@pytest.mark.parametrize("measure", [shrunk_lift, lambda x, value, k: partial_weights(x, value, 3.0, k)])
def test_items_without_users_have_no_association(measure):
    association_matrix = measure(matrix(user_items()), 1.0, NUM_ITEMS)
    assert association_matrix.shape == (NUM_ITEMS, NUM_ITEMS)
    assert not association_matrix[[4]].nnz
    assert not association_matrix[:, [4]].nnz
    assert not association_matrix.diagonal().any()
    assert measure(sparse.csr_array((5, 3), dtype=np.float32), 1.0, 3).nnz == 0
