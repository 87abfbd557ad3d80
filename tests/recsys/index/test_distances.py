from typing import get_args

import numpy as np
import pytest
from annoy import AnnoyIndex
from hypothesis import given
from hypothesis import strategies as st

from recsys.config.table import DistanceName
from recsys.index import distances as similarity
from recsys.index.distances import COSINE, DISTANCES

EUCLIDEAN, MANHATTAN = DISTANCES["euclidean"], DISTANCES["manhattan"]
every_distance = pytest.mark.parametrize("distance", DISTANCES.values(), ids=list(DISTANCES))


def random_vectors(distance, rows, dimension, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(rows, dimension))
    if distance.unit_norm:
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)


def naive(distance, left, right):
    """Annoy's distance of two vectors, in pure Python."""
    if distance is COSINE:
        lengths = [sum(a * a for a in vector) ** 0.5 for vector in (left, right)]
        product = sum(a * b for a, b in zip(left, right, strict=True))
        return max(0.0, 2 - 2 * product / lengths[0] / lengths[1]) ** 0.5
    differences = [abs(a - b) for a, b in zip(left, right, strict=True)]
    return sum(differences) if distance is MANHATTAN else sum(value**2 for value in differences) ** 0.5


def test_each_distance_has_its_names():
    names = {each.name: (each.metric, each.unit_norm) for each in DISTANCES.values()}
    assert names == {
        "cosine": ("angular", True),
        "euclidean": ("euclidean", False),
        "manhattan": ("manhattan", False),
    }
    assert {name: each.name for name, each in DISTANCES.items()} == {name: name for name in names}
    assert set(get_args(DistanceName)) == set(names)


@pytest.mark.parametrize(
    ("degrees", "chord"),
    [(0, 0.0), (60, 1.0), (90, 1.4142135), (120, 1.7320508), (180, 2.0)],
    ids="{}".format,
)
def test_cosine_at_known_angles(degrees, chord):
    """The distance is the chord of the angle on the unit circle, 2 sin(angle / 2)."""
    cosine = np.cos(np.radians(degrees))
    assert COSINE.similarity(chord) == pytest.approx(cosine, abs=1e-6)
    assert COSINE.distance(cosine) == pytest.approx(chord, abs=1e-6)


@pytest.mark.parametrize(("value", "expected"), [(0.0, 1.0), (1.0, 0.5), (3.0, 0.25), (99.0, 0.01)], ids=str)
@pytest.mark.parametrize("distance", [EUCLIDEAN, MANHATTAN], ids=["euclidean", "manhattan"])
def test_similarity_of_an_unbounded_distance(distance, value, expected):
    assert distance.similarity(value) == pytest.approx(expected)
    assert distance.distance(expected) == pytest.approx(value)


@every_distance
@given(distances=st.lists(st.floats(0, 2), min_size=2, max_size=20))
def test_similarity_decreases_with_distance(distance, distances):
    ascending = np.sort(np.array(distances))
    similarities = distance.similarity(ascending)
    assert (np.diff(similarities) <= 0).all()
    assert (np.diff(similarities)[np.diff(ascending) > 1e-6] < 0).all()


@every_distance
def test_distance_is_the_inverse_of_similarity(distance):
    distances = np.array([[0.0, 0.5, 1.25], [1.0, 2.0, 0.75]])
    np.testing.assert_allclose(distance.distance(distance.similarity(distances)), distances, atol=1e-12)


@every_distance
def test_a_similarity_above_one_has_distance_zero(distance):
    """Rounding can give such similarities; the distance must not be NaN."""
    assert distance.distance(np.float32(1.0000001)) == 0.0


@every_distance
def test_between_agrees_with_annoy(distance):
    vectors = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    annoy = AnnoyIndex(3, distance.metric)
    for number, vector in enumerate(vectors):
        annoy.add_item(number, vector.tolist())
    annoy.build(1)
    for left, right in ((0, 1), (2, 3), (1, 4)):
        expected = naive(distance, vectors[left].tolist(), vectors[right].tolist())
        assert annoy.get_distance(left, right) == pytest.approx(expected, abs=1e-6)
        assert distance.between(vectors[left], vectors[right]) == pytest.approx(expected, abs=1e-6)


@every_distance
def test_similarities_agree_with_annoy(distance):
    vectors = random_vectors(distance, 9, 4)
    annoy = AnnoyIndex(4, distance.metric)
    for number, vector in enumerate(vectors):
        annoy.add_item(number, vector.tolist())
    annoy.build(1)
    expected = [[distance.similarity(annoy.get_distance(left, right)) for right in range(9)] for left in range(9)]
    np.testing.assert_allclose(distance.similarities(vectors, vectors), expected, atol=1e-6)


@every_distance
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (7, 5), (3, 4), (5, 11)], ids=str)
def test_blocks_do_not_change_similarities(distance, rows, columns, monkeypatch):
    monkeypatch.setattr(similarity, "ROWS", 3)
    monkeypatch.setattr(similarity, "COLUMNS", 4)
    queries, vectors = random_vectors(distance, rows, 6), random_vectors(distance, columns, 6, seed=1)
    expected = [
        [distance.similarity(naive(distance, query, vector)) for vector in vectors.tolist()] for query in queries
    ]
    similarities = distance.similarities(queries, vectors)
    assert similarities.dtype == np.float32
    np.testing.assert_allclose(similarities, expected, rtol=1e-5, atol=1e-6)
    pairwise = distance.similarity(distance.between(queries[:, None], vectors[None]))
    np.testing.assert_allclose(similarities, pairwise, rtol=1e-5, atol=1e-6)


@every_distance
def test_no_queries_have_no_similarities(distance):
    assert distance.similarities(np.empty((0, 3), np.float32), random_vectors(distance, 4, 3)).shape == (0, 4)


@every_distance
def test_equal_vectors_have_similarity_one(distance):
    """Also far from the origin, where squares are large and cancel."""
    vectors = random_vectors(distance, 5, 64) * (1 if distance.unit_norm else 1_000)
    np.testing.assert_allclose(np.diag(distance.similarities(vectors, vectors)), 1, atol=1e-5)


def test_euclidean_separates_close_vectors_far_from_the_origin():
    """The vectors have a length of 100; the second is 0.001 away from the first, the third 0.002."""
    vectors = np.array([[100, 0], [100, 0.001], [100, 0.002]], np.float32)
    similarities = EUCLIDEAN.similarities(vectors[:1], vectors)
    np.testing.assert_allclose(similarities, [[1, 1 / 1.001, 1 / 1.002]], atol=1e-6)


def test_cosine_ignores_the_length_of_a_query():
    vectors = random_vectors(COSINE, 4, 3)
    np.testing.assert_allclose(
        COSINE.similarities(vectors * 0.01, vectors), COSINE.similarities(vectors, vectors), atol=1e-6
    )


def test_a_zero_query_is_orthogonal_to_all_vectors():
    """Annoy also treats it so: its distance is the square root of 2."""
    zero, vectors = np.zeros((1, 3), np.float32), random_vectors(COSINE, 4, 3)
    assert COSINE.similarities(zero, vectors).tolist() == [[0, 0, 0, 0]]
    np.testing.assert_allclose(COSINE.similarity(COSINE.between(zero, vectors)), 0, atol=1e-6)
