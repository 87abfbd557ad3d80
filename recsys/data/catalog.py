"""Item id (outside, any text) <-> item number (inside, dense 0..n-1), and what is known of an item.

Takes the checked items as a Polars frame, hands on a `Catalog`; on disk one Parquet file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.errors import UnknownItemError


class Catalog:
    """The items of one release, sorted by id; an item's number is its row.

    `frame` has `item_id` (text, unique, sorted), `title` (text or null), `interactions` (int64, the number
    that training saw) and the feature columns of the config.
    """

    def __init__(self, frame: pl.DataFrame) -> None:
        self.frame = frame.sort("item_id")

    def __len__(self) -> int:
        return self.frame.height

    def __repr__(self) -> str:
        return f"Catalog({len(self)} items)"

    @cached_property
    def item_ids(self) -> list[str]:
        """Item ids by number."""
        return self.frame["item_id"].to_list()

    @cached_property
    def titles(self) -> list[str | None]:
        """Titles by number."""
        return self.frame["title"].to_list()

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {item_id: number for number, item_id in enumerate(self.item_ids)}

    def number(self, item_id: str) -> int:
        """The number of one item.

        Raises:
            UnknownItemError: the catalog does not hold it.
        """
        try:
            return self._numbers[item_id]
        except KeyError:
            raise UnknownItemError(f"item_id must be in the catalog. Received: {item_id!r}.") from None

    def find(self, item_id: str) -> int | None:
        """The number of one item, None if the catalog does not hold it."""
        return self._numbers.get(item_id)

    def numbers(self, item_ids: Sequence[str], *, missing: int) -> NDArray[np.int32]:
        """Numbers of many items, int32 [len(item_ids)]; `missing` stands for unknown ones."""
        get = self._numbers.get
        return np.fromiter((get(item_id, missing) for item_id in item_ids), np.int32, len(item_ids))

    @cached_property
    def fingerprint(self) -> str:
        """See `fingerprint`."""
        return fingerprint(self.item_ids)

    def save(self, path: Path) -> None:
        """Write one Parquet file."""
        self.frame.write_parquet(path)

    @classmethod
    def load(cls, path: Path) -> Catalog:
        """Read what `save` wrote."""
        return cls(pl.read_parquet(path))


def fingerprint(item_ids: Iterable[str]) -> str:
    """SHA-256 of the ids in order: whatever is bound to item numbers is bound to this."""
    digest = hashlib.sha256()
    for item_id in item_ids:
        encoded = item_id.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()
