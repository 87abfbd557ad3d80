"""Rules that filter valid interactions, by the names that row accounts use; see `docs/how-to/interaction-rules.md`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl

from recsys.config.sections import PrepareConfig

AFTER_AS_OF = "after --as-of"
DISLIKED = "rating below prepare.min_rating"
WITHOUT_EVENT_WEIGHT = "event has no weight in prepare.event_weights"
BURST = "more than prepare.max_per_second items in one second"
REPEATED_ITEM = "repeats the user's previous item"

WEIGHT_RANGE = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
"""Smallest and largest weight of an interaction."""

WHOLE_TIME_S = 900
"""Dates, and times rounded to hours, are multiples of this in every time zone, in seconds."""


def apply_row_rules(rows: pl.DataFrame, prepare: PrepareConfig) -> tuple[pl.DataFrame, dict[str, int]]:
    """Apply the rules that consider one row at a time, in the order of this module.

    Args:
        rows: the usable rows of `check_interactions`, with `rating` and `event` if the settings need them.
        prepare: the settings of the rules.

    Returns:
        The remaining rows, without `rating` and `event`, and the number of rows that each rule filtered out.
    """
    before_as_of = rows.filter(pl.col("timestamp") < prepare.as_of.timestamp()) if prepare.as_of else rows
    liked = drop_disliked(before_as_of, prepare.min_rating) if prepare.min_rating is not None else before_as_of
    used = apply_event_weights(liked, prepare.event_weights) if prepare.event_weights else liked
    return used, {
        AFTER_AS_OF: rows.height - before_as_of.height,
        DISLIKED: before_as_of.height - liked.height,
        WITHOUT_EVENT_WEIGHT: liked.height - used.height,
    }


def drop_disliked(rows: pl.DataFrame, min_rating: float) -> pl.DataFrame:
    """Drop rows whose `rating` is below the minimum; a row without a rating does not say "disliked"."""
    # in float32, the precision of the column: a rating of 3.3 must not be below 3.3
    disliked = pl.col("rating") < pl.lit(min_rating, pl.Float32)
    return rows.filter(~disliked.fill_null(False)).drop("rating")


def apply_event_weights(rows: pl.DataFrame, factors: Mapping[str, float]) -> pl.DataFrame:
    """Multiply the weight of each row by the factor of its `event`; drop rows of events without a factor."""
    factor = pl.col("event").replace_strict(dict(factors), default=None, return_dtype=pl.Float64)
    # the product of two valid factors may overflow or underflow, and 0 and infinity are not valid weights
    weight = (pl.col("weight").cast(pl.Float64) * factor).clip(*WEIGHT_RANGE).cast(pl.Float32)
    return rows.with_columns(weight=weight).drop("event").filter(pl.col("weight").is_not_null())


def drop_bursts(rows: pl.DataFrame, max_per_second: int) -> pl.DataFrame:
    """Drop all rows of a user in a second with more than `max_per_second` different items.

    Copies of a row are not counted: they come from a log that was delivered twice. Seconds at whole quarters of an
    hour are exempt: times without a time of day would put all interactions of a day into one second.

    Args:
        rows: all interactions of some users: `user_id`, `item_number` and `timestamp`.
        max_per_second: largest number of different items.
    """
    second = pl.col("timestamp").cast(pl.Int64)
    by_second = rows.lazy().group_by("user_id", second=second)
    crowded = by_second.agg(rows=pl.len(), items=pl.col("item_number").n_unique())
    bursts = crowded.filter(pl.col("items") > max_per_second, pl.col("second") % WHOLE_TIME_S != 0).collect()
    if bursts.is_empty():
        return rows
    left = rows.with_columns(second=second)
    return left.join(bursts, on=["user_id", "second"], how="anti", maintain_order="left").drop("second")
