import numpy as np
import polars as pl
import pytest

from recsys import index
from recsys.catalogue import Catalogue
from recsys.config import IndexConfig
from recsys.errors import InputError, UnknownItemError
from recsys.lookup import similar

ANGLES = {"north": 90, "east": 0, "north-east": 50, "south": 270, "west": 185}


@pytest.fixture
def catalogue():
    titles = [None if item_id == "south" else item_id.upper() for item_id in ANGLES]
    return Catalogue(pl.DataFrame({"item_id": list(ANGLES), "title": titles}))


@pytest.fixture
def annoy(catalogue, tmp_path):
    angles = np.radians([ANGLES[item_id] for item_id in catalogue.item_ids])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    return index.build(vectors, IndexConfig(n_trees=3), tmp_path / "index.ann")


def test_names_the_nearest_items_first(catalogue, annoy):
    answer = similar(catalogue, annoy, "r1", "north", 2)
    assert (answer.release_id, answer.item_id, answer.title) == ("r1", "north", "NORTH")
    assert [(other.rank, other.item_id, other.title) for other in answer.neighbours] == [
        (1, "north-east", "NORTH-EAST"),
        (2, "east", "EAST"),
    ]
    assert answer.neighbours[0].similarity == pytest.approx(np.cos(np.radians(40)), abs=1e-6)
    assert answer.neighbours[1].similarity == pytest.approx(0, abs=1e-6)


def test_gives_all_others_where_more_are_asked_for(catalogue, annoy):
    answer = similar(catalogue, annoy, "r1", "north-east", 50)
    assert [other.item_id for other in answer.neighbours] == ["north", "east", "west", "south"]
    assert [other.rank for other in answer.neighbours] == [1, 2, 3, 4]
    assert answer.neighbours[-1].title is None


def test_no_similarity_leaves_the_range_of_a_cosine(catalogue):
    """Annoy computes in float32: the square of a distance may be a little above 4."""

    class Rounding:
        def nearest(self, number, k):  # noqa: ARG002 - the interface of an index
            return [1, 2], [1.0000002, -1.0000002]

    answer = similar(catalogue, Rounding(), "r1", "east", 2)
    assert [other.similarity for other in answer.neighbours] == [1.0, -1.0]


def test_an_unknown_item_is_an_error(catalogue, annoy):
    with pytest.raises(UnknownItemError, match="'up'"):
        similar(catalogue, annoy, "r1", "up", 2)


@pytest.mark.parametrize("k", [0, -3])
def test_asking_for_no_neighbours_is_an_error(catalogue, annoy, k):
    with pytest.raises(InputError, match=f"Received: {k}"):
        similar(catalogue, annoy, "r1", "north", k)
