import numpy as np
import pytest
from scipy import sparse

from recsys.baselines import BLOCK, ItemKNN, Popularity, touched_before
from recsys.sequences import Sequences
from tests.contracts.neighbours import NeighboursContract

NUM_USERS, NUM_ITEMS = 23, 9


def touched(seed=0, num_users=NUM_USERS, num_items=NUM_ITEMS):
    """Users' items, dense; nobody touched the last one, and every row has its own number of them."""
    rng = np.random.default_rng(seed)
    dense = (rng.random((num_users, num_items)) < rng.uniform(0.1, 0.6, num_items)).astype(np.float32)
    dense[:, -1] = 0
    return dense


def naive_scores(dense, *, cosine, shrinkage):
    """Count the users of both items, pair by pair."""
    users, items = dense.shape
    scores = np.zeros((items, items))
    for one in range(items):
        for other in range(items):
            together = sum(dense[user, one] * dense[user, other] for user in range(users))
            if cosine and together:
                norms = np.sqrt(dense[:, one].sum()) * np.sqrt(dense[:, other].sum())
                together = together / (norms + shrinkage)
            scores[one, other] = together
    np.fill_diagonal(scores, 0)
    return scores


def weighted(scores, numbers, answers):
    """Scores of the answers, 0 for padding: independent of the choice among equals."""
    return [
        [scores[number, other] if other >= 0 else 0 for other in row]
        for number, row in zip(numbers, answers.tolist(), strict=True)
    ]


MANY_ITEMS = 50


def with_ties():
    """Far more items than counts: many are equally good neighbours."""
    return sparse.csr_array(touched(num_items=MANY_ITEMS))


class TestPopularity(NeighboursContract):
    @pytest.fixture
    def num_items(self):
        return NUM_ITEMS

    @pytest.fixture
    def model(self):
        return Popularity(np.array([3, 0, 7, 7, 1, 0, 2, 9, 3], np.float32))


class TestItemKNN(NeighboursContract):
    @pytest.fixture
    def num_items(self):
        return MANY_ITEMS

    @pytest.fixture(params=[0.0, 50.0], ids="shrinkage {}".format)
    def model(self, request):
        return ItemKNN(with_ties(), cosine=True, shrinkage=request.param)


class TestCooccurrence(NeighboursContract):
    @pytest.fixture
    def num_items(self):
        return MANY_ITEMS

    @pytest.fixture
    def model(self):
        return ItemKNN(with_ties(), cosine=False)


def test_popularity_names_the_most_touched_others_ties_by_number():
    model = Popularity(np.array([3, 0, 7, 7, 1], np.float32))
    assert model.neighbours(np.array([0, 2, 3, 1], np.int32), 3).tolist() == [
        [2, 3, 4],
        [3, 0, 4],
        [2, 0, 4],
        [2, 3, 0],
    ]


@pytest.mark.parametrize(
    ("cosine", "shrinkage"), [(False, 0.0), (True, 0.0), (True, 3.5), (True, 100.0)], ids=["count", "0", "3.5", "100"]
)
@pytest.mark.parametrize("k", [2, 4, 9], ids="k={}".format)
def test_item_knn_finds_the_largest_scores(cosine, shrinkage, k):
    dense = touched()
    numbers = np.array([5, 0, 8, 3, 3], np.int32)
    answers = ItemKNN(sparse.csr_array(dense), cosine=cosine, shrinkage=shrinkage).neighbours(numbers, k)
    scores = naive_scores(dense, cosine=cosine, shrinkage=shrinkage)
    expected = [sorted(scores[number], reverse=True)[:k] for number in numbers]
    np.testing.assert_allclose(weighted(scores, numbers, answers), expected, rtol=1e-5)


def test_items_that_no_user_shares_are_no_neighbours():
    dense = np.array([[1, 1, 0, 0], [0, 0, 1, 0], [1, 1, 0, 0]], np.float32)
    answers = ItemKNN(sparse.csr_array(dense), cosine=True).neighbours(np.arange(4, dtype=np.int32), 2)
    assert answers.tolist() == [[1, -1], [0, -1], [-1, -1], [-1, -1]]


def test_shrinkage_prefers_what_many_users_share():
    """Items 0 and 1 share the only user of 1; items 0 and 2 share three users of five."""
    dense = np.array(
        [[1, 1, 1], [1, 0, 1], [1, 0, 1], [0, 0, 1], [0, 0, 1]] + [[0, 0, 1]] * 5,
        np.float32,
    )
    query = np.array([0], np.int32)
    near = ItemKNN(sparse.csr_array(dense), cosine=True).neighbours(query, 1)
    trusted = ItemKNN(sparse.csr_array(dense), cosine=True, shrinkage=50.0).neighbours(query, 1)
    assert (near.item(), trusted.item()) == (1, 2)


def test_more_queries_than_a_block_are_answered_alike():
    model = ItemKNN(sparse.csr_array(touched()), cosine=True)
    queries = np.resize(np.arange(NUM_ITEMS, dtype=np.int32), BLOCK + 5)
    each = model.neighbours(np.arange(NUM_ITEMS, dtype=np.int32), 4)
    np.testing.assert_array_equal(model.neighbours(queries, 4), each[queries])


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("test", [[1, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]),
        ("validation", [[1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]),
    ],
)
def test_touched_before_is_what_comes_before_the_target(target, expected):
    """An item touched twice is touched; users with two interactions keep them."""
    log = [[0, 1, 0, 2, 4], [1, 2], [2, 2, 2, 2], []]
    items = np.array([item for own in log for item in own], np.int32)
    sequences = Sequences(["a", "b", "c", "d"], items, np.cumsum([0, *map(len, log)]))
    matrix = touched_before(sequences, target, 5)
    assert matrix.toarray().tolist() == expected
    assert matrix.dtype == np.float32
