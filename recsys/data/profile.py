"""The data profile: statistics of a snapshot, and its drift from an earlier one, as dictionaries for JSON.

Equal snapshots have exactly equal statistics.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.data.snapshot import Snapshot

FORMAT = 2
"""Number of the set of fields; reports with another number are not compared."""
QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
TOP_ITEMS = 10
TOP_SHARES = (0.01, 0.1)
"""Shares of the catalog, most popular items first, whose share of the interactions is reported."""
DECILES = 10
CATEGORIES = 20
"""Number of most frequent values of a column that are compared one by one; the others are counted together."""
EPOCH = date(1970, 1, 1)
THURSDAY = 3
"""Weekday of 1970-01-01; Monday is 0."""
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
STABLE, MODERATE, LARGE = "stable", "moderate shift", "large shift"
MODERATE_FROM, LARGE_FROM = 0.1, 0.25
"""Conventional limits from credit scoring (Siddiqi, Credit Risk Scorecards, 2006); not a statistical test."""

Counts = NDArray[np.int64]


def describe(snapshot: Snapshot) -> dict[str, Any]:
    """Return the statistics of a snapshot."""
    total = int(snapshot.popularity.sum())
    ranked = np.argsort(-snapshot.popularity, kind="stable")
    descending = snapshot.popularity[ranked]
    return {
        "interactions": total,
        "users": len(snapshot.users),
        "items": len(snapshot.items),
        "items_with_interactions": int((snapshot.popularity > 0).sum()),
        "first": _isoformat(snapshot.first),
        "last": _isoformat(snapshot.last),
        "interactions_per_day": _by_day(snapshot.hourly),
        "interactions_by_hour": _by_hour(snapshot.hourly).tolist(),
        "interactions_by_weekday": dict(zip(WEEKDAYS, _by_weekday(snapshot.hourly).tolist(), strict=True)),
        "interactions_per_user": _quantiles(snapshot.activity),
        "interactions_per_item": _quantiles(snapshot.popularity),
        "users_by_interactions": _power_of_two_buckets(snapshot.activity),
        "items_by_interactions": _power_of_two_buckets(snapshot.popularity),
        "top_shares": {
            f"{share:.0%}": _share(descending[: int(np.ceil(share * len(ranked)))].sum(), total) for share in TOP_SHARES
        },
        "top_items": [
            {**item, "share": _share(item["interactions"], total)} for item in _item_rows(snapshot, ranked[:TOP_ITEMS])
        ],
        "missing": {column: _share(items, len(snapshot.items)) for column, items in snapshot.missing.items()},
    }


def compare(previous: Snapshot, now: Snapshot) -> dict[str, Any]:
    """Return new and lost items and users, and the shift of the distributions."""
    new_items = ~np.isin(now.items, previous.items)
    common_users = len(np.intersect1d(now.users, previous.users))
    common_items = int((~new_items).sum())
    return {
        "interactions": int(previous.popularity.sum()),
        "users": len(previous.users),
        "items": len(previous.items),
        "last": _isoformat(previous.last),
        "new_items": len(now.items) - common_items,
        "lost_items": len(previous.items) - common_items,
        "new_users": len(now.users) - common_users,
        "lost_users": len(previous.users) - common_users,
        "share_of_new_items": _share(now.popularity[new_items].sum(), now.popularity.sum()),
        "missing": {column: _share(items, len(previous.items)) for column, items in previous.missing.items()},
        "shift": _shifts(previous, now),
    }


def population_stability_index(previous: Counts, now: Counts) -> float:
    """Return the population stability index of two histograms with the same buckets.

    The sum of (q - p) ln(q / p) over the buckets, where p and q are their previous and current shares: 0 if they are
    equal, and symmetric (Jeffreys, 1946; as an index in Siddiqi, Credit Risk Scorecards, 2006). Half a count is added
    to each bucket, so that empty buckets have a finite index. For two samples of sizes n and m from the same
    distribution, the expected index is about (buckets - 1) (1 / n + 1 / m) (Yurdakul, Statistical Properties of
    Population Stability Index, 2018): small samples shift by chance.
    """
    p, q = ((counts + 0.5) / (counts + 0.5).sum() for counts in (previous, now))
    return float(((q - p) * np.log(q / p)).sum())


def decile_histograms(previous: Counts, now: Counts) -> tuple[Counts, Counts]:
    """Return previous and current interactions by the popularity decile of the item in the previous snapshot.

    The items are divided so that each decile has about a tenth of the previous interactions.

    Args:
        previous: interactions of each item, int64 [n]; ties are broken by position.
        now: interactions of the same items, int64 [n].

    Returns:
        Two histograms, int64 [10].
    """
    ranked = np.argsort(-previous, kind="stable")
    earlier = np.cumsum(previous[ranked]) - previous[ranked]
    decile = np.minimum(earlier * DECILES // max(int(previous.sum()), 1), DECILES - 1)
    before, after = (np.bincount(decile, counts[ranked], DECILES).astype(np.int64) for counts in (previous, now))
    return before, after


def shift_level(index: float) -> str:
    """Return the name of the level of a population stability index."""
    return STABLE if index < MODERATE_FROM else MODERATE if index < LARGE_FROM else LARGE


def _shifts(previous: Snapshot, now: Snapshot) -> list[dict[str, Any]]:
    hours = [f"{hour:02d}:00" for hour in range(24)]
    before, after = (_power_of_two_histogram(snapshot.activity) for snapshot in (previous, now))
    buckets = max(len(before), len(after))
    before, after = np.pad(before, (0, buckets - len(before))), np.pad(after, (0, buckets - len(after)))
    pairs: list[tuple[str, list[str], Counts, Counts]] = [
        ("interactions by item popularity", *_by_popularity(previous, now)),
        ("users by activity", _power_of_two_names(buckets), before, after),
        ("interactions by hour of the day", hours, _by_hour(previous.hourly), _by_hour(now.hourly)),
        ("interactions by weekday", list(WEEKDAYS), _by_weekday(previous.hourly), _by_weekday(now.hourly)),
    ]
    for column, values in now.categories.items():
        if column in previous.categories:
            pairs.append((f"items by {column}", *_by_category(previous.categories[column], values)))
    # an all-zero histogram occurs if no item is in both snapshots
    return [_shift(name, names, p, q) for name, names, p, q in pairs if p.any() and q.any()]


def _shift(name: str, buckets: list[str], previous: Counts, now: Counts) -> dict[str, Any]:
    """Compare a previous and a current histogram, without the buckets that are empty in both."""
    nonempty = np.flatnonzero(previous + now)
    previous, now = previous[nonempty], now[nonempty]
    index = population_stability_index(previous, now)
    shares = [[_share(n, counts.sum()) for n in counts] for counts in (previous, now)]
    rows = zip((buckets[bucket] for bucket in nonempty), *shares, strict=True)
    return {
        "name": name,
        "psi": round(index, 6),
        "verdict": shift_level(index),
        "buckets": [{"name": bucket, "previous": before, "now": after} for bucket, before, after in rows],
    }


def _by_popularity(previous: Snapshot, now: Snapshot) -> tuple[list[str], Counts, Counts]:
    """Compare the interactions with the items of both snapshots by popularity decile."""
    _, before, after = np.intersect1d(previous.items, now.items, return_indices=True)
    before, after = (
        before[order := np.argsort(before)],
        after[order],
    )  # in the order of the item numbers, not of the hashes
    return [f"decile {number + 1}" for number in range(DECILES)], *decile_histograms(
        previous.popularity[before], now.popularity[after]
    )


def _by_category(previous: pl.DataFrame, now: pl.DataFrame) -> tuple[list[str], Counts, Counts]:
    """Compare the numbers of items by value: the previously most frequent values, all others, and none."""
    frequent = previous.drop_nulls("value")["value"].head(CATEGORIES).to_list()
    counts = []
    for table in (previous, now):
        items = dict(table.iter_rows())
        named = [items.pop(value, 0) for value in frequent]
        none = items.pop(None, 0)
        counts.append(np.array([*named, sum(items.values()), none], np.int64))
    return [*frequent, "other values", "no value"], counts[0], counts[1]


def _by_hour(hourly: Counts) -> Counts:
    hours = np.flatnonzero(hourly)
    return np.bincount(hours % 24, hourly[hours], 24).astype(np.int64)


def _by_weekday(hourly: Counts) -> Counts:
    hours = np.flatnonzero(hourly)
    return np.bincount((hours // 24 + THURSDAY) % 7, hourly[hours], 7).astype(np.int64)


def _by_day(hourly: Counts) -> dict[str, int]:
    """Return the interactions of each day that has any."""
    hours = np.flatnonzero(hourly)
    days, day = np.unique(hours // 24, return_inverse=True)
    counts = np.bincount(day, hourly[hours])
    return {(EPOCH + timedelta(int(day))).isoformat(): int(n) for day, n in zip(days, counts, strict=True)}


def _quantiles(counts: Counts) -> dict[str, float]:
    """Return the mean and the quantiles (inverted CDF, so each quantile is an observed value)."""
    values = np.quantile(counts, QUANTILES, method="inverted_cdf").tolist()
    names = [f"{share:.0%}" for share in QUANTILES]
    return {"mean": round(float(counts.mean()), 6), **{name: int(n) for name, n in zip(names, values, strict=True)}}


def _power_of_two_histogram(counts: Counts) -> Counts:
    """Return how many counts are 0, 1, 2 to 3, 4 to 7, and so on."""
    return np.bincount(np.frexp(counts)[1])


def _power_of_two_names(buckets: int) -> list[str]:
    edges = [0, *(2**exponent for exponent in range(buckets))]
    return [f"{low}" if high - low == 1 else f"{low} to {high - 1}" for low, high in pairwise(edges)]


def _power_of_two_buckets(counts: Counts) -> dict[str, int]:
    bins = _power_of_two_histogram(counts)
    return dict(zip(_power_of_two_names(len(bins)), bins.tolist(), strict=True))


def _item_rows(snapshot: Snapshot, item_numbers: NDArray[np.int64]) -> list[Mapping[str, Any]]:
    """Return id, title and interactions of items, in the given order."""
    columns = pl.scan_parquet(snapshot.catalog).select("item_id", "title").with_row_index("item_number")
    rows = columns.filter(pl.col("item_number").is_in(item_numbers.tolist())).collect()
    items = {item_number: (item_id, title) for item_number, item_id, title in rows.iter_rows()}
    return [
        {"item_id": items[n][0], "title": items[n][1], "interactions": int(snapshot.popularity[n])}
        for n in item_numbers.tolist()
    ]


def _share(part: Any, whole: Any) -> float:
    return round(float(part) / float(whole), 6) if whole else 0.0


def _isoformat(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
