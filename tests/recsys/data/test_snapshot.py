"""Counts of a snapshot against plain loops over the rows that it was made of."""

import random
from collections import Counter
from typing import NamedTuple

import polars as pl
import pytest

from recsys.config.sections import ItemsConfig
from recsys.data.snapshot import HOURS, Snapshot

ROLES = ItemsConfig(title="name", categorical=("brand",), multi_categorical=("tags",), numeric=("price",))


class World(NamedTuple):
    """Files as `prepare` leaves them, and the rows that they hold."""

    snapshot: Snapshot
    rows: list[tuple[str, int, float]]
    """User, item number and time."""


@pytest.fixture(params=[1, 3], ids="{} parts".format)
def world(tmp_path, request):
    """5 items of which the last is not touched, 11 users; one part of the sequences may be empty."""
    rng = random.Random(3)  # noqa: S311 - made-up data
    users = {f"u{n}": sorted(rng.uniform(0, 9e6) for _ in range(rng.randrange(1, 9))) for n in range(11)}
    rows = [(user, rng.randrange(4), time) for user, times in users.items() for time in times]
    catalog = pl.DataFrame(
        {
            "item_id": ["a", "b", "c", "d", "e"],
            "title": ["A", None, " ", "D", "E"],
            "interactions": [0] * 5,
            "brand": ["x", "y", "x", None, ""],
            "tags": [["p", "q"], [], None, ["q"], ["q", "r"]],
            "price": [1.0, None, None, None, 2.0],
        },
        schema_overrides={"tags": pl.List(pl.String)},
    )
    catalog.write_parquet(tmp_path / "catalog.parquet")
    parts = []
    for part in range(request.param):
        own = [(user, *zip(*[(i, t) for u, i, t in rows if u == user], strict=True)) for user in users]
        own = [row for number, row in enumerate(own) if number % max(request.param - 1, 1) == part]
        schema = {"user_id": pl.String, "items": pl.List(pl.Int32), "times": pl.List(pl.Float64)}
        parts.append(tmp_path / f"part-{part}.parquet")
        pl.DataFrame([(u, list(i), list(t)) for u, i, t in own], schema=schema, orient="row").write_parquet(parts[-1])
    return World(Snapshot.from_files(tmp_path / "catalog.parquet", parts, ROLES), rows)


def test_interactions_are_counted_by_item_and_by_user(world):
    items = Counter(item for _, item, _ in world.rows)
    assert world.snapshot.popularity.tolist() == [items[number] for number in range(5)]
    assert sorted(world.snapshot.activity) == sorted(Counter(user for user, _, _ in world.rows).values())
    assert len(set(world.snapshot.users.tolist())) == 11
    assert len(set(world.snapshot.items.tolist())) == 5
    assert repr(world.snapshot) == f"Snapshot({len(world.rows)} interactions, 11 users, 5 items)"


def test_interactions_are_counted_by_the_hour(world):
    hours = Counter(int(time / 3600) for _, _, time in world.rows)
    assert len(world.snapshot.hourly) == HOURS
    assert {hour: n for hour, n in enumerate(world.snapshot.hourly.tolist()) if n} == hours
    times = [time for _, _, time in world.rows]
    assert (world.snapshot.first, world.snapshot.last) == (min(times), max(times))


def test_null_blank_and_empty_lists_count_as_missing(world):
    assert world.snapshot.missing == {"title": 2, "brand": 2, "tags": 2, "price": 3}


def test_categories_are_counted_the_most_frequent_first(world):
    assert world.snapshot.categories["brand"].rows() == [("x", 2), (None, 2), ("y", 1)]
    assert world.snapshot.categories["tags"].rows() == [("q", 3), (None, 2), ("p", 1), ("r", 1)]


def test_columns_outside_the_catalog_are_ignored(world):
    other = ItemsConfig(categorical=("brand", "color"), numeric=("weight",))
    snapshot = Snapshot.from_files(world.snapshot.catalog, [], other)
    assert (list(snapshot.missing), list(snapshot.categories)) == (["brand"], ["brand"])
