import numpy as np
import pytest

from recsys.errors import InputError
from recsys.index import embeddings
from recsys.index.distances import DISTANCES


def unit_vectors(rows, dimension):
    vectors = np.random.default_rng(0).normal(size=(rows, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_accepts_unit_vectors():
    embeddings.validate(unit_vectors(5, 3), 5)


@pytest.mark.parametrize(
    ("vectors", "received"),
    [
        (unit_vectors(4, 3), r"float32 \[4, 3\]"),
        (unit_vectors(5, 3).astype(np.float64), "float64"),
        (unit_vectors(5, 3)[0], r"\[3\]"),
        (unit_vectors(5, 3)[:, :, None], r"\[5, 3, 1\]"),
    ],
    ids=["another number of items", "float64", "one vector", "three axes"],
)
def test_rejects_another_type_or_shape(vectors, received):
    with pytest.raises(InputError, match=rf"release 7 must be float32 \[5, dimension\].*{received}"):
        embeddings.validate(vectors, 5, "release 7")


@pytest.mark.parametrize(
    "wrong",
    [[0, 0, 0], [0.9, 0, 0], [1.1, 0, 0], [np.nan, 0, 1], [np.inf, 0, 0]],
    ids=["zero", "short", "long", "NaN", "inf"],
)
def test_reports_a_vector_that_is_not_of_unit_length(wrong):
    vectors = unit_vectors(5, 3)
    vectors[3] = wrong
    with pytest.raises(InputError, match="item number 3 "):
        embeddings.validate(vectors, 5)


@pytest.mark.parametrize("name", ["euclidean", "manhattan"])
def test_accepts_any_length_for_other_distances(name):
    vectors = unit_vectors(5, 3) * np.array([[0], [0.1], [1], [7], [1e6]], np.float32)
    embeddings.validate(vectors, 5, distance=DISTANCES[name])


@pytest.mark.parametrize("name", list(DISTANCES))
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf], ids=str)
def test_rejects_vectors_that_are_not_finite(name, wrong):
    vectors = unit_vectors(5, 3)
    vectors[3, 1] = wrong
    with pytest.raises(InputError, match=r"must be finite.*item number 3 "):
        embeddings.validate(vectors, 5, distance=DISTANCES[name])


def test_validates_every_block(monkeypatch):
    monkeypatch.setattr(embeddings, "BLOCK", 4)
    vectors = unit_vectors(11, 3)
    vectors[9] *= 2
    with pytest.raises(InputError, match="item number 9 of length 2"):
        embeddings.validate(vectors, 11)


# --- means


def test_the_mean_of_several_items_is_weighted():
    vectors = np.array([[1, 0], [0, 1], [4, 8]], np.float32)
    items = np.array([[0, 1, -1], [2, 0, 1], [1, 1, 2]], np.int32)
    weights = np.array([[3, 1, 0], [0.5, 0.25, 0.25], [1, 2, 0]], np.float32)
    np.testing.assert_allclose(embeddings.weighted_means(vectors, items, weights), [[0.75, 0.25], [2.25, 4.25], [0, 1]])


@pytest.mark.parametrize("weight", [1.0, 0.3, 1e-20], ids=str)
def test_the_mean_of_one_item_is_its_vector(weight):
    vectors, items = unit_vectors(5, 3), np.array([[4], [0]], np.int32)
    means = embeddings.weighted_means(vectors, items, np.full((2, 1), weight, np.float32))
    np.testing.assert_array_equal(means, vectors[[4, 0]])


def test_padding_has_no_weight():
    vectors = unit_vectors(5, 3)
    means = embeddings.weighted_means(vectors, np.array([[2, -1], [-1, -1]], np.int32), np.ones((2, 2), np.float32))
    np.testing.assert_array_equal(means, [vectors[2], [0, 0, 0]])


def test_the_mean_of_no_items_is_zero():
    assert embeddings.weighted_means(
        unit_vectors(5, 3), np.empty((2, 0), np.int32), np.empty((2, 0), np.float32)
    ).tolist() == [
        [0, 0, 0],
        [0, 0, 0],
    ]


# --- files


def test_saved_embeddings_are_memory_mapped(tmp_path):
    vectors = unit_vectors(5, 3)
    embeddings.save(vectors, tmp_path / "embeddings.npy")
    loaded = embeddings.load(tmp_path / "embeddings.npy")
    assert isinstance(loaded, np.memmap)
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, vectors)


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01"], ids=["empty", "text", "truncated"])
def test_rejects_a_file_that_is_not_an_array(tmp_path, content):
    (tmp_path / "embeddings.npy").write_bytes(content)
    with pytest.raises(InputError, match=r"embeddings\.npy"):
        embeddings.load(tmp_path / "embeddings.npy")


def test_rejects_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"absent\.npy"):
        embeddings.load(tmp_path / "absent.npy")


def test_rejects_an_array_of_objects(tmp_path):
    np.save(tmp_path / "embeddings.npy", np.array([{}, None], object), allow_pickle=True)
    with pytest.raises(InputError, match=r"embeddings\.npy"):
        embeddings.load(tmp_path / "embeddings.npy")


def test_rejects_an_archive_of_arrays(tmp_path):
    np.savez(tmp_path / "arrays.npz", vectors=unit_vectors(5, 3))
    with pytest.raises(InputError, match=r"arrays\.npz"):
        embeddings.load(tmp_path / "arrays.npz")
