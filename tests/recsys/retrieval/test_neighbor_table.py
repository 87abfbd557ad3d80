"""Results from the neighbor table and from exact search have equal bytes."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys import Release
from recsys.index.neighbors import WIDTH
from recsys.retrieval import search
from recsys.retrieval.engine import Engine
from recsys.retrieval.overlay import EMPTY_OVERLAY, Overlay
from recsys.retrieval.query import Condition, Query, WeightedItem
from recsys.testing.releases import release_writer
from tests.recsys.retrieval.test_engine_queries import (
    LARGE,
    SMALL,
    columns,
    item,
    numbers,
    overlays,
    property_settings,
    queries,
)

MEDIUM = 5 * WIDTH // 2
"""A table of this catalog ends before the catalog, and its searches are exact."""


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Engine, Engine]]:
    """Engines of each size, with and without the table."""
    pairs = {}
    for size in (SMALL, MEDIUM, LARGE):
        path = release_writer(tmp_path_factory.mktemp(str(size)))([item(n) for n in range(size)], **columns(size))
        space = Release.load(path).spaces["next"]
        pairs[size] = space.engine, dataclasses.replace(space, neighbors=None).engine
        assert pairs[size][0].searcher.neighbors is not None
        assert pairs[size][1].searcher.neighbors is None
    return pairs


def answer(engine: Engine, query: Query, overlay: Overlay = EMPTY_OVERLAY) -> bytes:
    return json.dumps(engine.search(query, overlay).to_dict()).encode()


@st.composite
def single_item_queries(draw: st.DrawFn) -> Query:
    """Return queries for one item with any filters, limits and offsets, up to ranks beyond the table."""
    query = draw(queries())
    return dataclasses.replace(
        query,
        items=(WeightedItem(item(draw(numbers))),),
        negatives=(),
        history=(),
        vector=None,
        k=query.k + draw(st.integers(0, 2 * WIDTH)),
        on_unknown="skip",
        explain=True,
    )


@property_settings
@given(
    query=single_item_queries(),
    overlay=st.just(EMPTY_OVERLAY) | overlays(),
    size=st.sampled_from([SMALL, MEDIUM]),
)
def test_the_table_does_not_change_a_result(engines: Any, query: Query, overlay: Overlay, size: int) -> None:
    by_table, by_search = engines[size]
    assert answer(by_table, query, overlay) == answer(by_search, query, overlay)


@pytest.mark.parametrize(
    "options",
    [
        {"k": WIDTH - 10, "offset": 10},
        {"where": (Condition("year", minimum=2000.0),), "k": 30},
        {"exclude": tuple(item(n) for n in range(0, LARGE, 2)), "k": 20, "offset": 5},
    ],
    ids=["all", "filter", "excluded"],
)
def test_a_large_catalog_is_answered_exactly_as_far_as_the_table_reaches(
    engines: Any, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    by_table, by_search = engines[LARGE]
    item_ids = [item(n) for n in range(0, LARGE, 211)]
    overlay = Overlay(hidden=frozenset(item(n) for n in range(3, LARGE, 11)) - set(item_ids))
    results = [answer(by_table, Query(items=(WeightedItem(i),), **options), overlay) for i in item_ids]
    monkeypatch.setattr(search, "EXACT_BELOW", LARGE)
    assert results == [answer(by_search, Query(items=(WeightedItem(i),), **options), overlay) for i in item_ids]


def test_a_large_catalog_is_searched_beyond_the_table(engines: Any) -> None:
    """The ranking goes on by index and exact search, without repeating an item."""
    by_table, _ = engines[LARGE]
    neighbors = by_table.search(Query.from_item(item(4), LARGE)).neighbors
    assert len({neighbor.item_id for neighbor in neighbors}) == len(neighbors) > 0.95 * LARGE
    similarities = [neighbor.similarity for neighbor in neighbors]
    assert similarities == sorted(similarities, reverse=True)


@pytest.mark.parametrize("count", [2, 5])
def test_a_mean_of_items_in_a_large_catalog_is_searched_with_index_and_table(engines: Any, count: int) -> None:
    """Compared with exact search, which answers without a table; a larger k keeps the first results."""
    by_table, by_search = engines[LARGE]
    rng = np.random.default_rng(count)
    shared = []
    for _ in range(20):
        items = tuple(WeightedItem(item(n)) for n in rng.choice(LARGE, count, replace=False).tolist())
        expected = by_search.search(Query(items=items, k=60)).neighbors
        returned = by_table.search(Query(items=items, k=60)).neighbors
        assert by_table.search(Query(items=items, k=30)).neighbors == returned[:30]
        similarity = {neighbor.item_id: neighbor.similarity for neighbor in expected}
        common = [neighbor for neighbor in returned if neighbor.item_id in similarity]
        assert [similarity[neighbor.item_id] for neighbor in common] == [neighbor.similarity for neighbor in common]
        shared.append(len(common) / len(expected))
    assert np.mean(shared) > 0.95
