"""What each user touched and when, oldest first, as item numbers: the log in twelve bytes an interaction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray


def arrange(rows: pl.DataFrame) -> pl.DataFrame:
    """Interactions user by user, oldest first, those of one time in the order of the rows.

    One that repeats the user's previous item is left out: it says nothing about what goes together.

    Args:
        rows: with `user_id`, `item` (number) and `timestamp`.
    """
    ordered = rows.sort("user_id", "timestamp", maintain_order=True)
    repeats = (pl.col("item") == pl.col("item").shift()) & (pl.col("user_id") == pl.col("user_id").shift())
    return ordered.filter(~repeats.fill_null(False))


def by_user(arranged: pl.DataFrame) -> pl.DataFrame:
    """One row a user: `user_id` (text), `items` (list of int32, oldest first) and `times` (list of float64)."""
    return arranged.group_by("user_id", maintain_order=True).agg(
        pl.col("item").cast(pl.Int32).alias("items"), pl.col("timestamp").alias("times")
    )


@dataclass(frozen=True)
class Sequences:
    """Users' items in the order of time, one user after the other."""

    user_ids: list[str]
    items: NDArray[np.int32]
    """Item numbers, int32 [num_interactions]."""
    offsets: NDArray[np.int64]
    """User u owns `items[offsets[u]:offsets[u + 1]]`; int64 [num_users + 1]."""
    times: NDArray[np.float64]
    """When each item was touched, in seconds, float64 [num_interactions]."""

    def __len__(self) -> int:
        return len(self.user_ids)

    def __repr__(self) -> str:
        return f"Sequences({len(self)} users, {len(self.items)} interactions)"

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Interactions a user, int64 [num_users]."""
        return np.diff(self.offsets)

    @property
    def users(self) -> NDArray[np.int64]:
        """The user of each interaction, int64 [num_interactions]."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @property
    def from_end(self) -> NDArray[np.int64]:
        """How many interactions of the same user come later, int64 [num_interactions]."""
        return np.repeat(self.offsets[1:], self.lengths) - 1 - np.arange(len(self.items))

    @classmethod
    def from_frame(cls, frame: pl.DataFrame) -> Sequences:
        """From what `by_user` gives."""
        lengths = frame["items"].list.len().to_numpy()
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
        items = frame["items"].explode(empty_as_null=False).cast(pl.Int32).to_numpy()
        times = frame["times"].explode(empty_as_null=False).to_numpy()
        return cls(frame["user_id"].to_list(), items, offsets, times)

    @classmethod
    def load(cls, parts: Iterable[Path]) -> Sequences:
        """Read Parquet parts."""
        return cls.from_frame(pl.concat([pl.read_parquet(part) for part in parts]))
