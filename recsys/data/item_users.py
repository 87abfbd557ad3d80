"""The users of each item, as user numbers; used to count the users that two items share.

On disk one `.npy` file of little-endian int32 that processes map and share: first `num_items + 1` offsets, each an
int64 stored as two int32 values, then the users of item 0, of item 1 and so on, ascending. The users of an item are
`users[offsets[item_number]:offsets[item_number + 1]]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recsys.data.sequences import Sequences
from recsys.data.storage import map_array
from recsys.errors import InputError


@dataclass(frozen=True)
class ItemUsers:
    """The users of each item."""

    offsets: NDArray[np.int64]
    """int64 [num_items + 1]."""
    _users: NDArray[np.int32]

    def users(self, item_number: int) -> NDArray[np.int32]:
        """Return the numbers of the users who interacted with an item, ascending and unique."""
        return self._users[self.offsets[item_number] : self.offsets[item_number + 1]]

    def users_of_any(self, item_numbers: Sequence[int]) -> NDArray[np.int32]:
        """Return the numbers of the users who interacted with at least one of the items, ascending and unique."""
        if len(item_numbers) == 1:
            return self.users(item_numbers[0])
        users = [self.users(item_number) for item_number in item_numbers]
        return np.unique(np.concatenate(users)) if users else np.empty(0, np.int32)

    def count_shared(self, users: NDArray[np.int32], item_number: int) -> int:
        """Return how many of `users` (ascending and unique) interacted with an item."""
        item_users = self.users(item_number)
        shorter, longer = (users, item_users) if len(users) < len(item_users) else (item_users, users)
        position = np.searchsorted(longer, shorter)
        position[position == len(longer)] = 0
        return int(np.count_nonzero(longer[position] == shorter)) if len(longer) else 0

    @classmethod
    def load(cls, path: Path, num_items: int) -> ItemUsers:
        """Map a file written by `build`.

        Raises:
            InputError: the file has another format, or another number of items.
        """
        content = map_array(path, "item users")
        num_header = 2 * (num_items + 1)
        if content.ndim == 1 and content.dtype == np.dtype("<i4") and len(content) >= num_header:
            values: NDArray[np.int32] = np.asarray(content, np.int32)
            offsets, users = values[:num_header].view(np.int64), values[num_header:]
            if offsets[0] == 0 and offsets[-1] == len(users) and (np.diff(offsets) >= 0).all():
                return cls(offsets, users)
        raise InputError(
            f"item users must be the int32 offsets and users of {num_items} items. "
            f"Received {path}: {content.dtype} {list(content.shape)}."
        )


def build(parts: Sequence[Path], num_items: int, path: Path) -> None:
    """Write the item users of parts of the sequences; each user is in one part only.

    Each part is read twice, one at a time: memory is bounded by the largest part.
    """
    counts = np.zeros(num_items, np.int64)
    for items, _ in _item_user_pairs(parts):
        counts += np.bincount(items, minlength=num_items)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype("<i8")
    num_header = 2 * len(offsets)
    content = np.lib.format.open_memmap(path, mode="w+", dtype="<i4", shape=(num_header + int(offsets[-1]),))
    content[:num_header] = offsets.view("<i4")
    next_position = offsets[:-1] + num_header
    for items, users in _item_user_pairs(parts):
        counts = np.bincount(items, minlength=num_items)
        first = np.cumsum(counts) - counts
        content[next_position[items] + np.arange(len(items)) - first[items]] = users
        next_position += counts
    content.flush()


def _item_user_pairs(parts: Sequence[Path]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield, part by part, item numbers and their users, sorted by item and user, without duplicates."""
    earlier = 0
    for part in parts:
        sequences = Sequences.load([part])
        num_users = max(len(sequences), 1)
        pairs = np.unique(sequences.items.astype(np.int64) * num_users + sequences.users)
        yield pairs // num_users, pairs % num_users + earlier
        earlier += len(sequences)
