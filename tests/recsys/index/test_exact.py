import numpy as np
import pytest

from recsys.index import exact
from recsys.index.distances import COSINE, DISTANCES
from recsys.index.exact import BLOCK, ExactIndex, top_columns
from recsys.index.queries import Queries
from recsys.testing.neighbors_contract import NeighborsContract

NUM_ITEMS, DIMENSION = 13, 3
every_distance = pytest.mark.parametrize("distance", DISTANCES.values(), ids=list(DISTANCES))


def unit_vectors(rows, dimension, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(rows, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def vectors_for(distance, rows, seed=0):
    """Return random vectors, of unit length if the distance requires it."""
    lengths = np.random.default_rng(seed + 1).uniform(0.2, 3, (rows, 1)).astype(np.float32)
    return unit_vectors(rows, DIMENSION, seed) * (1 if distance.unit_norm else lengths)


def naive(vectors, query, k, *, distance=COSINE, excluded=()):
    """Return the `k` nearest items by a loop over all items."""
    distances = {number: float(distance.between(query, vector)) for number, vector in enumerate(vectors.astype(float))}
    return sorted(set(distances) - set(excluded), key=lambda number: distances[number])[:k]


class TestExactIndex(NeighborsContract):
    @pytest.fixture
    def num_items(self):
        return NUM_ITEMS

    @pytest.fixture(params=list(DISTANCES))
    def model(self, request):
        distance = DISTANCES[request.param]
        return ExactIndex(vectors_for(distance, NUM_ITEMS), distance)


class TestExactIndexOfOneItem(NeighborsContract):
    @pytest.fixture
    def num_items(self):
        return 1

    @pytest.fixture
    def model(self):
        return ExactIndex(unit_vectors(1, DIMENSION))


@every_distance
def test_masked_items_can_be_queried_but_are_not_returned(distance):
    vectors = vectors_for(distance, NUM_ITEMS)
    mask = np.ones(NUM_ITEMS, bool)
    mask[[2, 4, 9]] = False
    index, queries = ExactIndex(vectors, distance, mask), np.array([4, 7], np.int32)
    expected = [
        naive(vectors, vectors[number], 11, distance=distance, excluded=[number, 2, 4, 9]) for number in queries
    ]
    answers = index.neighbors(queries, 11)
    assert answers.tolist() == [row + [-1] * (11 - len(row)) for row in expected]
    targets = np.array([9, expected[1][3]], np.int32)
    assert index.ranks(Queries.from_items(queries), targets, 6).tolist() == [6, 3]


@every_distance
def test_returns_the_nearest_items(distance):
    vectors = vectors_for(distance, NUM_ITEMS)
    answers = ExactIndex(vectors, distance).neighbors(np.array([4, 12, 0, 4], np.int32), 5)
    expected = [naive(vectors, vectors[number], 5, distance=distance, excluded=[number]) for number in (4, 12, 0, 4)]
    assert answers.tolist() == expected


@every_distance
def test_several_items_are_searched_by_their_weighted_mean(distance):
    vectors = vectors_for(distance, NUM_ITEMS)
    items, weights = [[3, 7, 1], [5, 5, -1]], [[1.0, 0.5, 0.25], [1.0, 0.5, 0.0]]
    excluded = [[3, 7, 1, 12], [-1, 2, -1, -1]]
    queries = Queries(np.array(items, np.int32), np.array(weights, np.float32), np.array(excluded, np.int32))
    means = [(vectors[3] + vectors[7] / 2 + vectors[1] / 4) / 1.75, vectors[5]]
    expected = [
        naive(vectors, mean, 6, distance=distance, excluded=excluded_items)
        for mean, excluded_items in zip(means, excluded, strict=True)
    ]
    assert ExactIndex(vectors, distance).top_k(queries, 6).tolist() == expected


@every_distance
def test_query_blocks_do_not_change_the_result(distance):
    vectors = vectors_for(distance, 40)
    queries = np.resize(np.arange(40, dtype=np.int32), BLOCK + 17)
    answers = ExactIndex(vectors, distance).neighbors(queries, 3)
    expected = [naive(vectors, vectors[number], 3, distance=distance, excluded=[number]) for number in range(40)]
    assert answers.tolist() == [expected[number] for number in queries]


def test_history_blocks_do_not_change_the_result(monkeypatch):
    rng = np.random.default_rng(6)
    items = rng.integers(0, 30, (11, 4)).astype(np.int32)
    queries = Queries(items, rng.uniform(0.1, 1, items.shape).astype(np.float32), items[:, :2])
    model = ExactIndex(unit_vectors(30, DIMENSION))
    expected = model.top_k(queries, 7)
    monkeypatch.setattr(exact, "BLOCK", 4)
    np.testing.assert_array_equal(model.top_k(queries, 7), expected)


@pytest.mark.parametrize("cells", [1, 90, 10_000])
def test_block_size_does_not_change_the_result(monkeypatch, cells):
    rng = np.random.default_rng(6)
    items, targets = rng.integers(0, 30, (11, 4)).astype(np.int32), rng.integers(0, 30, 11).astype(np.int32)
    queries = Queries(items, rng.uniform(0.1, 1, items.shape).astype(np.float32), items[:, :2])
    model = ExactIndex(unit_vectors(30, DIMENSION))
    answers, ranks = model.top_k(queries, 7), model.ranks(queries, targets, 30)
    monkeypatch.setattr(exact, "CELLS", cells)
    np.testing.assert_array_equal(model.top_k(queries, 7), answers)
    np.testing.assert_array_equal(model.ranks(queries, targets, 30), ranks)


def test_length_is_the_number_of_items():
    assert len(ExactIndex(unit_vectors(5, DIMENSION))) == 5


@pytest.mark.parametrize("k", [1, 2, 6, 7], ids="k={}".format)
def test_top_columns_returns_the_largest_scores_in_order(k):
    scores = np.random.default_rng(1).permutation(28).reshape(4, 7).astype(np.float32)
    expected = [sorted(range(7), key=lambda column: -row[column])[:k] for row in scores]
    columns = top_columns(scores, k)
    assert columns.tolist() == expected
    assert columns.dtype == np.int32


def test_top_columns_orders_ties_by_column():
    assert top_columns(np.array([[1.0, 3.0, 1.0, 3.0]], np.float32), 4).tolist() == [[1, 3, 0, 2]]


def test_top_columns_keeps_the_first_of_ties_at_the_cut():
    scores = np.random.default_rng(0).integers(0, 3, (20, 30)).astype(np.float32)
    expected = [sorted(range(30), key=lambda column: -row[column])[:4] for row in scores]
    assert top_columns(scores, 4).tolist() == expected


@every_distance
def test_ranks_agree_with_top_k(distance):
    """Also for equal vectors, excluded targets and targets after the first `k`."""
    rng = np.random.default_rng(8)
    vectors = np.repeat(vectors_for(distance, 20), 3, axis=0)
    items = rng.integers(0, 60, (200, 4)).astype(np.int32)
    queries = Queries(items, rng.uniform(0.1, 1, items.shape).astype(np.float32), items[:, :2])
    targets = rng.integers(0, 60, 200).astype(np.int32)
    index = ExactIndex(vectors, distance)
    answers = index.top_k(queries, 60).tolist()
    ranks = [answer.index(target) if target in answer else 60 for answer, target in zip(answers, targets, strict=True)]
    for k in (7, 60):
        np.testing.assert_array_equal(index.ranks(queries, targets, k), np.minimum(ranks, k))
    assert len({*ranks}) > 10
    assert 60 in ranks
