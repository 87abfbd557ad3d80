"""Whether tonight's data is like the data that the champion was made of: data reports and catalogs, compared.

What is compared with is always the champion's data, not last night's: data that was refused once must not become
the measure by which it passes the next time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl

from recsys.config.sections import DataSensitivity, ItemsConfig
from recsys.data.catalog import Catalog
from recsys.data.profile import by_tenth, population_stability
from recsys.release.check import Check, at_most, skipped

Report = Mapping[str, Any]
"""What `recsys.data.profile` told of one night, with its row account."""

DAY_S = 86_400.0
WHOLE_WEEKS_DAYS = 28
"""A shorter log has another mix of weekdays every night, by the calendar alone."""
HISTOGRAMS = {"users": "users_by_interactions", "hours": "interactions_by_hour", "weekdays": "interactions_by_weekday"}
BY_CALENDAR = ("hours", "weekdays")


@dataclass(frozen=True)
class DataLimits:
    """How much the data may differ from the champion's data."""

    lost_items: float
    """Share of the champion's items that the catalog no longer has."""
    lost_volume: float
    """Share by which there are fewer interactions."""
    grown_volume: float
    """Share by which there are more interactions."""
    lost_users: float
    """Share by which there are fewer users."""
    grown_day: float
    """Share by which a day that was over when the champion was built has grown."""
    copied_day: float
    """Share of a day's rows that repeat user, item and time of another row, beyond the share of other days."""
    days_back: float
    """Days by which the newest interaction is older."""
    days_ahead: float
    """Days by which the newest interaction lies in the future."""
    one_category: float
    """Share of items that have the same value of a categorical column."""
    missing: float
    """Share of items that have lost the value of a column."""
    shift: float
    """Population stability index of items by category, interactions by popularity, users by activity, hours and
    weekdays. From 0.25 on, the data report calls a shift large."""


LIMITS: dict[DataSensitivity, DataLimits] = {
    "low": DataLimits(
        lost_items=0.8, lost_volume=0.8, grown_volume=10.0, lost_users=0.8, grown_day=5.0, copied_day=0.6,
        days_back=30.0, days_ahead=1.0, one_category=1.0, missing=0.9, shift=5.0,
    ),
    "normal": DataLimits(
        lost_items=0.2, lost_volume=0.3, grown_volume=1.0, lost_users=0.3, grown_day=0.5, copied_day=0.25,
        days_back=1.0, days_ahead=1.0, one_category=0.98, missing=0.2, shift=0.5,
    ),
    "high": DataLimits(
        lost_items=0.05, lost_volume=0.1, grown_volume=0.3, lost_users=0.1, grown_day=0.1, copied_day=0.05,
        days_back=0.0, days_ahead=0.0, one_category=0.9, missing=0.05, shift=0.25,
    ),
}  # fmt: skip
"""Limits by `promote.data_sensitivity`. `normal` passes ordinary nightly changes and rejects the faults of
`benchmarks.regressions`; `low` is for a deliberate change of the data; `high` for data that hardly change."""


def account_checks(report: Report, max_dead_letter_ratio: float) -> list[Check]:
    """Every row is used, filtered by a rule, or a dead letter; and few are dead."""
    checks = []
    for table, rows in report["account"].items():
        dead, filtered = sum(rows["dead_letters"].values()), sum(rows["filtered"].values())
        lost = abs(rows["read"] - rows["used"] - filtered - dead)
        checks.append(at_most(f"{table}_unaccounted", lost, 0))
        checks.append(at_most(f"{table}_dead", _share(dead, rows["read"]), max_dead_letter_ratio))
    return checks


def day_checks(
    report: Report, copies: Mapping[str, Mapping[str, int]], now: datetime, limits: DataLimits
) -> list[Check]:
    """What a day or a moment of the log gives away, without another night to compare with.

    Args:
        report: tonight's.
        copies: of each day with rows that repeat user, item and time of another: `rows`, all of them, and
            `copies`, those that repeat.
        now: the time that it is.
        limits: of `LIMITS`.
    """
    last = datetime.fromisoformat(report["last"])
    return [
        at_most("data_days_ahead", max((last - now.astimezone(UTC)).total_seconds() / DAY_S, 0.0), limits.days_ahead),
        at_most("data_copied_day", _copied(report, copies), limits.copied_day),
    ]


def column_checks(catalog: Catalog, items: ItemsConfig, limits: DataLimits) -> list[Check]:
    """No category may be that of nearly all items: it would say nothing."""
    shares = [
        _share(int(counts["items"].max() or 0), len(catalog))  # type: ignore[arg-type]
        for counts in (_values(catalog, column) for column in _categorical(catalog, items))
        if counts.height
    ]
    if not shares:
        return [skipped("data_one_category", "no categorical column")]
    return [at_most("data_one_category", max(shares), limits.one_category)]


def champion_checks(
    report: Report,
    catalog: Catalog,
    before: Report | None,
    champion: Catalog | None,
    items: ItemsConfig,
    *,
    limits: DataLimits,
) -> list[Check]:
    """How far the data has moved since the champion was made.

    Args:
        report: tonight's.
        catalog: tonight's.
        before: the report of the champion's night, None where it is lost.
        champion: the champion's catalog, None without a champion.
        items: which columns are what.
        limits: of `LIMITS`.
    """
    names = ("data_lost_items", "data_items_shift", "data_popularity_shift", "data_missing")
    of_report = ("data_lost_volume", "data_grown_volume", "data_lost_users", "data_days_back", "data_grown_day")
    if champion is None:
        return [skipped(name, "no champion") for name in (*names, *of_report, *(f"data_{n}_shift" for n in HISTOGRAMS))]
    checks = [
        at_most("data_lost_items", _lost(catalog, champion), limits.lost_items),
        _items_shift(catalog, champion, items, limits),
        _popularity_shift(catalog, champion, limits),
        at_most("data_missing", _missing(catalog, champion), limits.missing),
    ]
    if before is None:
        why = "the champion's data report is lost"
        return [*checks, *(skipped(name, why) for name in (*of_report, *(f"data_{n}_shift" for n in HISTOGRAMS)))]
    volume = report["interactions"] / max(before["interactions"], 1)
    back = datetime.fromisoformat(before["last"]) - datetime.fromisoformat(report["last"])
    return [
        *checks,
        at_most("data_lost_volume", max(1 - volume, 0.0), limits.lost_volume),
        at_most("data_grown_volume", max(volume - 1, 0.0), limits.grown_volume),
        at_most("data_lost_users", max(1 - report["users"] / max(before["users"], 1), 0.0), limits.lost_users),
        at_most("data_days_back", max(back.total_seconds() / DAY_S, 0.0), limits.days_back),
        _grown_day(report, before, limits),
        *(_shift(name, report, before, limits) for name in HISTOGRAMS),
    ]


def _copied(report: Report, copies: Mapping[str, Mapping[str, int]]) -> float:
    """How much more of one day is copies than of the others; a small day counts as one of usual size.

    Where one is delivered twice, half of its rows are.
    """
    total = sum(report["interactions_a_day"].values()) + sum(day["copies"] for day in copies.values())
    every = sum(day["copies"] for day in copies.values())
    usual = total / max(len(report["interactions_a_day"]), 1)
    excess = [0.0]
    for day in copies.values():
        rest = _share(every - day["copies"], total - day["rows"])
        excess.append((day["copies"] - rest * day["rows"]) / max(day["rows"], usual, 1))
    return max(excess)


def _lost(now: Catalog, before: Catalog) -> float:
    kept = (now.item_numbers(before.item_ids, missing=-1) >= 0).sum()
    return 1 - _share(int(kept), len(before))


def _missing(now: Catalog, before: Catalog) -> float:
    """How much more of a column is missing, of the column where it is most."""
    columns = [name for name in now.frame.columns if name in before.frame.columns]
    shares = [
        [float(value) for value in catalog.frame.select(_none(catalog, name).mean() for name in columns).row(0)]
        for catalog in (now, before)
    ]
    return max((after - earlier for after, earlier in zip(*shares, strict=True)), default=0.0)


def _none(catalog: Catalog, column: str) -> pl.Expr:
    values = pl.col(column)
    if isinstance(catalog.frame.schema[column], pl.List):
        return (values.is_null() | (values.list.len() == 0)).alias(column)
    return values.is_null()


def _items_shift(now: Catalog, before: Catalog, items: ItemsConfig, limits: DataLimits) -> Check:
    """The largest population stability index of the items by a categorical column."""
    name, found = "data_items_shift", []
    for column in _categorical(now, items):
        if column in before.frame.columns:
            both = _values(now, column).join(_values(before, column), on="value", how="full", coalesce=True)
            found.append(_index(both["items_right"].fill_null(0).to_numpy(), both["items"].fill_null(0).to_numpy()))
    if not found:
        return skipped(name, "no categorical column that both have")
    return at_most(name, max(found), limits.shift)


def _popularity_shift(now: Catalog, before: Catalog, limits: DataLimits) -> Check:
    """Interactions with the items of both, by the tenth of the interactions that an item was in before."""
    name = "data_popularity_shift"
    both = before.frame.select("item_id", before="interactions").join(
        now.frame.select("item_id", now="interactions"), on="item_id"
    )
    by_id = both.sort("item_id")
    old, new = by_id["before"].to_numpy(), by_id["now"].to_numpy()
    if not old.sum() or not new.sum():
        return skipped(name, "no interactions with items that both have")
    return at_most(name, _index(*by_tenth(old, new)), limits.shift)


def _grown_day(report: Report, before: Report, limits: DataLimits) -> Check:
    """By how much the day that grew most did, of those that were over when the champion was made."""
    name, days, earlier = "data_grown_day", report["interactions_a_day"], before["interactions_a_day"]
    over = [day for day in earlier if day in days and day < max(earlier)]
    if not over:
        return skipped(name, "no day that was over when the champion was made")
    usual = sum(earlier.values()) / len(earlier)
    return at_most(name, max((days[day] - earlier[day]) / max(earlier[day], usual) for day in over), limits.grown_day)


def _shift(name: str, report: Report, before: Report, limits: DataLimits) -> Check:
    check = f"data_{name}_shift"
    shortest = min(len(report["interactions_a_day"]), len(before["interactions_a_day"]))
    if name in BY_CALENDAR and shortest < WHOLE_WEEKS_DAYS:
        return skipped(check, f"a log of {shortest} days, fewer than {WHOLE_WEEKS_DAYS}")
    after, earlier = (_histogram(night[HISTOGRAMS[name]]) for night in (report, before))
    width = max(len(after), len(earlier))
    return at_most(check, _index(*(np.pad(one, (0, width - len(one))) for one in (earlier, after))), limits.shift)


def _histogram(counts: Any) -> Any:
    return np.array(list(counts.values()) if isinstance(counts, Mapping) else counts, np.int64)


def _index(before: Any, now: Any) -> float:
    """Population stability index, buckets that are empty in both left out."""
    there = (before + now) > 0
    return population_stability(before[there], now[there])


def _categorical(catalog: Catalog, items: ItemsConfig) -> list[str]:
    return [name for name in (*items.categorical, *items.multi_categorical) if name in catalog.frame.columns]


def _values(catalog: Catalog, column: str) -> pl.DataFrame:
    """`value` and how many `items` have it."""
    values = catalog.frame.select(value=column)
    if isinstance(values.schema["value"], pl.List):
        values = values.select(pl.col("value").list.unique()).explode("value", empty_as_null=True)
    return values.drop_nulls().group_by("value").agg(items=pl.len().cast(pl.Int64))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
