from itertools import pairwise

import numpy as np
import pytest
from scipy import sparse

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
from recsys.testing.neighbors_contract import NeighborsContract, asked, histories

NUM_USERS, NUM_ITEMS, MANY_ITEMS = 23, 9, 50
COUNTS = np.array([3, 0, 7, 7, 1, 0, 2, 9, 3])


def touched(seed=0, num_users=NUM_USERS, num_items=NUM_ITEMS):
    """Users' items, dense; nobody touched the last one, and every row has its own number of them."""
    rng = np.random.default_rng(seed)
    dense = (rng.random((num_users, num_items)) < rng.uniform(0.1, 0.6, num_items)).astype(np.float32)
    dense[:, -1] = 0
    return dense


def pair_weights(seed=0, num_items=NUM_ITEMS, *, directed=False):
    """Weights of item pairs, dense, as a window with a decay gives them; the last item has none."""
    rng = np.random.default_rng(seed)
    dense = rng.choice([0, 0.5, 1, 1.5, 7], (num_items, num_items), p=[0.5, 0.2, 0.1, 0.1, 0.1]).astype(np.float32)
    dense = dense if directed else dense + dense.T
    np.fill_diagonal(dense, 0)
    dense[-1] = dense[:, -1] = 0
    return dense


def attributes(seed=0, num_items=NUM_ITEMS, size=5):
    """Weights of attributes, dense; the same attribute weighs the same everywhere, the last item has none."""
    rng = np.random.default_rng(seed)
    dense = (rng.random((num_items, size)) < 0.5) * np.linspace(0.5, 2, size)
    dense[-1] = 0
    return dense


def shared(dense):
    return shared_users(sparse.csr_array(dense))


def naive_counts(dense):
    """Count the users of both items, pair by pair."""
    users, items = dense.shape
    counts = np.zeros((items, items))
    for one in range(items):
        for other in range(items):
            counts[one, other] = sum(dense[user, one] * dense[user, other] for user in range(users))
    return counts


def naive_co_occurrence(dense):
    counts = naive_counts(dense)
    np.fill_diagonal(counts, 0)
    return counts


def naive_item_knn(dense, shrinkage):
    counts = naive_counts(dense)
    scores = np.zeros_like(counts)
    for one in range(len(counts)):
        for other in range(len(counts)):
            if one != other and counts[one, other]:
                norms = np.sqrt(dense[:, one].sum()) * np.sqrt(dense[:, other].sum())
                scores[one, other] = counts[one, other] / (norms + shrinkage)
    return scores


def naive_windowed(dense, shrinkage):
    scores = np.zeros(dense.shape)
    for one in range(len(dense)):
        for other in range(len(dense)):
            if dense[one, other]:
                norms = np.sqrt(sum(dense[one, :].tolist()) * sum(dense[:, other].tolist()))
                scores[one, other] = dense[one, other] / (norms + shrinkage)
    return scores


def naive_ease(dense, penalty):
    """Each item on all others by ridge regression: least squares with a row sqrt(penalty) for each weight."""
    items = dense.shape[1]
    weights = np.zeros((items, items))
    for target in range(items):
        others = [item for item in range(items) if item != target]
        rows = np.vstack([dense[:, others], np.sqrt(penalty) * np.eye(len(others))])
        goal = np.concatenate([dense[:, target], np.zeros(len(others))])
        weights[others, target] = np.linalg.lstsq(rows.astype(np.float64), goal, rcond=None)[0]
    return weights


def naive_content(dense):
    items = len(dense)
    scores = np.zeros((items, items))
    for one in range(items):
        for other in range(items):
            product = sum(a * b for a, b in zip(dense[one], dense[other], strict=True))
            if product:
                scores[one, other] = product / np.sqrt((dense[one] ** 2).sum() * (dense[other] ** 2).sum())
    return scores


MODELS = {
    "co-occurrence": lambda: (CoOccurrence(shared(touched())), naive_co_occurrence(touched())),
    "item knn": lambda: (ItemKNN(shared(touched())), naive_item_knn(touched(), 0)),
    "item knn 3.5": lambda: (ItemKNN(shared(touched()), 3.5), naive_item_knn(touched(), 3.5)),
    "windowed": lambda: (
        WindowedItemKNN(sparse.csr_array(pair_weights())),
        naive_windowed(pair_weights(), 0),
    ),
    "windowed directed 20": lambda: (
        WindowedItemKNN(sparse.csr_array(pair_weights(directed=True)), 20.0),
        naive_windowed(pair_weights(directed=True), 20),
    ),
    "ease": lambda: (Ease(shared(touched()), 2.5), naive_ease(touched(), 2.5)),
    "content": lambda: (Content(sparse.csr_array(attributes())), naive_content(attributes())),
    "content popularity": lambda: (Content(sparse.csr_array(attributes()), COUNTS), naive_content(attributes())),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("k", [1, 4, 9], ids="k={}".format)
def test_returns_the_largest_weighted_sums(name, k):
    """Each place in an answer has the score that it should have: independent of the choice among equals."""
    model, scores = MODELS[name]()
    rows = [*histories(NUM_ITEMS), *([(number, 1.0)] for number in range(NUM_ITEMS))]
    answers = model.top_k(asked(rows), k).tolist()
    for row, answer in zip(rows, answers, strict=True):
        total = [sum(weight * scores[item, other] for item, weight in row) for other in range(NUM_ITEMS)]
        allowed = [total[other] for other in range(NUM_ITEMS) if other not in {item for item, _ in row}]
        best = sorted((score for score in allowed if score > 1e-6), reverse=True)[:k]
        named = [total[number] for number in answer if number != -1]
        np.testing.assert_allclose(named, best, rtol=1e-4)


def naive_rank(scores, order, query, target, k):
    """Count the allowed items that score more than the target, or as much and come first; `scores` of float64."""
    row, excluded = query
    total = sum((weight * scores[item] for item, weight in row), np.zeros(len(scores))).astype(np.float32)
    if target in excluded or not total[target] > 0:
        return k
    before = 0
    for other in range(len(scores)):
        ahead = total[other] > total[target] or (total[other] == total[target] and order[other] < order[target])
        before += ahead and other not in excluded
    return min(before, k)


def matrix_of_few_values(num_items=MANY_ITEMS):
    """Scores in quarters, exact in floats whatever the order of a sum, and many of them equal."""
    rng = np.random.default_rng(5)
    return rng.choice([0, 0.25, 1, 4], (num_items, num_items), p=[0.6, 0.2, 0.15, 0.05])


class Listed(NeighborhoodModel):
    """Scores that a test gives, with the columns of each row in no order, and ties from the last item up."""

    def __init__(self, dense):
        super().__init__(sparse.csr_array(dense))
        self.tie_order = np.arange(self.num_items)[::-1]

    def scores(self, asked):
        rows = super().scores(asked)
        shuffled = [np.random.default_rng(6).permutation(np.arange(*ends)) for ends in pairwise(rows.indptr)]
        order = np.concatenate([*shuffled, np.empty(0, np.int64)]).astype(np.int64)
        return sparse.csr_array((rows.data[order], rows.indices[order], rows.indptr), shape=rows.shape)


class ListedDense(ScoringModel):
    """The same with an array for scores, some of them below 0."""

    def __init__(self, dense):
        super().__init__(len(dense))
        self.dense = dense.astype(np.float32)
        self.tie_order = np.arange(self.num_items)[::-1]

    def scores(self, asked):
        return np.asarray(asked.astype(np.float32) @ self.dense)


def hard_questions(num_items=MANY_ITEMS, n=300):
    """Rows of 0 to 5 (item, weight), some twice, what is excluded of each, which need not be the same; targets."""
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
@pytest.mark.parametrize("kind", [Listed, ListedDense])
def test_ranks_agree_with_a_count(monkeypatch, kind, k, cells):
    monkeypatch.setattr(scoring, "CELLS", cells)
    scores = matrix_of_few_values()
    if kind is ListedDense:
        scores = scores - 0.5 * (np.random.default_rng(9).random(scores.shape) < 0.1)
    model = kind(scores)
    rows, excluded, targets = hard_questions()
    expected = [
        naive_rank(scores, model.tie_order, query, target, k)
        for *query, target in zip(rows, excluded, targets.tolist(), strict=True)
    ]
    queries = asked(rows, excluded)
    assert model.ranks(queries, targets, k).tolist() == expected
    answers = model.top_k(queries, k).tolist()
    places = [answer.index(target) if target in answer else k for answer, target in zip(answers, targets, strict=True)]
    assert expected == places
    assert k == 1 or len({*expected}) > 5
    assert k in expected


@pytest.mark.parametrize("name", MODELS)
def test_ranks_of_no_queries_and_of_empty_ones(name):
    """What asks about nothing, or about items without weight, has no answer."""
    model, _ = MODELS[name]()
    assert model.ranks(asked([]), np.empty(0, np.int32), 3).shape == (0,)
    empty = asked([[], [(1, 0.0)], []])
    assert model.ranks(empty, np.array([0, 2, 1], np.int32), 3).tolist() == [3, 3, 3]


@pytest.mark.parametrize("excluded", [[], [2], [4, 2, 4, 1]], ids=str)
def test_the_last_item_of_a_result_is_ranked(excluded):
    """Items 1 to 6 are named in this order."""
    scores = np.zeros((7, 7))
    scores[0] = np.arange(7)[::-1] + 1
    scores[0, 0] = 0
    model = NeighborhoodModel(sparse.csr_array(scores))
    named = [item for item in range(1, 7) if item not in excluded]
    for k in range(1, 8):
        expected = [min(named.index(target), k) if target in named else k for target in range(7)]
        queries = asked([[(0, 1.0)]] * 7, [excluded] * 7)
        assert model.ranks(queries, np.arange(7, dtype=np.int32), k).tolist() == expected


def test_a_tie_does_not_change_the_rank_of_the_target():
    """One item gives 3 more than both give 2, but not in float32: equal, and 2 comes first."""
    scores = np.zeros((5, 5))
    scores[0, 2], scores[1, 2], scores[0, 3] = 0.1, 0.2, 0.3 + 1e-10
    queries = asked([[(0, 1.0), (1, 1.0)]] * 2, [[], []])
    assert NeighborhoodModel(sparse.csr_array(scores)).ranks(queries, np.array([2, 3], np.int32), 1).tolist() == [0, 1]


def with_ties():
    """Far more items than counts: many are equally good neighbors."""
    return shared(touched(num_items=MANY_ITEMS))


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
            lambda: CoOccurrence(with_ties()),
            lambda: ItemKNN(with_ties()),
            lambda: ItemKNN(with_ties(), 50.0),
            lambda: WindowedItemKNN(sparse.csr_array(pair_weights(num_items=MANY_ITEMS)), 10.0),
            lambda: Ease(with_ties(), 5.0),
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


def test_popularity_always_fills_the_result():
    """Also with what nobody touched, and after many exclusions."""
    model = Popularity(np.array([3, 0, 7, 7, 1]))
    queries = asked([[(1, 1.0)], [(4, 1.0)]], [[2, 3, 0], []])
    assert model.top_k(queries, 3).tolist() == [[4, 1, -1], [2, 3, 0]]


@pytest.mark.parametrize("dtype", [np.uint32, np.int64, np.float32])
def test_counts_can_have_any_type(dtype):
    """Minus an unsigned 0 is still the smallest."""
    counts = np.array([0, 2, 1], dtype)
    query = asked([[(0, 1.0)]], [[]])
    assert Popularity(counts).top_k(query, 3).tolist() == [[1, 2, 0]]
    assert Content(sparse.csr_array(np.ones((3, 1))), counts).top_k(query, 3).tolist() == [[1, 2, 0]]


def test_shared_users_counts_users():
    dense = touched()
    np.testing.assert_array_equal(shared(dense).toarray(), naive_counts(dense))


def test_ties_go_by_item_number():
    """Item 0 shares one user with each of the others."""
    dense = np.array([[1, 1, 1, 1, 1]], np.float32)
    query = Queries.from_items(np.array([2], np.int32))
    for model in (CoOccurrence(shared(dense)), ItemKNN(shared(dense)), Ease(shared(dense), 1.0)):
        assert model.top_k(query, 3).tolist() == [[0, 1, 3]]


def test_items_without_shared_users_are_not_returned():
    dense = np.array([[1, 1, 0, 0], [0, 0, 1, 0], [1, 1, 0, 0]], np.float32)
    queries = Queries.from_items(np.arange(4, dtype=np.int32))
    for model in (CoOccurrence(shared(dense)), ItemKNN(shared(dense)), Ease(shared(dense), 1.0)):
        assert model.top_k(queries, 2).tolist() == [[1, -1], [0, -1], [-1, -1], [-1, -1]]


def test_shrinkage_prefers_items_with_many_shared_users():
    """Items 0 and 1 share the only user of 1; items 0 and 2 share three users of ten."""
    dense = np.array([[1, 1, 1], [1, 0, 1], [1, 0, 1]] + [[0, 0, 1]] * 7, np.float32)
    query = Queries.from_items(np.array([0], np.int32))
    assert ItemKNN(shared(dense)).top_k(query, 1).item() == 1
    assert ItemKNN(shared(dense), 50.0).top_k(query, 1).item() == 2


def test_directed_pairs_score_in_one_direction():
    """After 0 comes 1; nothing is known of what comes after 1."""
    model = WindowedItemKNN(sparse.csr_array(np.array([[0, 2], [0, 0]], np.float32)))
    assert model.top_k(Queries.from_items(np.array([0, 1], np.int32)), 1).tolist() == [[1], [-1]]


@pytest.mark.parametrize("penalty", [0.5, 30.0], ids="penalty {}".format)
def test_ease_solves_the_least_squares_problem(penalty):
    model = Ease(shared(touched()), penalty)
    np.testing.assert_allclose(model.matrix, naive_ease(touched(), penalty), atol=1e-5)
    assert model.matrix.dtype == np.float32
    assert (np.diagonal(model.matrix) == 0).all()


def test_ease_does_not_return_negative_scores():
    """All have item 2; who has 0 never has 1, and the other way round."""
    dense = np.array([[1, 0, 1], [1, 0, 1], [0, 1, 1], [0, 1, 1]], np.float32)
    model = Ease(shared(dense), 0.1)
    assert model.matrix[0, 1] < 0
    assert model.top_k(Queries.from_items(np.array([0], np.int32)), 3).tolist() == [[2, -1, -1]]


def test_content_ignores_interactions_by_default():
    """Items 1, 2 and 3 have the attribute of 0, and 2 is the most touched of them; 4 has another one."""
    bags = sparse.csr_array(np.array([[1, 0], [1, 0], [1, 0], [1, 0], [0, 1]], np.float64))
    query = Queries.from_items(np.array([0], np.int32))
    assert Content(bags).top_k(query, 4).tolist() == [[1, 2, 3, -1]]
    assert Content(bags, np.array([9, 4, 8, 4, 9])).top_k(query, 4).tolist() == [[2, 1, 3, -1]]
    assert Content(bags, np.array([9, 4, 8, 4, 9])).top_k(query, 1).tolist() == [[2]]


def test_popularity_only_breaks_ties():
    """Item 1 has both attributes of 0; item 2, the most touched, one of them."""
    bags = sparse.csr_array(np.array([[1, 1], [1, 1], [1, 0]], np.float64))
    query = Queries.from_items(np.array([0], np.int32))
    assert Content(bags, np.array([0, 1, 99])).top_k(query, 2).tolist() == [[1, 2]]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("cells", [1, 4 * NUM_ITEMS + 1], ids=["one row", "four rows"])
def test_query_blocks_do_not_change_the_result(monkeypatch, name, cells):
    model, _ = MODELS[name]()
    queries = asked([*histories(NUM_ITEMS), *histories(NUM_ITEMS)])
    together = model.top_k(queries, 4)
    monkeypatch.setattr(scoring, "CELLS", cells)
    np.testing.assert_array_equal(model.top_k(queries, 4), together)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("test", [[1, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]),
        ("validation", [[1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]),
    ],
)
def test_the_interaction_matrix_ends_before_the_target(target, expected):
    """An item touched twice is touched; users with two interactions keep them."""
    log = [[0, 1, 0, 2, 4], [1, 2], [2, 2, 2, 2], []]
    items = np.array([item for own in log for item in own], np.int32)
    times = np.arange(len(items), dtype=np.float64)
    sequences = Sequences(["a", "b", "c", "d"], items, np.cumsum([0, *map(len, log)]), times)
    matrix = interaction_matrix(Split(sequences), target, 5)
    assert matrix.toarray().tolist() == expected
    assert matrix.dtype == np.float32
