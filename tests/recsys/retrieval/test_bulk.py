"""The table of neighbors of many items agrees with single queries."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recsys import Release
from recsys.config.sections import IndexConfig
from recsys.data.catalog import Catalog
from recsys.errors import InputError
from recsys.index.annoy_index import build
from recsys.index.distances import DISTANCES, Distance
from recsys.index.neighbors import exact_neighbors
from recsys.retrieval import search
from recsys.retrieval.bulk import SCHEMA, NeighborFilter, nearest
from recsys.retrieval.search import Searcher
from tests import GOLDEN_RELEASES

GOLDEN = GOLDEN_RELEASES
NUM_ITEMS, DIMENSION = 60, 7


@pytest.fixture
def catalog() -> Catalog:
    """Catalog in which each column is a function of the item number."""
    numbers = range(NUM_ITEMS)
    return Catalog(
        pl.DataFrame(
            {
                "item_id": [f"item {number:02d}" for number in numbers],
                "title": [None if number % 5 == 0 else f"Title {number % 2}" for number in numbers],
                "interactions": [number % 7 for number in numbers],
                "year": [None if number % 11 == 0 else 1990.0 + number % 3 for number in numbers],
                "tags": [None if number % 13 == 0 else [f"t{number % 4}", f"t{number % 6}"] for number in numbers],
            },
            schema_overrides={"tags": pl.List(pl.String)},
        )
    )


@pytest.fixture(params=sorted(DISTANCES))
def distance(request: pytest.FixtureRequest) -> Distance:
    return DISTANCES[request.param]


@pytest.fixture(params=[None, 6, NUM_ITEMS - 1], ids=["no table", "short table", "complete table"])
def searcher(
    request: pytest.FixtureRequest, distance: Distance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Searcher:
    """Searcher that uses its table and its index, as for a large catalog."""
    monkeypatch.setattr(search, "EXACT_BELOW", 0)
    monkeypatch.setattr(search, "SELECTIVITY", 2 * NUM_ITEMS)
    vectors = np.random.default_rng(5).normal(size=(NUM_ITEMS, DIMENSION)).astype(np.float32)
    if distance.unit_norm:
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    built = build(vectors, IndexConfig(n_trees=8), tmp_path / "index.ann", distance=distance)
    built.search_k = 100 * NUM_ITEMS  # complete search: a longer result starts with the shorter one
    width = request.param
    table = None if width is None else exact_neighbors(vectors, np.arange(NUM_ITEMS), width, distance)
    return Searcher(vectors, built, distance, table)


def by_item(rows: pl.DataFrame) -> dict[str, list[tuple[Any, ...]]]:
    assert rows.schema == pl.Schema(SCHEMA)
    return {str(item): group.drop("item_id").rows() for (item,), group in rows.group_by("item_id", maintain_order=True)}


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("k", [1, 7, 1_000])
def test_returns_the_neighbors_that_the_release_returns(version: str, k: int) -> None:
    """The floats are equal exactly. Format 1 has no calibration."""
    release = Release.load(GOLDEN / version)
    numbers, space = range(len(release.catalog)), release.space("similar")
    rows = by_item(nearest(release.catalog, space.engine.searcher, numbers, k, calibration=space.calibration))
    assert list(rows) == list(release.catalog.item_ids)
    for item_id, neighbors in rows.items():
        answer = release.similar(item_id, k).neighbors
        assert neighbors == [(n.rank, n.item_id, n.similarity, n.probability) for n in answer]


def test_keeps_the_order_of_the_items(catalog: Catalog, searcher: Searcher) -> None:
    rows = by_item(nearest(catalog, searcher, [40, 3, 17], 2))
    assert list(rows) == ["item 40", "item 03", "item 17"]
    assert {len(neighbors) for neighbors in rows.values()} == {2}


def test_no_items_give_an_empty_table(catalog: Catalog, searcher: Searcher) -> None:
    assert by_item(nearest(catalog, searcher, [], 3)) == {}


def test_a_single_item_has_no_neighbors(write_release: Callable[..., Path]) -> None:
    release = Release.load(write_release(["only"]))
    assert by_item(nearest(release.catalog, release.space("similar").engine.searcher, range(1), 3)) == {}


FILTERS: dict[str, tuple[NeighborFilter, Callable[[int], bool]]] = {
    "interactions": (NeighborFilter(min_interactions=5), lambda n: n % 7 >= 5),
    "text": (NeighborFilter(where={"title": ["Title 1", "Title 7"]}), lambda n: n % 5 != 0 and n % 2 == 1),
    "number": (NeighborFilter(where={"year": [1990, 1992.0]}), lambda n: n % 11 != 0 and n % 3 in (0, 2)),
    "list": (NeighborFilter(where={"tags": ["t5", "t0"]}), lambda n: n % 13 != 0 and (n % 4 == 0 or n % 6 in (0, 5))),
    "all": (
        NeighborFilter(min_interactions=2, where={"title": ["Title 0"], "year": [1991]}),
        lambda n: n % 7 >= 2 and n % 5 != 0 and n % 2 == 0 and n % 11 != 0 and n % 3 == 1,
    ),
}


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("k", [3, 40])
def test_filters_the_ranking_and_still_fills_k(catalog: Catalog, searcher: Searcher, name: str, k: int) -> None:
    """Compared with the complete ranking, filtered in the test. Excluded items are still queried."""
    neighbor_filter, passes = FILTERS[name]
    allowed = neighbor_filter.mask(catalog)
    assert allowed is not None
    assert [bool(value) for value in allowed] == [passes(number) for number in range(NUM_ITEMS)]
    rows = by_item(nearest(catalog, searcher, range(NUM_ITEMS), k, neighbor_filter=neighbor_filter, mask=allowed))
    for number in range(NUM_ITEMS):
        ranking, _ = searcher.index.nearest(number, NUM_ITEMS)
        expected = [f"item {neighbor:02d}" for neighbor in ranking if passes(neighbor)][:k]
        neighbors = rows.get(f"item {number:02d}", [])
        assert [row[1] for row in neighbors] == expected
        assert [row[0] for row in neighbors] == list(range(1, len(expected) + 1))


@pytest.mark.parametrize("filtered", [False, True])
def test_applies_the_minimum_similarity(catalog: Catalog, searcher: Searcher, filtered: bool) -> None:
    table = nearest(catalog, searcher, range(NUM_ITEMS), NUM_ITEMS)
    if filtered:
        table = table.filter(pl.col("neighbor_id").str.slice(5).cast(int) % 7 >= 3)
    minimum = float(table["similarity"].quantile(0.6, "lower") or 0)
    neighbor_filter = NeighborFilter(min_similarity=minimum, min_interactions=3 if filtered else 0)
    rows = nearest(
        catalog,
        searcher,
        range(NUM_ITEMS),
        NUM_ITEMS,
        neighbor_filter=neighbor_filter,
        mask=neighbor_filter.mask(catalog),
    )
    expected = table.filter(pl.col("similarity") >= minimum)
    assert 0 < rows.height < table.height
    assert rows.drop("rank").rows() == expected.drop("rank").rows()


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"color": ["red"]}, "item_id, title, interactions, year, tags. Received: 'color'"),
        ({"title": ["Title 1", 2]}, r"where.title must list strings, .* Received: 2"),
        ({"year": ["1990"]}, r"where.year must list numbers, .* Received: '1990'"),
        ({"tags": [1]}, r"where.tags must list strings, .* Received: 1"),
    ],
)
def test_rejects_a_filter_that_does_not_fit_the_catalog(catalog: Catalog, where: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        NeighborFilter(where=where).mask(catalog)


def test_without_filters_there_is_no_mask(catalog: Catalog) -> None:
    assert NeighborFilter(min_similarity=0.5).mask(catalog) is None
