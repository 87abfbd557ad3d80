"""The items of one release: ids, titles, interaction counts and feature columns. On disk one Parquet file.

An item has two names:

- **item id**: the string that the outside uses. Any text.
- **item number**: an int from 0 to n - 1, the position of the id among all ids of the catalog in sorted order. It
  is the row of the item in the catalog and in the embeddings.

From `prepare` to the search result, everything that refers to an item within one release uses the item number. Item
numbers of two catalogs are unrelated: items are compared across releases by id.
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
    """The items of one release, sorted by id; the item number is the row.

    `frame` has `item_id` (text, unique, sorted), `title` (text or null), `interactions` (int64, the number of
    interactions in the training data) and the feature columns of the config.
    """

    def __init__(self, frame: pl.DataFrame) -> None:
        self.frame = frame.sort("item_id")

    def __len__(self) -> int:
        return self.frame.height

    def __repr__(self) -> str:
        return f"Catalog({len(self)} items)"

    @cached_property
    def item_ids(self) -> list[str]:
        """Item ids by item number."""
        return self.frame["item_id"].to_list()

    @cached_property
    def titles(self) -> list[str | None]:
        """Titles by item number."""
        return self.frame["title"].to_list()

    @cached_property
    def _number_by_id(self) -> dict[str, int]:
        return {item_id: item_number for item_number, item_id in enumerate(self.item_ids)}

    def item_number(self, item_id: str) -> int:
        """Return the item number of an item id.

        Raises:
            UnknownItemError: the item id is not in the catalog.
        """
        try:
            return self._number_by_id[item_id]
        except KeyError:
            raise UnknownItemError(f"item_id must be in the catalog. Received: {item_id!r}.") from None

    def find_item_number(self, item_id: str) -> int | None:
        """Return the item number of an item id, or None if it is not in the catalog."""
        return self._number_by_id.get(item_id)

    def item_numbers(self, item_ids: Sequence[str], *, missing: int) -> NDArray[np.int32]:
        """Return the item numbers of item ids, int32 [len(item_ids)]; `missing` for ids not in the catalog."""
        get = self._number_by_id.get
        return np.fromiter((get(item_id, missing) for item_id in item_ids), np.int32, len(item_ids))

    @cached_property
    def fingerprint(self) -> str:
        """See `fingerprint`."""
        return fingerprint(self.item_ids)

    def save(self, path: Path) -> None:
        """Write a Parquet file."""
        self.frame.write_parquet(path)

    @classmethod
    def load(cls, path: Path) -> Catalog:
        """Read a file written by `save`."""
        return cls(pl.read_parquet(path))


def fingerprint(item_ids: Iterable[str]) -> str:
    """Return the SHA-256 of item ids in order; equal fingerprints mean equal item numbers."""
    digest = hashlib.sha256()
    for item_id in item_ids:
        encoded = item_id.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()
