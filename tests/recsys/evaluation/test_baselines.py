from itertools import pairwise

import numpy as np
import pytest
from scipy import sparse

from recsys.data import splits
from recsys.data.sequences import Sequences
from recsys.data.splits import Split
from recsys.evaluation import scoring
from recsys.evaluation.baselines import (
    Content,
    CoOccurrence,
    Ease,
    ItemKNN,
    Popularity,
    WindowedItemKNN,
    interaction_matrix,
    shared_users,
)
from recsys.evaluation.scoring import NeighborhoodModel, ScoringModel
from recsys.index.queries import Queries
from recsys.testing.neighbors_contract import NeighborsContract, build_queries, histories

NUM_USERS, NUM_ITEMS, MANY_ITEMS = 23, 9, 50
COUNTS = np.array([3, 0, 7, 7, 1, 0, 2, 9, 3])


def user_items(seed=0, num_users=NUM_USERS, num_items=NUM_ITEMS):
    """Return a dense matrix of users and items. Items have different popularity; the last one has no users."""
    rng = np.random.default_rng(seed)
    dense = (rng.random((num_users, num_items)) < rng.uniform(0.1, 0.6, num_items)).astype(np.float32)
    dense[:, -1] = 0
    return dense


def pair_weights(seed=0, num_items=NUM_ITEMS, *, directed=False):
    """Return a dense matrix of pair weights; the last item has no pairs."""
    rng = np.random.default_rng(seed)
    dense = rng.choice([0, 0.5, 1, 1.5, 7], (num_items, num_items), p=[0.5, 0.2, 0.1, 0.1, 0.1]).astype(np.float32)
    dense = dense if directed else dense + dense.T
    np.fill_diagonal(dense, 0)
    dense[-1] = dense[:, -1] = 0
    return dense


def attributes(seed=0, num_items=NUM_ITEMS, size=5):
    """Return a dense matrix of items and attribute weights; the last item has no attributes."""
    rng = np.random.default_rng(seed)
    dense = (rng.random((num_items, size)) < 0.5) * np.linspace(0.5, 2, size)
    dense[-1] = 0
    return dense


def count_shared_users(dense):
    return shared_users(sparse.csr_array(dense))


def naive_counts(dense):
    """Return the number of users of each pair of items, by loops."""
    users, items = dense.shape
    counts = np.zeros((items, items))
    for left in range(items):
        for right in range(items):
            counts[left, right] = sum(dense[user, left] * dense[user, right] for user in range(users))
    return counts


def naive_co_occurrence(dense):
    counts = naive_counts(dense)
    np.fill_diagonal(counts, 0)
    return counts


def naive_item_knn(dense, shrinkage):
    counts = naive_counts(dense)
    scores = np.zeros_like(counts)
    for left in range(len(counts)):
        for right in range(len(counts)):
            if left != right and counts[left, right]:
                norms = np.sqrt(dense[:, left].sum()) * np.sqrt(dense[:, right].sum())
                scores[left, right] = counts[left, right] / (norms + shrinkage)
    return scores


def naive_windowed(dense, shrinkage):
    scores = np.zeros(dense.shape)
    for left in range(len(dense)):
        for right in range(len(dense)):
            if dense[left, right]:
                norms = np.sqrt(sum(dense[left, :].tolist()) * sum(dense[:, right].tolist()))
                scores[left, right] = dense[left, right] / (norms + shrinkage)
    return scores


def naive_ease(dense, penalty):
    """Return the ridge regression of each item on all others: least squares with a row sqrt(penalty) per weight."""
    items = dense.shape[1]
    weights = np.zeros((items, items))
    for target in range(items):
        predictors = [item for item in range(items) if item != target]
        rows = np.vstack([dense[:, predictors], np.sqrt(penalty) * np.eye(len(predictors))])
        goal = np.concatenate([dense[:, target], np.zeros(len(predictors))])
        weights[predictors, target] = np.linalg.lstsq(rows.astype(np.float64), goal, rcond=None)[0]
    return weights


def naive_content(dense):
    items = len(dense)
    scores = np.zeros((items, items))
    for left in range(items):
        for right in range(items):
            product = sum(a * b for a, b in zip(dense[left], dense[right], strict=True))
            if product:
                scores[left, right] = product / np.sqrt((dense[left] ** 2).sum() * (dense[right] ** 2).sum())
    return scores


MODELS = {
    "co-occurrence": lambda: (CoOccurrence(count_shared_users(user_items())), naive_co_occurrence(user_items())),
    "item knn": lambda: (ItemKNN(count_shared_users(user_items())), naive_item_knn(user_items(), 0)),
    "item knn 3.5": lambda: (ItemKNN(count_shared_users(user_items()), 3.5), naive_item_knn(user_items(), 3.5)),
    "windowed": lambda: (
        WindowedItemKNN(sparse.csr_array(pair_weights())),
        naive_windowed(pair_weights(), 0),
    ),
    "windowed directed 20": lambda: (
        WindowedItemKNN(sparse.csr_array(pair_weights(directed=True)), 20.0),
        naive_windowed(pair_weights(directed=True), 20),
    ),
    "ease": lambda: (Ease(count_shared_users(user_items()), 2.5), naive_ease(user_items(), 2.5)),
    "content": lambda: (Content(sparse.csr_array(attributes())), naive_content(attributes())),
    "content popularity": lambda: (Content(sparse.csr_array(attributes()), COUNTS), naive_content(attributes())),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("k", [1, 4, 9], ids="k={}".format)
def test_returns_the_largest_weighted_sums(name, k):
    """Compares the scores at each rank, which do not depend on the order of ties."""
    model, scores = MODELS[name]()
    rows = [*histories(NUM_ITEMS), *([(number, 1.0)] for number in range(NUM_ITEMS))]
    answers = model.top_k(build_queries(rows), k).tolist()
    for row, answer in zip(rows, answers, strict=True):
        total = [sum(weight * scores[item, candidate] for item, weight in row) for candidate in range(NUM_ITEMS)]
        allowed = [total[candidate] for candidate in range(NUM_ITEMS) if candidate not in {item for item, _ in row}]
        best = sorted((score for score in allowed if score > 1e-6), reverse=True)[:k]
        returned = [total[number] for number in answer if number != -1]
        np.testing.assert_allclose(returned, best, rtol=1e-4)


def naive_rank(scores, order, query, target, k):
    """Return the number of allowed items before the target: a higher score, or an equal score and a lower order."""
    row, excluded = query
    total = sum((weight * scores[item] for item, weight in row), np.zeros(len(scores))).astype(np.float32)
    if target in excluded or not total[target] > 0:
        return k
    rank = 0
    for item in range(len(scores)):
        is_before = total[item] > total[target] or (total[item] == total[target] and order[item] < order[target])
        rank += is_before and item not in excluded
    return min(rank, k)


def scores_with_ties(num_items=MANY_ITEMS):
    """Return scores with many ties. They are multiples of 1/4, so sums are exact in any order."""
    rng = np.random.default_rng(5)
    return rng.choice([0, 0.25, 1, 4], (num_items, num_items), p=[0.6, 0.2, 0.15, 0.05])


class SparseScores(NeighborhoodModel):
    """Model with fixed scores; columns of a row are unordered, and ties are ordered by descending item number."""

    DENSE_SHARE = 1.0

    def __init__(self, dense):
        super().__init__(sparse.csr_array(dense))
        self.tie_order = np.arange(self.num_items)[::-1]

    def scores(self, queries):
        rows = super().scores(queries)
        shuffled = [np.random.default_rng(6).permutation(np.arange(*ends)) for ends in pairwise(rows.indptr)]
        order = np.concatenate([*shuffled, np.empty(0, np.int64)]).astype(np.int64)
        return sparse.csr_array((rows.data[order], rows.indices[order], rows.indptr), shape=rows.shape)


class DenseScores(ScoringModel):
    """Model with fixed scores in a dense array, some of them negative."""

    def __init__(self, dense):
        super().__init__(len(dense))
        self.dense = dense.astype(np.float32)
        self.tie_order = np.arange(self.num_items)[::-1]

    def scores(self, queries):
        return np.asarray(queries.astype(np.float32) @ self.dense)


def edge_case_queries(num_items=MANY_ITEMS, n=300):
    """Return rows of 0 to 5 (item, weight) with duplicates, excluded items that can differ from them, and targets."""
    rng = np.random.default_rng(7)
    rows = [
        [(item, 0.5 ** rng.integers(0, 4)) for item in rng.integers(0, num_items, size % 6).tolist()]
        for size in range(n)
    ]
    excluded = [
        [*(item for item, _ in row[:2]), *rng.integers(0, num_items, rng.integers(0, 9)).tolist()] for row in rows
    ]
    return rows, excluded, rng.integers(0, num_items, n).astype(np.int32)


@pytest.mark.parametrize("cells", [1, 7 * MANY_ITEMS + 3, scoring.CELLS], ids=["one row", "seven rows", "all rows"])
@pytest.mark.parametrize("k", [1, 6, MANY_ITEMS + 3], ids="k={}".format)
@pytest.mark.parametrize("kind", [SparseScores, DenseScores])
def test_ranks_agree_with_naive_ranks_and_top_k(monkeypatch, kind, k, cells):
    monkeypatch.setattr(scoring, "CELLS", cells)
    scores = scores_with_ties()
    if kind is DenseScores:
        scores = scores - 0.5 * (np.random.default_rng(9).random(scores.shape) < 0.1)
    model = kind(scores)
    rows, excluded, targets = edge_case_queries()
    expected = [
        naive_rank(scores, model.tie_order, query, target, k)
        for *query, target in zip(rows, excluded, targets.tolist(), strict=True)
    ]
    queries = build_queries(rows, excluded)
    assert model.ranks(queries, targets, k).tolist() == expected
    answers = model.top_k(queries, k).tolist()
    ranks = [answer.index(target) if target in answer else k for answer, target in zip(answers, targets, strict=True)]
    assert expected == ranks
    assert k == 1 or len({*expected}) > 5
    assert k in expected


@pytest.mark.parametrize("name", MODELS)
def test_no_queries_and_empty_queries_have_no_ranks(name):
    """Queries without items, or without weights, return nothing."""
    model, _ = MODELS[name]()
    assert model.ranks(build_queries([]), np.empty(0, np.int32), 3).shape == (0,)
    empty = build_queries([[], [(1, 0.0)], []])
    assert model.ranks(empty, np.array([0, 2, 1], np.int32), 3).tolist() == [3, 3, 3]


@pytest.mark.parametrize("excluded", [[], [2], [4, 2, 4, 1]], ids=str)
def test_ranks_the_last_item_of_a_result(excluded):
    """The result is items 1 to 6, in this order."""
    scores = np.zeros((7, 7))
    scores[0] = np.arange(7)[::-1] + 1
    scores[0, 0] = 0
    model = NeighborhoodModel(sparse.csr_array(scores))
    ranking = [item for item in range(1, 7) if item not in excluded]
    for k in range(1, 8):
        expected = [min(ranking.index(target), k) if target in ranking else k for target in range(7)]
        queries = build_queries([[(0, 1.0)]] * 7, [excluded] * 7)
        assert model.ranks(queries, np.arange(7, dtype=np.int32), k).tolist() == expected


def test_a_tie_does_not_change_the_rank_of_the_target():
    """Item 3 has a higher score than item 2 in float64, but in float32 they are equal and item 2 is first."""
    scores = np.zeros((5, 5))
    scores[0, 2], scores[1, 2], scores[0, 3] = 0.1, 0.2, 0.3 + 1e-10
    queries = build_queries([[(0, 1.0), (1, 1.0)]] * 2, [[], []])
    assert NeighborhoodModel(sparse.csr_array(scores)).ranks(queries, np.array([2, 3], np.int32), 1).tolist() == [0, 1]


def shared_users_with_ties():
    """Return counts for many items and few users, so neighbors have many ties."""
    return count_shared_users(user_items(num_items=MANY_ITEMS))


class TestPopularity(NeighborsContract):
    @pytest.fixture
    def num_items(self):
        return NUM_ITEMS

    @pytest.fixture
    def model(self):
        return Popularity(COUNTS)


class TestScored(NeighborsContract):
    @pytest.fixture
    def num_items(self):
        return MANY_ITEMS

    @pytest.fixture(
        params=[
            lambda: CoOccurrence(shared_users_with_ties()),
            lambda: ItemKNN(shared_users_with_ties()),
            lambda: ItemKNN(shared_users_with_ties(), 50.0),
            lambda: WindowedItemKNN(sparse.csr_array(pair_weights(num_items=MANY_ITEMS)), 10.0),
            lambda: Ease(shared_users_with_ties(), 5.0),
            lambda: Content(sparse.csr_array(attributes(num_items=MANY_ITEMS))),
            lambda: Content(sparse.csr_array(attributes(num_items=MANY_ITEMS)), np.arange(MANY_ITEMS) % 7),
        ],
        ids=["co-occurrence", "knn", "knn 50", "windowed", "ease", "content", "content popularity"],
    )
    def model(self, request):
        return request.param()


def test_popularity_returns_the_most_popular_items_ties_by_number():
    model = Popularity(np.array([3, 0, 7, 7, 1]))
    assert model.top_k(Queries.from_items(np.array([0, 2, 3, 1], np.int32)), 3).tolist() == [
        [2, 3, 4],
        [3, 0, 4],
        [2, 0, 4],
        [2, 3, 0],
    ]


def test_popularity_returns_k_items():
    """Also items without interactions, and after many exclusions."""
    model = Popularity(np.array([3, 0, 7, 7, 1]))
    queries = build_queries([[(1, 1.0)], [(4, 1.0)]], [[2, 3, 0], []])
    assert model.top_k(queries, 3).tolist() == [[4, 1, -1], [2, 3, 0]]


@pytest.mark.parametrize("dtype", [np.uint32, np.int64, np.float32])
def test_counts_can_be_of_any_type(dtype):
    """An unsigned 0 must not become the largest number when it is negated."""
    counts = np.array([0, 2, 1], dtype)
    query = build_queries([[(0, 1.0)]], [[]])
    assert Popularity(counts).top_k(query, 3).tolist() == [[1, 2, 0]]
    assert Content(sparse.csr_array(np.ones((3, 1))), counts).top_k(query, 3).tolist() == [[1, 2, 0]]


def test_shared_users_counts_users():
    dense = user_items()
    np.testing.assert_array_equal(count_shared_users(dense).toarray(), naive_counts(dense))


def test_ties_go_by_item_number():
    """One user has all items, so all neighbors have equal scores."""
    dense = np.array([[1, 1, 1, 1, 1]], np.float32)
    query = Queries.from_items(np.array([2], np.int32))
    for model in (
        CoOccurrence(count_shared_users(dense)),
        ItemKNN(count_shared_users(dense)),
        Ease(count_shared_users(dense), 1.0),
    ):
        assert model.top_k(query, 3).tolist() == [[0, 1, 3]]


def test_items_without_shared_users_are_not_returned():
    dense = np.array([[1, 1, 0, 0], [0, 0, 1, 0], [1, 1, 0, 0]], np.float32)
    queries = Queries.from_items(np.arange(4, dtype=np.int32))
    for model in (
        CoOccurrence(count_shared_users(dense)),
        ItemKNN(count_shared_users(dense)),
        Ease(count_shared_users(dense), 1.0),
    ):
        assert model.top_k(queries, 2).tolist() == [[1, -1], [0, -1], [-1, -1], [-1, -1]]


def test_shrinkage_prefers_items_with_many_shared_users():
    """Item 0 shares one user with item 1, which has one user, and three users with item 2, which has ten."""
    dense = np.array([[1, 1, 1], [1, 0, 1], [1, 0, 1]] + [[0, 0, 1]] * 7, np.float32)
    query = Queries.from_items(np.array([0], np.int32))
    assert ItemKNN(count_shared_users(dense)).top_k(query, 1).item() == 1
    assert ItemKNN(count_shared_users(dense), 50.0).top_k(query, 1).item() == 2


def test_directed_pairs_score_in_one_direction():
    """Item 1 follows item 0; no item follows item 1."""
    model = WindowedItemKNN(sparse.csr_array(np.array([[0, 2], [0, 0]], np.float32)))
    assert model.top_k(Queries.from_items(np.array([0, 1], np.int32)), 1).tolist() == [[1], [-1]]


@pytest.mark.parametrize("penalty", [0.5, 30.0], ids="penalty {}".format)
def test_ease_solves_the_least_squares_problem(penalty):
    model = Ease(count_shared_users(user_items()), penalty)
    np.testing.assert_allclose(model.matrix, naive_ease(user_items(), penalty), atol=1e-5)
    assert model.matrix.dtype == np.float32
    assert (np.diagonal(model.matrix) == 0).all()


def test_ease_does_not_return_negative_scores():
    """All users have item 2; no user has both item 0 and item 1."""
    dense = np.array([[1, 0, 1], [1, 0, 1], [0, 1, 1], [0, 1, 1]], np.float32)
    model = Ease(count_shared_users(dense), 0.1)
    assert model.matrix[0, 1] < 0
    assert model.top_k(Queries.from_items(np.array([0], np.int32)), 3).tolist() == [[2, -1, -1]]


def test_content_ignores_interactions_by_default():
    """Items 1, 2 and 3 have the attribute of item 0, and item 2 is the most popular of them; 4 has another one."""
    bags = sparse.csr_array(np.array([[1, 0], [1, 0], [1, 0], [1, 0], [0, 1]], np.float64))
    query = Queries.from_items(np.array([0], np.int32))
    assert Content(bags).top_k(query, 4).tolist() == [[1, 2, 3, -1]]
    assert Content(bags, np.array([9, 4, 8, 4, 9])).top_k(query, 4).tolist() == [[2, 1, 3, -1]]
    assert Content(bags, np.array([9, 4, 8, 4, 9])).top_k(query, 1).tolist() == [[2]]


def test_popularity_only_breaks_ties():
    """Item 1 has both attributes of item 0; the most popular item 2 has one of them."""
    bags = sparse.csr_array(np.array([[1, 1], [1, 1], [1, 0]], np.float64))
    query = Queries.from_items(np.array([0], np.int32))
    assert Content(bags, np.array([0, 1, 99])).top_k(query, 2).tolist() == [[1, 2]]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("cells", [1, 4 * NUM_ITEMS + 1], ids=["one row", "four rows"])
def test_query_blocks_do_not_change_the_result(monkeypatch, name, cells):
    model, _ = MODELS[name]()
    queries = build_queries([*histories(NUM_ITEMS), *histories(NUM_ITEMS)])
    expected = model.top_k(queries, 4)
    monkeypatch.setattr(scoring, "CELLS", cells)
    np.testing.assert_array_equal(model.top_k(queries, 4), expected)


@pytest.mark.parametrize("name", ["co-occurrence", "item knn 3.5", "windowed directed 20"])
def test_stored_zeros_do_not_change_the_result(monkeypatch, name):
    results = []
    for share in (0.0, 1.0):
        monkeypatch.setattr(scoring.NeighborhoodModel, "DENSE_SHARE", share)
        model, _ = MODELS[name]()
        assert isinstance(model.matrix, np.ndarray) == (share == 0)
        queries = build_queries(histories(NUM_ITEMS))
        targets = np.arange(len(queries), dtype=np.int32) % NUM_ITEMS
        results.append((model.top_k(queries, 4), model.ranks(queries, targets, 4)))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("test", [[1, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]),
        ("validation", [[1, 1, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]),
    ],
)
def test_interaction_matrix_has_the_training_data_for_the_target(monkeypatch, target, expected):
    """Repeated interactions count once; users with two interactions keep both, unless they are held out."""
    monkeypatch.setattr(splits, "held_out_users", lambda ids: np.array([user == "b" for user in ids]))
    log = [[0, 1, 0, 2, 4], [1, 2], [2, 2, 2, 2], []]
    items = np.array([item for sequence in log for item in sequence], np.int32)
    times = np.arange(len(items), dtype=np.float64)
    sequences = Sequences(["a", "b", "c", "d"], items, np.cumsum([0, *map(len, log)]), times)
    matrix = interaction_matrix(Split(sequences), target, 5)
    assert matrix.toarray().tolist() == expected
    assert matrix.dtype == np.float32
