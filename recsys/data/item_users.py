"""Who touched each item, as user numbers: how many users two items have in common.

On disk one `.npy` file of little-endian int32 that processes map and share: first the `num_items + 1` offsets, each
an int64 in two numbers, then the users of item 0, of item 1 and so on, ascending. Item i owns
`users[offsets[i]:offsets[i + 1]]`.
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
class Audience:
    """The users of each item."""

    offsets: NDArray[np.int64]
    """int64 [num_items + 1]."""
    _users: NDArray[np.int32]

    def users(self, number: int) -> NDArray[np.int32]:
        """Numbers of the users that touched an item, ascending, each once."""
        return self._users[self.offsets[number] : self.offsets[number + 1]]

    def of_any(self, numbers: Sequence[int]) -> NDArray[np.int32]:
        """Numbers of the users that touched at least one of the items, ascending, each once."""
        if len(numbers) == 1:
            return self.users(numbers[0])
        every = [self.users(number) for number in numbers]
        return np.unique(np.concatenate(every)) if every else np.empty(0, np.int32)

    def in_common(self, users: NDArray[np.int32], number: int) -> int:
        """How many of some users, as `of_any` gives them, touched an item."""
        other = self.users(number)
        few, many = (users, other) if len(users) < len(other) else (other, users)
        place = np.searchsorted(many, few)
        place[place == len(many)] = 0
        return int(np.count_nonzero(many[place] == few)) if len(many) else 0

    @classmethod
    def load(cls, path: Path, num_items: int) -> Audience:
        """Map a file that `build` wrote.

        Raises:
            InputError: it is none, or not one of so many items.
        """
        content = map_array(path, "item users")
        head = 2 * (num_items + 1)
        if content.ndim == 1 and content.dtype == np.dtype("<i4") and len(content) >= head:
            whole: NDArray[np.int32] = np.asarray(content, np.int32)
            offsets, users = whole[:head].view(np.int64), whole[head:]
            if offsets[0] == 0 and offsets[-1] == len(users) and (np.diff(offsets) >= 0).all():
                return cls(offsets, users)
        raise InputError(
            f"audience must be the int32 offsets and users of {num_items} items. "
            f"Received {path}: {content.dtype} {list(content.shape)}."
        )


def build(parts: Sequence[Path], num_items: int, path: Path) -> None:
    """Write the audience of sequences, each user in one part only.

    Each part is read twice and held alone: memory follows the largest part.
    """
    counts = np.zeros(num_items, np.int64)
    for items, _ in _touched(parts):
        counts += np.bincount(items, minlength=num_items)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype("<i8")
    head = 2 * len(offsets)
    content = np.lib.format.open_memmap(path, mode="w+", dtype="<i4", shape=(head + int(offsets[-1]),))
    content[:head] = offsets.view("<i4")
    filled = offsets[:-1] + head
    for items, users in _touched(parts):
        counts = np.bincount(items, minlength=num_items)
        first = np.cumsum(counts) - counts
        content[filled[items] + np.arange(len(items)) - first[items]] = users
        filled += counts
    content.flush()


def _touched(parts: Sequence[Path]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Part by part, items and the users that touched them, by item, then by user, each pair once."""
    earlier = 0
    for part in parts:
        sequences = Sequences.load([part])
        users = max(len(sequences), 1)
        pairs = np.unique(sequences.items.astype(np.int64) * users + sequences.users)
        yield pairs // users, pairs % users + earlier
        earlier += len(sequences)
