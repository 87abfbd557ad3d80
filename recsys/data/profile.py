"""What a snapshot holds, and how far it has moved from the one before: figures, as a dictionary for JSON.

Equal snapshots give equal figures, to the last digit.
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

FORMAT = 1
QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
TOP_ITEMS = 10
TOP_SHARES = (0.01, 0.1)
"""Shares of the catalog whose part of the interactions is told."""
TENTHS = 10
CATEGORIES = 20
"""Most frequent values of a column that are compared one by one; the others count together."""
EPOCH = date(1970, 1, 1)
THURSDAY = 3
"""Weekday of 1970-01-01, Monday being 0."""
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
STABLE, MODERATE, LARGE = "stable", "moderate shift", "large shift"
MODERATE_FROM, LARGE_FROM = 0.1, 0.25
"""Where credit scoring draws its lines (Siddiqi, Credit Risk Scorecards, 2006): a custom, not a test."""

Counts = NDArray[np.int64]


def describe(now: Snapshot) -> dict[str, Any]:
    """Figures of one snapshot."""
    total = int(now.popularity.sum())
    ranked = np.argsort(-now.popularity, kind="stable")
    descending = now.popularity[ranked]
    return {
        "interactions": total,
        "users": len(now.users),
        "items": len(now.items),
        "touched_items": int((now.popularity > 0).sum()),
        "first": _moment(now.first),
        "last": _moment(now.last),
        "interactions_a_day": _days(now.hourly),
        "interactions_by_hour": _by_hour(now.hourly).tolist(),
        "interactions_by_weekday": dict(zip(WEEKDAYS, _by_weekday(now.hourly).tolist(), strict=True)),
        "interactions_a_user": _quantiles(now.activity),
        "interactions_an_item": _quantiles(now.popularity),
        "users_by_interactions": _doublings(now.activity),
        "items_by_interactions": _doublings(now.popularity),
        "top_shares": {
            f"{share:.0%}": _share(descending[: int(np.ceil(share * len(ranked)))].sum(), total) for share in TOP_SHARES
        },
        "top_items": [
            {**item, "share": _share(item["interactions"], total)} for item in _named(now, ranked[:TOP_ITEMS])
        ],
        "missing": {column: _share(items, len(now.items)) for column, items in now.missing.items()},
    }


def compare(previous: Snapshot, now: Snapshot) -> dict[str, Any]:
    """What came, what went, and how the distributions moved."""
    new_items = ~np.isin(now.items, previous.items)
    kept_users = len(np.intersect1d(now.users, previous.users))
    kept_items = int((~new_items).sum())
    return {
        "interactions": int(previous.popularity.sum()),
        "users": len(previous.users),
        "items": len(previous.items),
        "last": _moment(previous.last),
        "new_items": len(now.items) - kept_items,
        "lost_items": len(previous.items) - kept_items,
        "new_users": len(now.users) - kept_users,
        "lost_users": len(previous.users) - kept_users,
        "share_of_new_items": _share(now.popularity[new_items].sum(), now.popularity.sum()),
        "missing": {column: _share(items, len(previous.items)) for column, items in previous.missing.items()},
        "shift": _shifts(previous, now),
    }


def population_stability(previous: Counts, now: Counts) -> float:
    """Population stability index of two histograms with the same buckets.

    The sum of (q - p) ln(q / p) over the buckets, p and q their shares before and now: 0 where they are equal,
    the same in both directions (Jeffreys, 1946; as an index in Siddiqi, Credit Risk Scorecards, 2006). Half a count
    is added to each bucket, so that an empty one is no infinity. By chance alone it is about
    (buckets - 1) (1 / n + 1 / m) for samples of n and m (Yurdakul, Statistical Properties of Population Stability
    Index, 2018): small samples shift by themselves.
    """
    p, q = ((counts + 0.5) / (counts + 0.5).sum() for counts in (previous, now))
    return float(((q - p) * np.log(q / p)).sum())


def by_tenth(previous: Counts, now: Counts) -> tuple[Counts, Counts]:
    """Interactions with the same items before and now, by the tenth of the interactions that an item was in before.

    Args:
        previous: of each item, int64 [n]; of equal ones, the first counts as the more popular.
        now: the same, int64 [n].

    Returns:
        Two histograms, int64 [10].
    """
    ranked = np.argsort(-previous, kind="stable")
    until = np.cumsum(previous[ranked]) - previous[ranked]
    tenth = np.minimum(until * TENTHS // max(int(previous.sum()), 1), TENTHS - 1)
    before, after = (np.bincount(tenth, counts[ranked], TENTHS).astype(np.int64) for counts in (previous, now))
    return before, after


def verdict(index: float) -> str:
    """A population stability index in words."""
    return STABLE if index < MODERATE_FROM else MODERATE if index < LARGE_FROM else LARGE


def _shifts(previous: Snapshot, now: Snapshot) -> list[dict[str, Any]]:
    hours = [f"{hour:02d}:00" for hour in range(24)]
    before, after = (_doubling_counts(snapshot.activity) for snapshot in (previous, now))
    buckets = max(len(before), len(after))
    before, after = np.pad(before, (0, buckets - len(before))), np.pad(after, (0, buckets - len(after)))
    pairs: list[tuple[str, list[str], Counts, Counts]] = [
        ("interactions by item popularity", *_by_popularity(previous, now)),
        ("users by activity", _doubling_names(buckets), before, after),
        ("interactions by hour of the day", hours, _by_hour(previous.hourly), _by_hour(now.hourly)),
        ("interactions by weekday", list(WEEKDAYS), _by_weekday(previous.hourly), _by_weekday(now.hourly)),
    ]
    for column, values in now.categories.items():
        if column in previous.categories:
            pairs.append((f"items by {column}", *_by_category(previous.categories[column], values)))
    # where no item is in both, none has a popularity to compare
    return [_shift(name, names, p, q) for name, names, p, q in pairs if p.any() and q.any()]


def _shift(name: str, buckets: list[str], previous: Counts, now: Counts) -> dict[str, Any]:
    """One distribution before and now; buckets that are empty in both are left out."""
    there = np.flatnonzero(previous + now)
    previous, now = previous[there], now[there]
    index = population_stability(previous, now)
    shares = [[_share(n, counts.sum()) for n in counts] for counts in (previous, now)]
    rows = zip((buckets[bucket] for bucket in there), *shares, strict=True)
    return {
        "name": name,
        "psi": round(index, 6),
        "verdict": verdict(index),
        "buckets": [{"name": bucket, "previous": before, "now": after} for bucket, before, after in rows],
    }


def _by_popularity(previous: Snapshot, now: Snapshot) -> tuple[list[str], Counts, Counts]:
    """Interactions with the items of both, by the tenth of the interactions that an item was in before."""
    _, before, after = np.intersect1d(previous.items, now.items, return_indices=True)
    before, after = before[order := np.argsort(before)], after[order]  # by item number, not by hash
    return [f"tenth {number + 1}" for number in range(TENTHS)], *by_tenth(
        previous.popularity[before], now.popularity[after]
    )


def _by_category(previous: pl.DataFrame, now: pl.DataFrame) -> tuple[list[str], Counts, Counts]:
    """Items by the most frequent values before, all other values, and none."""
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


def _days(hourly: Counts) -> dict[str, int]:
    """Interactions of each day that has any."""
    hours = np.flatnonzero(hourly)
    days, place = np.unique(hours // 24, return_inverse=True)
    counts = np.bincount(place, hourly[hours])
    return {(EPOCH + timedelta(int(day))).isoformat(): int(n) for day, n in zip(days, counts, strict=True)}


def _quantiles(counts: Counts) -> dict[str, float]:
    """Mean and quantiles; each quantile is a value that occurs: the smallest that so large a share does not exceed."""
    values = np.quantile(counts, QUANTILES, method="inverted_cdf").tolist()
    names = [f"{share:.0%}" for share in QUANTILES]
    return {"mean": round(float(counts.mean()), 6), **{name: int(n) for name, n in zip(names, values, strict=True)}}


def _doubling_counts(counts: Counts) -> Counts:
    """How many are 0, 1, 2 to 3, 4 to 7, and so on."""
    return np.bincount(np.frexp(counts)[1])


def _doubling_names(buckets: int) -> list[str]:
    edges = [0, *(2**exponent for exponent in range(buckets))]
    return [f"{low}" if high - low == 1 else f"{low} to {high - 1}" for low, high in pairwise(edges)]


def _doublings(counts: Counts) -> dict[str, int]:
    bins = _doubling_counts(counts)
    return dict(zip(_doubling_names(len(bins)), bins.tolist(), strict=True))


def _named(snapshot: Snapshot, numbers: NDArray[np.int64]) -> list[Mapping[str, Any]]:
    """Id, title and interactions of some items, in their order."""
    columns = pl.scan_parquet(snapshot.catalog).select("item_id", "title").with_row_index("number")
    found = columns.filter(pl.col("number").is_in(numbers.tolist())).collect()
    items = {number: (item_id, title) for number, item_id, title in found.iter_rows()}
    return [
        {"item_id": items[n][0], "title": items[n][1], "interactions": int(snapshot.popularity[n])}
        for n in numbers.tolist()
    ]


def _share(part: Any, whole: Any) -> float:
    return round(float(part) / float(whole), 6) if whole else 0.0


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
