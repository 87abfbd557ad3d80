"""The data of one night, counted: what the data report tells and compares.

Takes the catalog and the sequences as files, reads one part of the sequences at a time. Memory follows the
number of items and users, about 16 bytes each, and not the log.
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
"""Hours that an interaction can be of."""


@dataclass(frozen=True)
class Snapshot:
    """Counts of what `prepare` uses of the data of one night."""

    catalog: Path
    items: NDArray[np.uint64]
    """A hash of each item id, by item number, uint64 [num_items]."""
    popularity: NDArray[np.int64]
    """Interactions of each item, int64 [num_items]."""
    users: NDArray[np.uint64]
    """A hash of each user id, uint64 [num_users]."""
    activity: NDArray[np.int64]
    """Interactions of each user, int64 [num_users]."""
    hourly: NDArray[np.int64]
    """Interactions in each hour since 1970, UTC, int64 [HOURS]."""
    first: float
    """Time of the oldest interaction, in seconds."""
    last: float
    """Time of the newest interaction, in seconds."""
    missing: dict[str, int]
    """Column of the items -> items without a value."""
    categories: dict[str, pl.DataFrame]
    """Categorical column -> `value` (text, null: none) and `items`, how many have it; most frequent first."""

    def __repr__(self) -> str:
        return f"Snapshot({self.activity.sum()} interactions, {len(self.users)} users, {len(self.items)} items)"

    @classmethod
    def count(cls, catalog: Path, sequences: Iterable[Path], items: ItemsConfig) -> Snapshot:
        """Count a catalog and the parts of the sequences that `prepare` wrote.

        Columns of `items` that the catalog does not have are left out: another config may have made it.
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
            touched = frame["items"].explode(empty_as_null=False).to_numpy()
            popularity += np.bincount(touched, minlength=len(hashes))
            hours = np.bincount((times // HOUR_S).astype(np.int64))
            hourly[: len(hours)] += hours
            users.append(frame["user_id"].hash(0).to_numpy())
            activity.append(frame["items"].list.len().cast(pl.Int64).to_numpy())
            first, last = min(first, times.min()), max(last, times.max())
        columns = table.collect_schema()
        shown = {"title": "title"} if items.title else {}
        shown |= {name: name for name in (*items.categorical, *items.multi_categorical, *items.numeric, *items.text)}
        return cls(
            catalog,
            hashes,
            popularity,
            np.concatenate(users),
            np.concatenate(activity),
            hourly,
            float(first),
            float(last),
            {name: _missing(table, name, columns[name]) for name in shown if name in columns},
            {
                name: _categories(table, name, columns[name])
                for name in (*items.categorical, *items.multi_categorical)
                if name in columns
            },
        )


def _missing(table: pl.LazyFrame, column: str, dtype: pl.DataType) -> int:
    return int(table.select(_given(column, dtype).null_count()).collect().item())


def _categories(table: pl.LazyFrame, column: str, dtype: pl.DataType) -> pl.DataFrame:
    values = table.select(value=_given(column, dtype))
    if isinstance(dtype, pl.List):
        values = values.explode("value", empty_as_null=True)
    counts = values.group_by("value").agg(items=pl.len().cast(pl.Int64))
    return counts.sort("items", "value", descending=[True, False], nulls_last=True).collect()


def _given(column: str, dtype: pl.DataType) -> pl.Expr:
    """A column's values, null where text is blank or a list empty."""
    values = pl.col(column)
    if isinstance(dtype, pl.List):
        return pl.when(values.list.len() > 0).then(values)
    if isinstance(dtype, pl.String):
        return pl.when(values.str.strip_chars() != "").then(values)
    return values
