import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data.item_users import ItemUsers, build
from recsys.errors import InputError
from recsys.release.bundle import Release
from recsys.retrieval.engine import Engine
from recsys.retrieval.query import Query, WeightedItem

ITEMS = 6
touched = st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=8)
logs = st.lists(st.lists(touched, min_size=1, max_size=5), min_size=1, max_size=3)


def write_parts(folder, log):
    """One part for each list of users, each a list of items."""
    parts = []
    for number, users in enumerate(log):
        names = [f"{number}-{user}" for user in range(len(users))]
        times = [[float(time) for time in range(len(items))] for items in users]
        frame = pl.DataFrame(
            {"user_id": names, "items": users, "times": times}, schema_overrides={"items": pl.List(pl.Int32)}
        )
        parts.append(folder / f"part-{number}.parquet")
        frame.write_parquet(parts[-1])
    return parts


@settings(max_examples=40, deadline=None, derandomize=True)
@given(log=logs, query_items=st.lists(st.integers(0, ITEMS - 1), max_size=3))
def test_counts_shared_users(tmp_path_factory, log, query_items):
    folder = tmp_path_factory.mktemp("item_users")
    build(write_parts(folder, log), ITEMS, folder / "item_users.npy")
    item_users = ItemUsers.load(folder / "item_users.npy", ITEMS)
    everyone = [set(items) for users in log for items in users]
    for item in range(ITEMS):
        assert item_users.users(item).tolist() == [u for u, touched in enumerate(everyone) if item in touched]
        both = sum(item in touched and not touched.isdisjoint(query_items) for touched in everyone)
        assert item_users.count_shared(item_users.users_of_any(query_items), item) == both


def test_is_mapped_and_not_read(tmp_path):
    build(write_parts(tmp_path, [[[0, 1], [1]]]), ITEMS, tmp_path / "item_users.npy")
    item_users = ItemUsers.load(tmp_path / "item_users.npy", ITEMS)
    assert not item_users.users(1).flags.owndata
    assert not item_users.offsets.flags.owndata


@pytest.mark.parametrize(
    "content",
    [
        np.zeros(3, np.int32),
        np.zeros((2, 20), np.int32),
        np.zeros(14, np.int64),
        np.array([0] * 12 + [5, 0, 1], np.int32),
        np.array([0, 0, 3, 0, 1, 0, 2, 0, 2, 0, 2, 0, 2, 0, 7, 8], np.int32),
    ],
    ids=["short", "two axes", "wide", "other length", "falling"],
)
def test_rejects_another_array(tmp_path, content):
    np.save(tmp_path / "item_users.npy", content)
    with pytest.raises(InputError, match="item users must be"):
        ItemUsers.load(tmp_path / "item_users.npy", ITEMS)


def test_explanation_has_the_number_of_shared_users(tmp_path, write_release):
    release = Release.load(write_release([f"item {n}" for n in range(ITEMS)]))
    build(write_parts(tmp_path, [[[0, 1, 2], [1, 2]], [[0, 2], [3]]]), ITEMS, tmp_path / "item_users.npy")
    item_users = ItemUsers.load(tmp_path / "item_users.npy", ITEMS)
    space = release.space("next")
    engine = Engine("r", release.catalog, space.vectors, space.index, item_users=item_users)

    def users(*query_items):
        answer = engine.search(Query(items=tuple(WeightedItem(f"item {n}") for n in query_items), explain=True))
        return {neighbor.item_id[-1]: neighbor.explanation.shared_users for neighbor in answer.neighbors}

    assert users(2) == {"0": 2, "1": 2, "3": 0, "4": 0, "5": 0}
    assert users(0, 3) == {"1": 1, "2": 2, "4": 0, "5": 0}
