"""The interactions of each user, ordered by time, as item numbers; twelve bytes an interaction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray


def sort_interactions(rows: pl.DataFrame) -> pl.DataFrame:
    """Sort interactions by user and time, and drop consecutive repeats.

    Rows of equal time keep their order. An interaction with the same item as the user's previous one is dropped: it
    carries no information about which items go together.

    Args:
        rows: with `user_id`, `item_number` and `timestamp`.
    """
    ordered = rows.sort("user_id", "timestamp", maintain_order=True)
    same_item = pl.col("item_number") == pl.col("item_number").shift()
    repeats = same_item & (pl.col("user_id") == pl.col("user_id").shift())
    return ordered.filter(~repeats.fill_null(False))


def group_by_user(interactions: pl.DataFrame) -> pl.DataFrame:
    """Group sorted interactions: `user_id` (text), `items` (list of int32, oldest first), `times` (list of float64)."""
    return interactions.group_by("user_id", maintain_order=True).agg(
        pl.col("item_number").cast(pl.Int32).alias("items"), pl.col("timestamp").alias("times")
    )


@dataclass(frozen=True)
class Sequences:
    """The items of each user, ordered by time, concatenated over the users."""

    user_ids: list[str]
    items: NDArray[np.int32]
    """Item numbers, int32 [num_interactions]."""
    offsets: NDArray[np.int64]
    """The items of user u are `items[offsets[u]:offsets[u + 1]]`; int64 [num_users + 1]."""
    times: NDArray[np.float64]
    """Time of each interaction in seconds, float64 [num_interactions]."""

    def __len__(self) -> int:
        return len(self.user_ids)

    def __repr__(self) -> str:
        return f"Sequences({len(self)} users, {len(self.items)} interactions)"

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Interactions per user, int64 [num_users]."""
        return np.diff(self.offsets)

    @property
    def users(self) -> NDArray[np.int64]:
        """The user number of each interaction, int64 [num_interactions]."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @property
    def positions_from_end(self) -> NDArray[np.int64]:
        """How many later interactions the same user has, int64 [num_interactions]."""
        return np.repeat(self.offsets[1:], self.lengths) - 1 - np.arange(len(self.items))

    def select(self, users: NDArray[np.bool_]) -> Sequences:
        """Return the sequences of some users; `users` is bool [num_users]."""
        interactions = np.repeat(users, self.lengths)
        offsets = np.concatenate([[0], np.cumsum(self.lengths[users])]).astype(np.int64)
        user_ids = [user_id for user_id, selected in zip(self.user_ids, users.tolist(), strict=True) if selected]
        return Sequences(user_ids, self.items[interactions], offsets, self.times[interactions])

    @classmethod
    def from_frame(cls, frame: pl.DataFrame) -> Sequences:
        """Convert the result of `group_by_user`."""
        lengths = frame["items"].list.len().to_numpy()
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
        items = frame["items"].explode(empty_as_null=False).cast(pl.Int32).to_numpy()
        times = frame["times"].explode(empty_as_null=False).to_numpy()
        return cls(frame["user_id"].to_list(), items, offsets, times)

    @classmethod
    def load(cls, parts: Iterable[Path]) -> Sequences:
        """Read and concatenate Parquet files."""
        return cls.from_frame(pl.concat([pl.read_parquet(part) for part in parts]))


def session_numbers(sequences: Sequences, gap_minutes: float | None) -> NDArray[np.int64]:
    """Return the session number of each interaction; a new user or a longer pause starts a new session."""
    starts = np.diff(sequences.users, prepend=-1) > 0
    if gap_minutes is not None:
        starts |= np.diff(sequences.times, prepend=sequences.times[:1]) > gap_minutes * 60
    return np.cumsum(starts)
