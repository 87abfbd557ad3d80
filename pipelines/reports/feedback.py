"""Click-through rates of releases, from feedback files that the client of the service writes."""

from __future__ import annotations

from typing import Any

import polars as pl

from pipelines.context.input_units import find_files, plan_units
from pipelines.context.readers import read_unit
from recsys.data.validation import as_id, as_number, require_columns
from recsys.evaluation.calibration_fit import estimate_share

COLUMNS = ("release_id", "shown", "clicked")


def by_release(pattern: str, rows_per_unit: int) -> dict[str, Any]:
    """Return the click-through rate of each release with its 95% interval, in descending order of impressions.

    Args:
        pattern: path, URL or glob of files with `release_id` (string), and `shown` and `clicked` (integers: numbers of
            impressions and clicks), in any number of rows per release. Every response of the service contains the
            release id.
        rows_per_unit: rows to read at a time.

    Returns:
        `releases`, and the number of `unusable` rows: a value is not an integer, `shown` is not positive, or
        `clicked` is not between 0 and `shown`.

    Raises:
        InputError: files or columns are missing.
        ConfigError: the URL is invalid.
    """
    counts = [pl.DataFrame(schema={"release_id": pl.String, "shown": pl.Int64, "clicked": pl.Int64})]
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
            are_integers = (shown % 1 == 0) & (clicked % 1 == 0)  # false for NaN and infinity
            usable = typed.drop_nulls().filter(are_integers & (shown > 0) & clicked.is_between(0, shown))
            usable = usable.cast({"shown": pl.Int64, "clicked": pl.Int64})
            unusable += typed.height - usable.height + raw.malformed.height
            counts.append(usable.group_by("release_id").agg(pl.all().sum()))
    releases = pl.concat(counts).group_by("release_id").agg(pl.all().sum())
    rates = []
    for release_id, shown, clicked in releases.sort("shown", "release_id", descending=[True, False]).iter_rows():
        rate = estimate_share(clicked, shown)
        figures = {"click_through": rate.value, "low": rate.low, "high": rate.high}
        rates.append({"release_id": release_id, "shown": shown, "clicked": clicked, **figures})
    return {"releases": rates, "unusable": unusable}
