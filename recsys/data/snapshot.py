"""Counts of the data of one run, for the data profile and the comparison of two runs.

The catalog and the sequences are read from files, one part of the sequences at a time. Memory is bounded by the
number of items and users, about 16 bytes each, and not by the log.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.config.sections import ItemsConfig
from recsys.data.validation import LATEST

HOUR_S = 3_600
HOURS = int(LATEST // HOUR_S) + 1
"""Number of hours in the valid range of timestamps."""


@dataclass(frozen=True)
class Snapshot:
    """Counts of the data that `prepare` used in one run."""

    catalog: Path
    items: NDArray[np.uint64]
    """Hash of each item id, by item number, uint64 [num_items]."""
    popularity: NDArray[np.int64]
    """Interactions of each item, by item number, int64 [num_items]."""
    users: NDArray[np.uint64]
    """Hash of each user id, uint64 [num_users]."""
    activity: NDArray[np.int64]
    """Interactions of each user, int64 [num_users]."""
    hourly: NDArray[np.int64]
    """Interactions in each hour since 1970, UTC, int64 [HOURS]."""
    first: float
    """Time of the oldest interaction, in seconds."""
    last: float
    """Time of the newest interaction, in seconds."""
    missing: dict[str, int]
    """Item column -> number of items without a value."""
    categories: dict[str, pl.DataFrame]
    """Categorical column -> `value` (text, null for none) and `items` (number of items); most frequent first."""

    def __repr__(self) -> str:
        return f"Snapshot({self.activity.sum()} interactions, {len(self.users)} users, {len(self.items)} items)"

    @classmethod
    def from_files(cls, catalog: Path, sequences: Iterable[Path], items: ItemsConfig) -> Snapshot:
        """Count a catalog and the parts of the sequences, as written by `prepare`.

        Columns of `items` that the catalog lacks are ignored, because it may come from a run with another config.
        """
        table = pl.scan_parquet(catalog)
        hashes = table.select(pl.col("item_id").hash(0)).collect()["item_id"].to_numpy()
        popularity, hourly = np.zeros(len(hashes), np.int64), np.zeros(HOURS, np.int64)
        users, activity = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        first, last = np.inf, -np.inf
        for part in sequences:
            frame = pl.read_parquet(part, columns=["user_id", "items", "times"])
            if not frame.height:
                continue
            times = frame["times"].explode(empty_as_null=False).to_numpy()
            item_numbers = frame["items"].explode(empty_as_null=False).to_numpy()
            popularity += np.bincount(item_numbers, minlength=len(hashes))
            hours = np.bincount((times // HOUR_S).astype(np.int64))
            hourly[: len(hours)] += hours
            users.append(frame["user_id"].hash(0).to_numpy())
            activity.append(frame["items"].list.len().cast(pl.Int64).to_numpy())
            first, last = min(first, times.min()), max(last, times.max())
        columns = table.collect_schema()
        feature_columns = {"title": "title"} if items.title else {}
        feature_columns |= {
            name: name for name in (*items.categorical, *items.multi_categorical, *items.numeric, *items.text)
        }
        return cls(
            catalog,
            hashes,
            popularity,
            np.concatenate(users),
            np.concatenate(activity),
            hourly,
            float(first),
            float(last),
            {name: _missing(table, name, columns[name]) for name in feature_columns if name in columns},
            {
                name: _categories(table, name, columns[name])
                for name in (*items.categorical, *items.multi_categorical)
                if name in columns
            },
        )


def _missing(table: pl.LazyFrame, column: str, dtype: pl.DataType) -> int:
    return int(table.select(_values(column, dtype).null_count()).collect().item())


def _categories(table: pl.LazyFrame, column: str, dtype: pl.DataType) -> pl.DataFrame:
    values = table.select(value=_values(column, dtype))
    if isinstance(dtype, pl.List):
        values = values.explode("value", empty_as_null=True)
    counts = values.group_by("value").agg(items=pl.len().cast(pl.Int64))
    return counts.sort("items", "value", descending=[True, False], nulls_last=True).collect()


def _values(column: str, dtype: pl.DataType) -> pl.Expr:
    """Return the values of a column, null for blank text and empty lists."""
    values = pl.col(column)
    if isinstance(dtype, pl.List):
        return pl.when(values.list.len() > 0).then(values)
    if isinstance(dtype, pl.String):
        return pl.when(values.str.strip_chars() != "").then(values)
    return values
