"""What each user touched, oldest first, as item numbers: the log in four bytes an interaction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sequences:
    """Users' items in the order of time, one user after the other."""

    user_ids: list[str]
    items: NDArray[np.int32]
    """Item numbers, int32 [num_interactions]."""
    offsets: NDArray[np.int64]
    """User u owns `items[offsets[u]:offsets[u + 1]]`; int64 [num_users + 1]."""

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
        """From `user_id` (text) and `items` (lists of int32)."""
        lengths = frame["items"].list.len().to_numpy()
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
        items = frame["items"].explode(empty_as_null=False).cast(pl.Int32).to_numpy()
        return cls(frame["user_id"].to_list(), items, offsets)

    @classmethod
    def load(cls, parts: Iterable[Path]) -> Sequences:
        """Read Parquet parts."""
        return cls.from_frame(pl.concat([pl.read_parquet(part) for part in parts]))
