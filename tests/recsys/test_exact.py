import numpy as np
import pytest

from recsys.exact import BLOCK, ExactIndex, top
from tests.contracts.neighbours import NeighboursContract

NUM_ITEMS, DIMENSION = 13, 3


def unit_vectors(rows, dimension, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(rows, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def naive(vectors, number, k):
    cosines = {other: float(vectors[other].astype(float) @ vectors[number]) for other in range(len(vectors))}
    del cosines[number]
    return sorted(cosines, key=lambda other: -cosines[other])[:k]


class TestExactIndex(NeighboursContract):
    @pytest.fixture
    def num_items(self):
        return NUM_ITEMS

    @pytest.fixture
    def model(self):
        return ExactIndex(unit_vectors(NUM_ITEMS, DIMENSION))


class TestExactIndexOfOneItem(NeighboursContract):
    @pytest.fixture
    def num_items(self):
        return 1

    @pytest.fixture
    def model(self):
        return ExactIndex(unit_vectors(1, DIMENSION))


def test_finds_the_largest_cosines():
    vectors = unit_vectors(NUM_ITEMS, DIMENSION)
    answers = ExactIndex(vectors).neighbours(np.array([4, 12, 0, 4], np.int32), 5)
    assert answers.tolist() == [naive(vectors, number, 5) for number in (4, 12, 0, 4)]


def test_more_queries_than_a_block_are_answered_alike():
    vectors = unit_vectors(40, DIMENSION)
    queries = np.resize(np.arange(40, dtype=np.int32), BLOCK + 17)
    answers = ExactIndex(vectors).neighbours(queries, 3)
    expected = [naive(vectors, number, 3) for number in range(40)]
    assert answers.tolist() == [expected[number] for number in queries]


def test_length_is_the_number_of_items():
    assert len(ExactIndex(unit_vectors(5, DIMENSION))) == 5


@pytest.mark.parametrize("k", [1, 2, 6, 7], ids="k={}".format)
def test_top_gives_the_columns_of_the_largest_scores_in_order(k):
    scores = np.random.default_rng(1).permutation(28).reshape(4, 7).astype(np.float32)
    expected = [sorted(range(7), key=lambda column: -row[column])[:k] for row in scores]
    found = top(scores, k)
    assert found.tolist() == expected
    assert found.dtype == np.int32


def test_top_orders_equal_scores_by_column():
    assert top(np.array([[1.0, 3.0, 1.0, 3.0]], np.float32), 4).tolist() == [[1, 3, 0, 2]]


def test_top_keeps_the_first_of_equal_scores_at_the_cut():
    scores = np.random.default_rng(0).integers(0, 3, (20, 30)).astype(np.float32)
    expected = [sorted(range(30), key=lambda column: -row[column])[:4] for row in scores]
    assert top(scores, 4).tolist() == expected
