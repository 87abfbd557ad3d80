"""Figures of the data report against plain computations over lists."""

import datetime as dt
import json
import math
from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.config.sections import ItemsConfig
from recsys.data.profile import compare, describe, population_stability_index, shift_level
from recsys.data.snapshot import Snapshot

ROLES = ItemsConfig(title="title", categorical=("brand",))
MONDAY = dt.datetime(2024, 1, 1, tzinfo=dt.UTC).timestamp()
HOUR, DAY = 3_600, 86_400


@pytest.fixture
def snapshot(tmp_path):
    """Rows of user, item and time, and a brand by item, as a counted snapshot."""
    made = iter(range(99))

    def count(rows, brands):
        folder = tmp_path / str(next(made))
        folder.mkdir()
        items = sorted(brands)
        pl.DataFrame(
            {"item_id": items, "title": [item.upper() for item in items], "brand": [brands[item] for item in items]},
            schema_overrides={"brand": pl.String},
        ).write_parquet(folder / "catalog.parquet")
        frame = pl.DataFrame(rows, schema=["user_id", "item", "times"], orient="row").with_columns(
            items=pl.col("item").replace_strict(items, list(range(len(items))), return_dtype=pl.Int32),
            times=pl.col("times").cast(pl.Float64),
        )
        users = frame.group_by("user_id", maintain_order=True).agg("items", "times")
        users.write_parquet(folder / "part.parquet")
        return Snapshot.from_files(folder / "catalog.parquet", [folder / "part.parquet"], ROLES)

    return count


BRANDS = {"a": "x", "b": "x", "c": "y", "d": None}
ROWS = [
    *[("u1", item, MONDAY + 2 * HOUR + n) for n, item in enumerate("abababa")],
    *[("u2", item, MONDAY + 2 * DAY + 23 * HOUR + n) for n, item in enumerate("abc")],
    ("u3", "a", MONDAY + 9 * DAY),
]


# --- one snapshot


def test_volume_and_time(snapshot):
    figures = describe(snapshot(ROWS, BRANDS))
    assert (figures["interactions"], figures["users"], figures["items"], figures["items_with_interactions"]) == (
        11,
        3,
        4,
        3,
    )
    assert (figures["first"], figures["last"]) == ("2024-01-01T02:00:00+00:00", "2024-01-10T00:00:00+00:00")
    assert figures["interactions_per_day"] == {"2024-01-01": 7, "2024-01-03": 3, "2024-01-10": 1}
    assert figures["interactions_by_hour"] == [1, 0, 7, *[0] * 20, 3]
    assert figures["interactions_by_weekday"] == {"Mon": 7, "Tue": 0, "Wed": 4, "Thu": 0, "Fri": 0, "Sat": 0, "Sun": 0}


def test_quantiles_are_values_that_occur(snapshot):
    rows = [(f"u{user}", "ab"[n % 2], MONDAY + n) for user in range(23) for n in range(user * user % 17 + 1)]
    figures = describe(snapshot(rows, {"a": "x", "b": "x"}))["interactions_per_user"]
    lengths = sorted(Counter(user for user, _, _ in rows).values())
    for name, share in {"25%": 0.25, "50%": 0.5, "75%": 0.75, "90%": 0.9, "99%": 0.99}.items():
        assert figures[name] == lengths[math.ceil(share * len(lengths)) - 1]
    assert (figures["0%"], figures["100%"]) == (lengths[0], lengths[-1])
    assert figures["mean"] == pytest.approx(sum(lengths) / len(lengths), abs=1e-6)


def test_users_and_items_are_counted_by_powers_of_two(snapshot):
    figures = describe(snapshot(ROWS, BRANDS))
    assert figures["users_by_interactions"] == {"0": 0, "1": 1, "2 to 3": 1, "4 to 7": 1}
    assert figures["items_by_interactions"] == {"0": 1, "1": 1, "2 to 3": 0, "4 to 7": 2}


def test_most_popular_items_and_their_share(snapshot):
    brands = {f"i{n:02d}": None for n in range(30)}
    rows = [(f"u{n}", f"i{n % 30:02d}", MONDAY + n) for n in range(40)] + [("v", "i07", MONDAY)] * 5
    figures = describe(snapshot(rows, brands))
    counts = Counter(item for _, item, _ in rows)
    expected = sorted(counts, key=lambda item: (-counts[item], item))
    assert [item["item_id"] for item in figures["top_items"]] == expected[:10]
    first = figures["top_items"][0]
    assert first == {"item_id": "i07", "title": "I07", "interactions": 7, "share": round(7 / 45, 6)}
    assert (
        figures["top_shares"]
        == {
            "1%": round(7 / 45, 6),  # one item, rounded up
            "10%": round(sum(counts[item] for item in expected[:3]) / 45, 6),
        }
    )


def test_missing_values_are_a_share(snapshot):
    assert describe(snapshot(ROWS, BRANDS))["missing"] == {"title": 0.0, "brand": 0.25}


# --- two of them


def test_added_and_removed_items_are_counted(snapshot):
    before = snapshot(ROWS, BRANDS)
    rows = [("u2", "b", MONDAY), ("u2", "e", MONDAY + 1), ("u4", "e", MONDAY), ("u5", "f", MONDAY + 3 * DAY)]
    moved = compare(before, snapshot(rows, {"b": "x", "e": "y", "f": "z"}))
    assert (moved["interactions"], moved["users"], moved["items"]) == (11, 3, 4)
    assert (moved["new_items"], moved["lost_items"]) == (2, 3)
    assert (moved["new_users"], moved["lost_users"]) == (2, 2)
    assert moved["share_of_new_items"] == 0.75
    assert moved["last"] == "2024-01-10T00:00:00+00:00"
    assert moved["missing"] == {"title": 0.0, "brand": 0.25}


def shift(moved, name):
    result = next(shift for shift in moved["shift"] if shift["name"] == name)
    assert result["verdict"] == shift_level(result["psi"])
    return result


def naive_index(before, after):
    """With half a count in each bucket that is not empty in both."""
    kept = [(p + 0.5, q + 0.5) for p, q in zip(before, after, strict=True) if p or q]
    ps, qs = sum(p for p, _ in kept), sum(q for _, q in kept)
    return sum((q / qs - p / ps) * math.log((q / qs) / (p / ps)) for p, q in kept)


def test_equal_snapshots_have_no_shift(snapshot):
    moved = compare(snapshot(ROWS, BRANDS), snapshot(ROWS, BRANDS))
    assert [(shift["name"], shift["psi"], shift["verdict"]) for shift in moved["shift"]] == [
        (name, 0.0, "stable")
        for name in (
            "interactions by item popularity",
            "users by activity",
            "interactions by hour of the day",
            "interactions by weekday",
            "items by brand",
        )
    ]


def test_hours_and_weekdays_are_compared(snapshot):
    later = [(user, item, time + DAY + 5 * HOUR) for user, item, time in ROWS]
    before, after = snapshot(ROWS, BRANDS), snapshot(later, BRANDS)
    moved = compare(before, after)
    for name, key in (("hour of the day", "interactions_by_hour"), ("weekday", "interactions_by_weekday")):
        sides = [describe(side)[key] for side in (before, after)]
        sides = [list(side.values()) if isinstance(side, dict) else side for side in sides]
        result = shift(moved, f"interactions by {name}")
        assert result["psi"] == pytest.approx(naive_index(*sides), abs=1e-6)
        assert result["verdict"] == "large shift"
    wednesday = next(bucket for bucket in result["buckets"] if bucket["name"] == "Wed")
    assert wednesday == {"name": "Wed", "previous": round(4 / 11, 6), "now": 0.0}


def test_activity_is_compared_by_powers_of_two(snapshot):
    busy = [("u9", "ab"[n % 2], MONDAY + n) for n in range(20)]
    moved = compare(snapshot(ROWS, BRANDS), snapshot([*ROWS, *busy], BRANDS))
    result = shift(moved, "users by activity")
    assert [bucket["name"] for bucket in result["buckets"]] == ["1", "2 to 3", "4 to 7", "16 to 31"]
    assert result["psi"] == pytest.approx(naive_index([1, 1, 1, 0], [1, 1, 1, 1]), abs=1e-6)


def test_popularity_is_compared_by_tenths_of_earlier_interactions(snapshot):
    """Twelve items: an item belongs to the tenth in which its interactions begin, the most popular first."""
    counts = [9, 7, 5, 5, 3, 2, 2, 2, 2, 1, 1, 1]
    names = [f"i{(5 * n) % 12:02d}" for n in range(12)]
    after = dict(zip(names, [1, 7, 9, 0, 3, 4, 2, 2, 6, 1, 5, 1], strict=True))
    before = dict(zip(names, counts, strict=True))

    def rows(counts):
        return [(f"u{n}", item, MONDAY) for item, touched in counts.items() for n in range(touched)]

    brands = dict.fromkeys(names)
    moved = compare(
        snapshot([*rows(before), ("u1", "lost", 1)], {**brands, "lost": None}),
        snapshot([*rows(after), *[("u1", "new", MONDAY)] * 30], {**brands, "new": None}),
    )
    ranked = sorted(names, key=lambda name: (-before[name], name))
    tenths, seen = [[0] * 10, [0] * 10], 0
    for name in ranked:
        tenth = seen * 10 // sum(counts)
        tenths[0][tenth] += before[name]
        tenths[1][tenth] += after[name]
        seen += before[name]
    result = shift(moved, "interactions by item popularity")
    assert result["psi"] == pytest.approx(naive_index(*tenths), abs=1e-6)
    shares = [round(n / sum(counts), 6) for n in tenths[0]]
    assert [bucket["previous"] for bucket in result["buckets"]] == [share for share in shares if share]


def test_swapped_items_shift_their_popularity(snapshot):
    names = [f"i{n}" for n in range(8)]
    rows = [(f"u{n}", name, MONDAY) for place, name in enumerate(names) for n in range(2**place)]
    swapped = [(user, names[7 - names.index(item)], time) for user, item, time in rows]
    brands = dict.fromkeys(names)
    moved = compare(snapshot(rows, brands), snapshot(swapped, brands))
    assert shift(moved, "interactions by item popularity")["verdict"] == "large shift"
    assert shift(moved, "users by activity")["psi"] == 0.0


def test_popularity_is_not_compared_without_common_items(snapshot):
    moved = compare(snapshot(ROWS, BRANDS), snapshot([("u1", "z", MONDAY)], {"z": "x"}))
    assert "interactions by item popularity" not in {shift["name"] for shift in moved["shift"]}
    assert (moved["new_items"], moved["lost_items"]) == (1, 4)


def test_categories_are_compared_by_most_frequent_other_and_missing(snapshot):
    before = {f"i{n:03d}": f"brand {n % 23:02d}" for n in range(23 * 3 - 2)} | {"z": None}
    after = {name: "new" if brand == "brand 00" else brand for name, brand in before.items()} | {"z2": None}
    moved = compare(snapshot([("u", "z", MONDAY)], before), snapshot([("u", "z", MONDAY)], after))
    result = shift(moved, "items by brand")
    frequent = sorted({b for b in before.values() if b}, key=lambda brand: (-list(before.values()).count(brand), brand))
    frequent = frequent[:20]
    sides = []
    for brands in (before, after):
        counts = Counter(brands.values())
        named = [counts[brand] for brand in frequent]
        sides.append([*named, len(brands) - sum(named) - counts[None], counts[None]])
    assert [bucket["name"] for bucket in result["buckets"]] == [*frequent, "other values", "no value"]
    assert result["psi"] == pytest.approx(naive_index(*sides), abs=1e-6)
    assert [bucket["now"] for bucket in result["buckets"]] == [round(n / len(after), 6) for n in sides[1]]


def test_new_column_is_not_compared(snapshot, tmp_path):
    now = snapshot(ROWS, BRANDS)
    pl.read_parquet(now.catalog).drop("brand").write_parquet(tmp_path / "older.parquet")
    before = Snapshot.from_files(tmp_path / "older.parquet", [now.catalog.parent / "part.parquet"], ROLES)
    assert "items by brand" not in {shift["name"] for shift in compare(before, now)["shift"]}


# --- the index


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), min_size=1, max_size=12))
def test_population_stability_index_is_symmetric_and_not_negative(pairs):
    before, after = np.array(pairs).T
    index = population_stability_index(before, after)
    assert index >= -1e-12
    assert index == pytest.approx(population_stability_index(after, before))
    assert math.isfinite(index)


@pytest.mark.parametrize(
    ("index", "word"), [(0.0, "stable"), (0.0999, "stable"), (0.1, "moderate shift"), (0.25, "large shift")]
)
def test_population_stability_index_is_described(index, word):
    assert shift_level(index) == word


def test_profile_is_deterministic_and_serializable(snapshot):
    texts = {
        json.dumps([describe(side), compare(snapshot(ROWS[:-1], BRANDS), side)], allow_nan=False)
        for side in (snapshot(ROWS, BRANDS), snapshot(ROWS, BRANDS))
    }
    assert len(texts) == 1
