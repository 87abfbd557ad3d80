"""Feedback: how often what each release showed was clicked, as told by whoever shows it."""

from __future__ import annotations

from typing import Any

import polars as pl

from pipelines.context.input_units import find_files, plan_units
from pipelines.context.readers import read_unit
from recsys.data.validation import as_id, as_number, require_columns
from recsys.evaluation.calibration_fit import estimate_share

COLUMNS = ("release_id", "shown", "clicked")


def by_release(pattern: str, rows_per_unit: int) -> dict[str, Any]:
    """Click-through of each release, with 95% intervals; the ones that were shown most first.

    Args:
        pattern: files with `release_id` (text), `shown` and `clicked` (whole numbers, or 0 and 1 a row), as many rows
            a release as there are. An answer of the service names its release.
        rows_per_unit: rows to hold at once.

    Returns:
        `releases`, and how many rows were `unusable`: no whole number, none shown, or less shown than clicked.

    Raises:
        InputError: files or columns are missing.
        ConfigError: a URL that cannot be used.
    """
    counted = [pl.DataFrame(schema={"release_id": pl.String, "shown": pl.Int64, "clicked": pl.Int64})]
    unusable = 0
    for unit in plan_units(find_files(pattern, "data.feedback"), rows_per_unit):
        for raw in read_unit(unit, rows_per_unit):
            require_columns(raw.frame, COLUMNS, unit.source)
            typed = raw.frame.select(
                release_id=as_id(raw.frame, "release_id", unit.source),
                shown=as_number(raw.frame, "shown", unit.source).cast(pl.Float64),
                clicked=as_number(raw.frame, "clicked", unit.source).cast(pl.Float64),
            )
            shown, clicked = pl.col("shown"), pl.col("clicked")
            whole = (shown % 1 == 0) & (clicked % 1 == 0)  # neither NaN nor infinity is
            usable = typed.drop_nulls().filter(whole & (shown > 0) & clicked.is_between(0, shown))
            usable = usable.cast({"shown": pl.Int64, "clicked": pl.Int64})
            unusable += typed.height - usable.height + raw.malformed.height
            counted.append(usable.group_by("release_id").agg(pl.all().sum()))
    releases = pl.concat(counted).group_by("release_id").agg(pl.all().sum())
    told = []
    for release_id, shown, clicked in releases.sort("shown", "release_id", descending=[True, False]).iter_rows():
        rate = estimate_share(clicked, shown)
        figures = {"click_through": rate.value, "low": rate.low, "high": rate.high}
        told.append({"release_id": release_id, "shown": shown, "clicked": clicked, **figures})
    return {"releases": told, "unusable": unusable}
