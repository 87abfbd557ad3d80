import numpy as np
import polars as pl
import pytest

from recsys.config.sections import IndexConfig
from recsys.data.catalog import Catalog
from recsys.errors import InputError, UnknownItemError
from recsys.evaluation.calibration import Calibration, Estimate, Threshold, ThresholdMetrics
from recsys.index import annoy_index
from recsys.retrieval.engine import Engine
from recsys.retrieval.query import Query
from recsys.retrieval.results import VerificationResult

ANGLES = {"north": 90, "east": 0, "north-east": 50, "south": 270, "west": 185}


@pytest.fixture
def catalog():
    titles = [None if item_id == "south" else item_id.upper() for item_id in ANGLES]
    return Catalog(pl.DataFrame({"item_id": list(ANGLES), "title": titles}))


@pytest.fixture
def vectors(catalog):
    angles = np.radians([ANGLES[item_id] for item_id in catalog.item_ids])
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


@pytest.fixture
def similar(catalog, tmp_path, vectors):
    """Return a function that queries an engine: `similar(item_id, k)`."""
    annoy = annoy_index.build(vectors, IndexConfig(n_trees=3), tmp_path / "index.ann")

    def search(item_id, k, **options):
        return Engine("r1", catalog, vectors, annoy, **options).search(Query.from_item(item_id, k))

    return search


@pytest.fixture
def calibration():
    share = Estimate(value=0.5, low=0.25, high=0.75)
    measured = ThresholdMetrics(precision=None, recall=share, false_positive_rate=share, accuracy=share)
    return Calibration(
        similarities=(0.0, 0.8),
        probabilities=(0.25, 0.75),
        fitted_pairs=20,
        measured_pairs=20,
        expected_calibration_error=share,
        auc=0.5,
        thresholds=(Threshold(rule="probability", target=0.5, similarity=0.4, measured=measured),),
    )


def test_returns_the_nearest_items_first(similar):
    answer = similar("north", 2)
    assert (answer.release_id, answer.item_id, answer.title) == ("r1", "north", "NORTH")
    assert [(neighbor.rank, neighbor.item_id, neighbor.title) for neighbor in answer.neighbors] == [
        (1, "north-east", "NORTH-EAST"),
        (2, "east", "EAST"),
    ]
    assert answer.neighbors[0].similarity == pytest.approx(np.cos(np.radians(40)), abs=1e-6)
    assert answer.neighbors[1].similarity == pytest.approx(0, abs=1e-6)


def test_a_large_k_returns_all_other_items(similar):
    answer = similar("north-east", 50)
    assert [neighbor.item_id for neighbor in answer.neighbors] == ["north", "east", "west", "south"]
    assert [neighbor.rank for neighbor in answer.neighbors] == [1, 2, 3, 4]
    assert answer.neighbors[-1].title is None


def test_clips_cosines_to_their_range(catalog, tmp_path, vectors):
    """Unit vectors are a little longer or shorter in float32."""
    vectors[1] = -vectors[0]
    longer = vectors * np.float32(1.0005)
    annoy = annoy_index.build(longer, IndexConfig(n_trees=3), tmp_path / "longer.ann")
    answer = Engine("r1", catalog, longer, annoy).search(Query.from_item(catalog.item_ids[0], 4))
    assert answer.neighbors[-1].similarity == -1.0


def test_rejects_an_unknown_item(similar):
    with pytest.raises(UnknownItemError, match="'up'"):
        similar("up", 2)


@pytest.mark.parametrize("k", [0, -3])
def test_rejects_a_k_below_one(similar, k):
    with pytest.raises(InputError, match=f"Received: {k}"):
        similar("north", k)


def test_returns_probabilities_with_a_calibration(similar, calibration):
    neighbors = similar("north", 4, calibration=calibration).neighbors
    line = [0.25 + 0.5 * min(max(neighbor.similarity, 0), 0.8) / 0.8 for neighbor in neighbors]
    assert [neighbor.probability for neighbor in neighbors] == pytest.approx(line)
    assert {neighbor.probability for neighbor in similar("north", 4).neighbors} == {None}


@pytest.mark.parametrize(
    ("similarity", "same", "probability"), [(0.4, True, 0.5), (0.39, False, 0.49375), (-1, False, 0.25)]
)
def test_items_are_the_same_from_the_threshold_up(catalog, calibration, similarity, same, probability):
    arguments = {"similarity": similarity, "calibration": calibration, "threshold": calibration.threshold()}
    result = VerificationResult.from_similarity(catalog, "r1", ("north", "south"), **arguments)
    assert result.same is same
    assert result.probability == pytest.approx(probability)
    assert [tuple(item) for item in result.items] == [("north", "NORTH"), ("south", None)]
