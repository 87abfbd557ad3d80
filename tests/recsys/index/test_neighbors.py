"""The neighbor table: exact rows against a naive computation, rows of an index, and the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from recsys.config.sections import IndexConfig
from recsys.errors import InputError
from recsys.index import annoy_index, neighbors
from recsys.index.distances import DISTANCES, Distance
from recsys.index.exact import exact_similarities
from recsys.index.neighbors import BLOCK, exact_neighbors, index_neighbors
from recsys.index.shards import plan_shards

NUM_ITEMS, DIMENSION = 2 * BLOCK + 17, 7
every_distance = pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)


def vectors_for(distance: Distance, num_items: int = NUM_ITEMS) -> NDArray[np.float32]:
    """Random vectors, of which some are equal."""
    vectors = np.random.default_rng(3).normal(size=(num_items, DIMENSION))
    if distance.unit_norm:
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[5:9] = vectors[20]
    return vectors.astype(np.float32)


def naive(
    vectors: NDArray[np.float32], item: int, k: int, distance: Distance, allowed: set[int] | None = None
) -> list[int]:
    """Return the nearest other items by plain loops, ties by item number."""

    def length(other: int) -> float:
        pairs = list(zip(vectors[item].tolist(), vectors[other].tolist(), strict=True))
        match distance.metric:
            case "angular":
                return -sum(a * b for a, b in pairs)
            case "euclidean":
                return sum((a - b) ** 2 for a, b in pairs)
            case "manhattan":
                return sum(abs(a - b) for a, b in pairs)

    others = [other for other in (range(len(vectors)) if allowed is None else sorted(allowed)) if other != item]
    return sorted(others, key=lambda other: (round(length(other), 12), other))[:k]


@every_distance
@pytest.mark.parametrize("k", [1, 3, NUM_ITEMS - 1])
def test_exact_rows_are_the_nearest_items(distance: Distance, k: int) -> None:
    vectors = vectors_for(distance)
    rows = exact_neighbors(vectors, np.arange(NUM_ITEMS), k, distance)
    assert rows.dtype == np.int32
    assert rows.tolist() == [naive(vectors, item, k, distance) for item in range(NUM_ITEMS)]


@every_distance
@pytest.mark.parametrize("count", [0, 1, 2, 60])
def test_a_mask_restricts_the_neighbors(distance: Distance, count: int) -> None:
    """Of an item that is the only one allowed, there are no neighbors; short rows are padded."""
    vectors, items = vectors_for(distance), np.array([NUM_ITEMS - 1, 20, 7, 20])
    mask = np.zeros(NUM_ITEMS, np.bool_)
    mask[np.random.default_rng(1).permutation(NUM_ITEMS)[:count]] = True
    mask[7] = count > 0
    rows = exact_neighbors(vectors, items, 4, distance, mask)
    expected = [naive(vectors, item, 4, distance, {*np.flatnonzero(mask).tolist()}) for item in items.tolist()]
    assert rows.tolist() == [row + [-1] * (4 - len(row)) for row in expected]


def test_rows_are_ordered_by_their_exact_similarity() -> None:
    """Items that float32 products do not separate are in the order of their similarities in float64."""
    distance = DISTANCES["cosine"]
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=DIMENSION) + 1e-4 * rng.normal(size=(90, DIMENSION))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    for item, row in enumerate(exact_neighbors(vectors, np.arange(90), 30, distance)):
        query = vectors[item].astype(np.float64)
        similarities = exact_similarities(distance, query / np.sqrt(query @ query), vectors)
        order = sorted(set(range(90)) - {item}, key=lambda other: (-similarities[other], other))
        assert row.tolist() == order[:30]


@every_distance
@pytest.mark.parametrize("shards", [1, 3])
def test_rows_of_a_complete_index_search_are_exact(tmp_path: Path, distance: Distance, shards: int) -> None:
    vectors = vectors_for(distance)
    vectors[5:9] = vectors[40:44] * ([1, 1, -1, 1, 1, 1, 1] if distance.unit_norm else 1.25)  # no equal vectors
    plan = plan_shards(NUM_ITEMS, -(-NUM_ITEMS // shards))
    for shard in plan:
        part = vectors[shard.start : shard.stop]
        annoy_index.build(part, IndexConfig(n_trees=5), tmp_path / shard.file, distance=distance)
    index = annoy_index.load(tmp_path, plan, vectors, 100 * NUM_ITEMS, distance=distance)
    items = np.arange(NUM_ITEMS)[::-1]
    rows = index_neighbors(index, vectors, items, 9)
    assert rows.tolist() == exact_neighbors(vectors, items, 9, distance).tolist()


@pytest.mark.parametrize(("num_items", "width"), [(1, 0), (2, 1), (256, 255), (258, 256)])
def test_file_has_a_row_for_each_item(tmp_path: Path, num_items: int, width: int) -> None:
    distance = DISTANCES["euclidean"]
    vectors = vectors_for(distance, 258)[:num_items]
    neighbors.save_exact(vectors, tmp_path / "neighbors.npy", distance)
    table = neighbors.load(tmp_path / "neighbors.npy", num_items)
    assert table.shape == (num_items, width)
    assert not table.flags.writeable
    assert table[-1].tolist() == naive(vectors, num_items - 1, width, distance)


@pytest.mark.parametrize(
    "table",
    [
        np.zeros((5, 3), np.int32),
        np.zeros((4, 4), np.int32),
        np.zeros((5, 4), np.int64),
        np.full((5, 4), 5, np.int32),
        np.full((5, 4), -1, np.int32),
    ],
    ids=["width", "items", "type", "too large", "padding"],
)
def test_rejects_a_table_of_another_catalog(tmp_path: Path, table: NDArray[np.integer]) -> None:
    np.save(tmp_path / "neighbors.npy", table)
    with pytest.raises(InputError, match=r"neighbors must be item numbers, int32 \[5, 4\]. Received"):
        neighbors.load(tmp_path / "neighbors.npy", 5)
