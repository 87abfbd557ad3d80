"""The followers of each item: the items that most users interacted with after it, with the numbers of these users.

On disk one `.npy` file of little-endian int32 that processes map and share. It begins with int64 values, each stored
as two int32 values: the number of users, then `num_items + 1` offsets. The users of each item follow (int32
[num_items]), then the followers of item 0, of item 1 and so on, then the users of each follower in the same order. The
followers of an item are at `followers[offsets[item_number]:offsets[item_number + 1]]`, most users first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.config.sections import PrepareConfig
from recsys.data.pair_keys import KEY_BASE, pair_key, pair_of_key
from recsys.data.sequences import session_numbers
from recsys.data.splits import Split
from recsys.data.storage import map_array
from recsys.errors import InputError

MAX_FOLLOWERS = 100
"""Maximum number of followers of an item; those with the most users are kept, ties by item number."""
BLOCK_INTERACTIONS = 100_000
"""Approximate number of interactions whose pairs are in memory at a time."""


@dataclass(frozen=True)
class Followers:
    """The followers of each item."""

    num_users: int
    """Number of users with an interaction before their test target."""
    users: NDArray[np.int32]
    """Number of these users who interacted with each item, int32 [num_items]."""
    offsets: NDArray[np.int64]
    """int64 [num_items + 1]."""
    _followers: NDArray[np.int32]
    _counts: NDArray[np.int32]

    def of(self, item_number: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return the followers of an item and the users of each, both int32 [n], most users first."""
        rows = slice(self.offsets[item_number], self.offsets[item_number + 1])
        return self._followers[rows], self._counts[rows]

    @classmethod
    def load(cls, path: Path, num_items: int) -> Self:
        """Map a file written by `save`.

        Raises:
            InputError: the file is damaged, has another format, or another number of items.
        """
        content = map_array(path, "followers")
        num_header = 2 * (num_items + 2)
        if content.ndim == 1 and content.dtype == np.dtype("<i4") and len(content) >= num_header + num_items:
            values: NDArray[np.int32] = np.asarray(content, np.int32)
            header = values[:num_header].view(np.int64)
            num_users, offsets = int(header[0]), header[1:]
            users, rows = values[num_header : num_header + num_items], values[num_header + num_items :]
            is_complete = offsets[0] == 0 and 2 * offsets[-1] == len(rows) and (np.diff(offsets) >= 0).all()
            followers, counts = rows[: len(rows) // 2], rows[len(rows) // 2 :]
            if (
                is_complete
                and _within(users, 0, num_users)
                and _within(followers, 0, num_items - 1)
                and _within(counts, 1, num_users)
            ):
                return cls(num_users, users, offsets, followers, counts)
        raise InputError(
            f"followers must be the int32 offsets, users and followers of {num_items} items. "
            f"Received {path}: {content.dtype} {list(content.shape)}."
        )


def _within(values: NDArray[np.int32], low: int, high: int) -> bool:
    return not len(values) or bool(values.min() >= low and values.max() <= high)


def count_followers(split: Split, config: PrepareConfig, block_interactions: int = BLOCK_INTERACTIONS) -> pl.DataFrame:
    """Count the users who interacted with one item and, at most `window` positions later, with another.

    Both interactions are before the test target and in one session. A user counts once for each pair of items, however
    often the pair occurs, so that interactions per user need no limit.

    Args:
        split: the sequences, and which interactions are training data.
        config: window and session gap.
        block_interactions: approximate number of interactions whose pairs are in memory at a time.

    Returns:
        `item`, `follower` and `users` of each pair, all int32, sorted by the first two.
    """
    rows = np.flatnonzero(split.training_mask("test"))
    items, users = split.sequences.items[rows].astype(np.int64), split.sequences.users[rows]
    session = session_numbers(split.sequences, config.session_gap_minutes)[rows]
    repeated = pl.DataFrame({"user": users, "item": items}).is_duplicated().to_numpy()
    block = np.arange(len(rows)) // block_interactions
    block = block[np.searchsorted(users, users)]  # all interactions of a user are in the block of the first one
    ends = [*(np.flatnonzero(np.diff(block)) + 1).tolist(), len(rows)]
    counts = [pl.DataFrame(schema={"key": pl.Int64, "users": pl.UInt32})]
    for start, end in zip([0, *ends], ends, strict=False):
        part = slice(start, end)
        counts.append(_count_block(items[part], users[part], session[part], repeated[part], config.window))
    summed = pl.concat(counts).lazy().group_by("key").agg(pl.col("users").sum().cast(pl.Int32)).sort("key")
    return summed.select(*pair_of_key("item", "follower"), "users").collect()


def _count_block(
    items: NDArray[np.int64],
    users: NDArray[np.int64],
    session: NDArray[np.int64],
    repeated: NDArray[np.bool_],
    window: int,
) -> pl.DataFrame:
    """Return the number of users of each pair, as `key` of `pair_key` and `users`.

    Only pairs with an item that the user repeats can occur twice, and are counted once.
    """
    once = [pl.DataFrame(schema={"key": pl.Int64})]
    perhaps_twice = [pl.DataFrame(schema={"key": pl.Int64, "user": pl.Int64})]
    for gap in range(1, min(window, len(items) - 1) + 1):
        is_pair = (session[:-gap] == session[gap:]) & (items[:-gap] != items[gap:])
        key = items[:-gap] * KEY_BASE + items[gap:]
        is_repeated = repeated[:-gap] | repeated[gap:]
        once.append(pl.DataFrame({"key": key[is_pair & ~is_repeated]}))
        rows = is_pair & is_repeated
        perhaps_twice.append(pl.DataFrame({"key": key[rows], "user": users[gap:][rows]}))
    keys = pl.concat([*once, pl.concat(perhaps_twice).unique().select("key")])
    return keys.group_by("key").agg(users=pl.len())


def group_by_item(
    counts: pl.DataFrame, users: NDArray[np.int64], first_item: int, max_followers: int = MAX_FOLLOWERS
) -> pl.DataFrame:
    """Sum the users of equal pairs, and keep the followers with the most users of each item.

    Args:
        counts: results of `count_followers` for a range of items, concatenated.
        users: number of users of each item of the range, [n].
        first_item: first item number of the range.
        max_followers: number of followers to keep.

    Returns:
        One row per item of the range: `item` and `users` (int32), `followers` and `counts` (lists of int32, or null).
    """
    kept = (
        counts.lazy()
        .select(pair_key("item", "follower"), "users")
        .group_by("key")
        .agg(counts=pl.col("users").sum().cast(pl.Int32))
        .select(*pair_of_key("item", "follower"), "counts")
        .sort("item", "counts", "follower", descending=[False, True, False])
        .group_by("item", maintain_order=True)
        .agg(followers=pl.col("follower").head(max_followers), counts=pl.col("counts").head(max_followers))
        .collect()
    )
    items = np.arange(first_item, first_item + len(users), dtype=np.int32)
    rows = pl.DataFrame({"item": items, "users": users.astype(np.int32)})
    return rows.join(kept, on="item", how="left", maintain_order="left")


def save(num_users: int, parts: Sequence[Path], path: Path) -> None:
    """Write the file of a release.

    Args:
        num_users: number of users with an interaction before their test target.
        parts: Parquet files of `group_by_item`, by ascending item; the followers of one are in memory at a time.
        path: file to write.
    """
    lengths = [pl.read_parquet(part, columns=["followers"])["followers"].list.len().fill_null(0) for part in parts]
    ends = np.cumsum(pl.concat(lengths).to_numpy(), dtype=np.int64)
    header = np.concatenate([[num_users, 0], ends]).astype("<i8").view("<i4")
    num_items, num_followers, row = len(ends), int(ends[-1]), 0
    num_rows = len(header) + num_items + 2 * num_followers
    content = np.lib.format.open_memmap(path, mode="w+", dtype="<i4", shape=(num_rows,))
    content[: len(header)] = header
    users, rows = content[len(header) :][:num_items], content[len(header) + num_items :]
    first_item = 0
    for part in parts:
        frame = pl.read_parquet(part)
        users[first_item : first_item + frame.height] = frame["users"].to_numpy()
        first_item += frame.height
        listed = frame.drop_nulls("followers").explode("followers", "counts")
        rows[row : row + listed.height] = listed["followers"].to_numpy()
        rows[num_followers:][row : row + listed.height] = listed["counts"].to_numpy()
        row += listed.height
    content.flush()
