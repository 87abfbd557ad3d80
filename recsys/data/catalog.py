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
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import polars as pl
from numpy.dtypes import StringDType
from numpy.typing import NDArray

from recsys.errors import UnknownItemError

BLOCK = 10_000
"""Item ids converted at a time."""
Text = TypeVar("Text", str, str | None)


class TextColumn(Sequence[Text]):
    """A column of strings or nulls, read one by one: Python strings for all of them would take more memory."""

    def __init__(self, series: pl.Series) -> None:
        self._series = series

    def __len__(self) -> int:
        return len(self._series)

    @overload
    def __getitem__(self, row: int) -> Text: ...
    @overload
    def __getitem__(self, row: slice) -> list[Text]: ...
    def __getitem__(self, row: int | slice) -> Text | list[Text]:
        return self._series[row].to_list() if isinstance(row, slice) else self._series[int(row)]

    def __iter__(self) -> Iterator[Text]:
        return iter(self._series)


class Catalog:
    """The items of one release, sorted by id; the item number is the row.

    `frame` has `item_id` (text, unique, sorted), `title` (text or null), `interactions` (int64, the number of
    interactions in the training data) and the feature columns of the config.
    """

    def __init__(self, frame: pl.DataFrame) -> None:
        # sorting copies the frame, and a catalog from a file is sorted
        self.frame = frame if frame["item_id"].is_sorted() else frame.sort("item_id")

    def __len__(self) -> int:
        return self.frame.height

    def __repr__(self) -> str:
        return f"Catalog({len(self)} items)"

    @cached_property
    def item_ids(self) -> TextColumn[str]:
        """Item ids by item number."""
        return TextColumn(self.frame["item_id"])

    @cached_property
    def titles(self) -> TextColumn[str | None]:
        """Titles by item number."""
        return TextColumn(self.frame["title"])

    @cached_property
    def id_array(self) -> NDArray[Any]:
        """Item ids by item number as an array of NumPy's `StringDType`: 16 bytes an item, and a quarter of the time."""
        array = np.empty(len(self), StringDType())
        for start in range(0, len(self), BLOCK):  # Python strings for all ids at once would leave gaps in the memory
            array[start : start + BLOCK] = np.array(self.item_ids[start : start + BLOCK], StringDType())
        return array

    def item_number(self, item_id: str) -> int:
        """Return the item number of an item id.

        Raises:
            UnknownItemError: the item id is not in the catalog.
        """
        item_number = self.find_item_number(item_id)
        if item_number is None:
            raise UnknownItemError(f"item_id must be in the catalog. Received: {item_id!r}.")
        return item_number

    def find_item_number(self, item_id: str) -> int | None:
        """Return the item number of an item id, or None if it is not in the catalog."""
        item_number = bisect_left(self.id_array, item_id)
        return item_number if item_number < len(self) and self.id_array[item_number] == item_id else None

    def item_numbers(self, item_ids: Sequence[str], *, missing: int) -> NDArray[np.int32]:
        """Return the item numbers of item ids, int32 [len(item_ids)]; `missing` for ids not in the catalog."""
        known_ids = self.frame["item_id"]
        queried = pl.Series(item_ids, dtype=pl.String)
        rows = known_ids.search_sorted(queried).clip(upper_bound=max(len(self) - 1, 0))
        is_known = known_ids.gather(rows) == queried if len(self) else np.zeros(len(queried), np.bool_)
        return np.where(is_known, rows, missing).astype(np.int32)

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
