"""Gate checks of the input data: the row account, single days and columns, and changes since the champion.

The reference is always the champion's data, not the data of the last run: rejected data must not become the
reference by which the next run passes.
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
from recsys.data.profile import decile_histograms, population_stability_index
from recsys.release.check import Check, at_most, skipped

DataReport = Mapping[str, Any]
"""Output of `recsys.data.profile` for one run, with the row account."""

DAY_S = 86_400.0
WHOLE_WEEKS_DAYS = 28
"""Shorter logs have a different mix of weekdays and hours on every date, so these are not compared."""
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


def account_checks(report: DataReport, max_dead_letter_ratio: float) -> list[Check]:
    """Check that every row is used, filtered or a dead letter, and that few are dead letters."""
    checks = []
    for table, rows in report["account"].items():
        dead_letters, filtered = sum(rows["dead_letters"].values()), sum(rows["filtered"].values())
        unaccounted = abs(rows["read"] - rows["used"] - filtered - dead_letters)
        ratio = _share(dead_letters, rows["read"])
        checks.append(at_most(f"{table}_unaccounted_rows", unaccounted, 0))
        checks.append(at_most(f"{table}_dead_letter_ratio", ratio, max_dead_letter_ratio))
    return checks


def day_checks(
    report: DataReport, copied_days: Mapping[str, Mapping[str, int]], now: datetime, limits: DataLimits
) -> list[Check]:
    """Check for dates in the future and for days delivered twice. Needs no other run.

    Args:
        report: data report of this run.
        copied_days: for each day with rows that repeat user, item and time of another row: `rows`, all rows of the
            day, and `copies`, the repeated ones.
        now: current time, with a time zone.
        limits: one of `LIMITS`.
    """
    newest = datetime.fromisoformat(report["last"])
    days_ahead = max((newest - now.astimezone(UTC)).total_seconds() / DAY_S, 0.0)
    return [
        at_most("data_days_ahead", days_ahead, limits.days_ahead),
        at_most("data_copied_day", _copied_share(report, copied_days), limits.copied_day),
    ]


def column_checks(catalog: Catalog, items: ItemsConfig, limits: DataLimits) -> list[Check]:
    """Check that no categorical column has the same value for nearly all items, which would carry no information."""
    shares = [
        _share(int(counts["items"].max() or 0), len(catalog))  # type: ignore[arg-type]
        for counts in (_value_counts(catalog, column) for column in _categorical(catalog, items))
        if counts.height
    ]
    if not shares:
        return [skipped("data_one_category", "no categorical column")]
    return [at_most("data_one_category", max(shares), limits.one_category)]


def champion_checks(
    report: DataReport,
    catalog: Catalog,
    champion_report: DataReport | None,
    champion_catalog: Catalog | None,
    items: ItemsConfig,
    *,
    limits: DataLimits,
) -> list[Check]:
    """Check how much the data has changed since the champion was built.

    Args:
        report: data report of this run.
        catalog: catalog of this run.
        champion_report: data report of the champion's run, None if it is lost.
        champion_catalog: the champion's catalog, None without a champion.
        items: roles of the catalog columns.
        limits: one of `LIMITS`.
    """
    catalog_names = ("data_lost_items", "data_items_shift", "data_popularity_shift", "data_missing")
    report_names = (
        "data_lost_volume",
        "data_grown_volume",
        "data_lost_users",
        "data_days_back",
        "data_grown_day",
        *(f"data_{name}_shift" for name in HISTOGRAMS),
    )
    if champion_catalog is None:
        return [skipped(name, "no champion") for name in (*catalog_names, *report_names)]
    checks = [
        at_most("data_lost_items", _lost_share(catalog, champion_catalog), limits.lost_items),
        _items_shift(catalog, champion_catalog, items, limits),
        _popularity_shift(catalog, champion_catalog, limits),
        at_most("data_missing", _missing_growth(catalog, champion_catalog), limits.missing),
    ]
    if champion_report is None:
        reason = "the champion has no data report of this version"
        return [*checks, *(skipped(name, reason) for name in report_names)]
    volume = report["interactions"] / max(champion_report["interactions"], 1)
    age = datetime.fromisoformat(champion_report["last"]) - datetime.fromisoformat(report["last"])
    lost_users = max(1 - report["users"] / max(champion_report["users"], 1), 0.0)
    return [
        *checks,
        at_most("data_lost_volume", max(1 - volume, 0.0), limits.lost_volume),
        at_most("data_grown_volume", max(volume - 1, 0.0), limits.grown_volume),
        at_most("data_lost_users", lost_users, limits.lost_users),
        at_most("data_days_back", max(age.total_seconds() / DAY_S, 0.0), limits.days_back),
        _grown_day(report, champion_report, limits),
        *(_histogram_shift(name, report, champion_report, limits) for name in HISTOGRAMS),
    ]


def _copied_share(report: DataReport, copied_days: Mapping[str, Mapping[str, int]]) -> float:
    """Return the largest share of a day's rows that are copies, beyond the share of the other days.

    Days smaller than the average count as average. A day that was delivered twice has a share of one half.
    """
    copies = sum(day["copies"] for day in copied_days.values())
    total = sum(report["interactions_per_day"].values()) + copies
    average = total / max(len(report["interactions_per_day"]), 1)
    excess = [0.0]
    for day in copied_days.values():
        other_share = _share(copies - day["copies"], total - day["rows"])
        excess.append((day["copies"] - other_share * day["rows"]) / max(day["rows"], average, 1))
    return max(excess)


def _lost_share(catalog: Catalog, champion_catalog: Catalog) -> float:
    remaining = (catalog.item_numbers(champion_catalog.item_ids, missing=-1) >= 0).sum()
    return 1 - _share(int(remaining), len(champion_catalog))


def _missing_growth(catalog: Catalog, champion_catalog: Catalog) -> float:
    """Return by how much the share of missing values has grown, for the column where it has grown most."""
    columns = [name for name in catalog.frame.columns if name in champion_catalog.frame.columns]
    shares, champion_shares = (
        [float(value) for value in each.frame.select(_is_missing(each, name).mean() for name in columns).row(0)]
        for each in (catalog, champion_catalog)
    )
    growth = (share - champion_share for share, champion_share in zip(shares, champion_shares, strict=True))
    return max(growth, default=0.0)


def _is_missing(catalog: Catalog, column: str) -> pl.Expr:
    values = pl.col(column)
    if isinstance(catalog.frame.schema[column], pl.List):
        return (values.is_null() | (values.list.len() == 0)).alias(column)
    return values.is_null()


def _items_shift(catalog: Catalog, champion_catalog: Catalog, items: ItemsConfig, limits: DataLimits) -> Check:
    """Check the population stability index of items by category, for the column where it is largest."""
    name, shifts = "data_items_shift", []
    for column in _categorical(catalog, items):
        if column in champion_catalog.frame.columns:
            counts = _value_counts(catalog, column).join(
                _value_counts(champion_catalog, column), on="value", how="full", coalesce=True
            )
            champion_items, run_items = (counts[side].fill_null(0).to_numpy() for side in ("items_right", "items"))
            shifts.append(_stability_index(champion_items, run_items))
    if not shifts:
        return skipped(name, "no categorical column in both catalogs")
    return at_most(name, max(shifts), limits.shift)


def _popularity_shift(catalog: Catalog, champion_catalog: Catalog, limits: DataLimits) -> Check:
    """Check the population stability index of interactions by popularity decile of the champion's data.

    Only items of both catalogs count.
    """
    name = "data_popularity_shift"
    common = champion_catalog.frame.select("item_id", champion="interactions").join(
        catalog.frame.select("item_id", run="interactions"), on="item_id"
    )
    by_id = common.sort("item_id")
    champion_counts, counts = by_id["champion"].to_numpy(), by_id["run"].to_numpy()
    if not champion_counts.sum() or not counts.sum():
        return skipped(name, "no interactions with items of both catalogs")
    return at_most(name, _stability_index(*decile_histograms(champion_counts, counts)), limits.shift)


def _grown_day(report: DataReport, champion_report: DataReport, limits: DataLimits) -> Check:
    """Check the largest growth of a day that was complete when the champion was built."""
    name, days, champion_days = (
        "data_grown_day",
        report["interactions_per_day"],
        champion_report["interactions_per_day"],
    )
    complete = [day for day in champion_days if day in days and day < max(champion_days)]
    if not complete:
        return skipped(name, "no day that was complete when the champion was built")
    average = sum(champion_days.values()) / len(champion_days)
    growth = max((days[day] - champion_days[day]) / max(champion_days[day], average) for day in complete)
    return at_most(name, growth, limits.grown_day)


def _histogram_shift(name: str, report: DataReport, champion_report: DataReport, limits: DataLimits) -> Check:
    """Check the population stability index of one histogram of the data report."""
    check = f"data_{name}_shift"
    num_days = min(len(report["interactions_per_day"]), len(champion_report["interactions_per_day"]))
    if name in BY_CALENDAR and num_days < WHOLE_WEEKS_DAYS:
        return skipped(check, f"a log of {num_days} days, fewer than {WHOLE_WEEKS_DAYS}")
    counts, champion_counts = (_histogram(each[HISTOGRAMS[name]]) for each in (report, champion_report))
    width = max(len(counts), len(champion_counts))
    padded = (np.pad(each, (0, width - len(each))) for each in (champion_counts, counts))
    return at_most(check, _stability_index(*padded), limits.shift)


def _histogram(counts: Any) -> Any:
    return np.array(list(counts.values()) if isinstance(counts, Mapping) else counts, np.int64)


def _stability_index(champion_counts: Any, counts: Any) -> float:
    """Return the population stability index, without buckets that are empty in both histograms."""
    not_empty = (champion_counts + counts) > 0
    return population_stability_index(champion_counts[not_empty], counts[not_empty])


def _categorical(catalog: Catalog, items: ItemsConfig) -> list[str]:
    return [name for name in (*items.categorical, *items.multi_categorical) if name in catalog.frame.columns]


def _value_counts(catalog: Catalog, column: str) -> pl.DataFrame:
    """Return each `value` of a column with the number of `items` that have it."""
    values = catalog.frame.select(value=column)
    if isinstance(values.schema["value"], pl.List):
        values = values.select(pl.col("value").list.unique()).explode("value", empty_as_null=True)
    return values.drop_nulls().group_by("value").agg(items=pl.len().cast(pl.Int64))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
