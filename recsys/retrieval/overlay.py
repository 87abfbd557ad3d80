"""Item changes since a release was built, and the catalog with these changes applied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.data.catalog import Catalog
from recsys.index.distances import Distance
from recsys.index.embeddings import Vectors
from recsys.retrieval.filters import AVAILABLE, CatalogColumns, Mask, as_values, satisfies
from recsys.retrieval.query import Condition, Value
from recsys.retrieval.search import validate_vector


@dataclass(frozen=True)
class AddedItem:
    """An item with its own embedding."""

    vector: NDArray[np.floating]
    """float [dimension], of any length."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """`title` and catalog columns; columns that are not listed are missing."""


@dataclass(frozen=True)
class Overlay:
    """Changes since the release was built. Item ids need not be in the release."""

    hidden: frozenset[str] = frozenset()
    """Ids of removed items: never returned, and unknown in a query. Takes precedence over the other two."""
    added: Mapping[str, AddedItem] = field(default_factory=dict)
    """New items, and items of the release with another embedding, by id."""
    changed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Item id -> changed columns, including `title`, of an item of the release."""


EMPTY_OVERLAY = Overlay()


class OverlaidCatalog:
    """The items of a release with an overlay applied. Added items take the item numbers after the catalog's.

    Raises:
        InputError: an added vector is not finite, has another dimension, or is zero for the cosine distance.
    """

    def __init__(
        self, catalog: Catalog, vectors: Vectors, columns: CatalogColumns, distance: Distance, overlay: Overlay
    ) -> None:
        self._catalog = catalog
        self._columns = columns
        self._vectors = vectors
        self.num_catalog_items = len(catalog)
        """Items of the catalog; larger item numbers belong to added items."""
        added = {item_id: item for item_id, item in overlay.added.items() if item_id not in overlay.hidden}
        self._added_ids = sorted(added)
        self._added_rows = [{"item_id": item_id, **added[item_id].columns} for item_id in self._added_ids]
        self._added_numbers = {item_id: self.num_catalog_items + row for row, item_id in enumerate(self._added_ids)}
        self.added_vectors = np.array(
            [
                validate_vector(f"vector of {item_id!r}", added[item_id].vector, vectors.shape[1], distance)
                for item_id in self._added_ids
            ],
            np.float32,
        ).reshape(len(added), vectors.shape[1])
        """Vectors of the added items, float32 [num_added, dimension]."""
        removed = catalog.item_numbers(sorted(overlay.hidden | added.keys()), missing=-1)
        self.removed = frozenset(removed[removed >= 0].tolist())
        """Item numbers of the catalog that are hidden or replaced by an added item."""
        changed_numbers = catalog.item_numbers(list(overlay.changed), missing=-1)
        changed = zip(overlay.changed.values(), changed_numbers, strict=True)
        self._changed = {int(item_number): dict(row) for row, item_number in changed if item_number >= 0}
        self._overridden: dict[str, tuple[NDArray[np.int64], dict[Value, list[int]]]] = {}

    def __len__(self) -> int:
        return self.num_catalog_items + len(self._added_ids)

    def item_number(self, item_id: str) -> int | None:
        """Return the number of an item; None if it is unknown or hidden."""
        added = self._added_numbers.get(item_id)
        if added is not None:
            return added
        item_number = self._catalog.find_item_number(item_id)
        return None if item_number in self.removed else item_number

    def current_number(self, item_number: int) -> int | None:
        """Return the number that an item of the catalog has after the changes; None if it is hidden."""
        return (
            self._added_numbers.get(self._catalog.item_ids[item_number]) if item_number in self.removed else item_number
        )

    def ids_and_titles(self, item_numbers: Sequence[int]) -> list[tuple[str, str | None]]:
        """Return the id and title of each item."""
        item_ids, titles = self._catalog.id_array, self._catalog.titles
        if not (self._changed or self._added_ids):
            return [(item_ids[item_number], titles[item_number]) for item_number in item_numbers]
        rows = {
            item_number: self.row(item_number)
            for item_number in item_numbers
            if item_number >= self.num_catalog_items or item_number in self._changed
        }
        return [
            (rows[item_number]["item_id"], rows[item_number]["title"])
            if item_number in rows
            else (item_ids[item_number], titles[item_number])
            for item_number in item_numbers
        ]

    def row(self, item_number: int) -> dict[str, Any]:
        """Return all columns of an item."""
        if item_number >= self.num_catalog_items:
            added = self._added_rows[item_number - self.num_catalog_items]
            return dict.fromkeys(self._catalog.frame.columns) | added
        return self._catalog.frame.row(item_number, named=True) | self._changed.get(item_number, {})

    def values(self, column: str, item_number: int) -> list[Value]:
        """Return the values of one item in a column: none, one, or the elements of a list."""
        if item_number >= self.num_catalog_items or column in self._changed.get(item_number, ()):
            return as_values(self.row(item_number).get(column))
        return self._columns.values(column, item_number)

    def items_with_value(self, column: str, value: Value) -> NDArray[np.integer]:
        """Return the numbers of the items with a value in a column of strings, lists of strings, or booleans."""
        in_catalog = self._columns.items_with_value(column, value)
        if not (self._changed or self._added_ids):
            return in_catalog
        overridden, by_value = self._overridden_values(column)
        unchanged = in_catalog[~np.isin(in_catalog, overridden)]
        return np.concatenate([unchanged, np.array(by_value.get(value, []), np.int64)])

    def _overridden_values(self, column: str) -> tuple[NDArray[np.int64], dict[Value, list[int]]]:
        """Return the numbers of the items whose value in a column is not the catalog's, and the same by value."""
        if column not in self._overridden:
            overridden = [item_number for item_number, row in self._changed.items() if column in row]
            overridden += range(self.num_catalog_items, len(self))
            by_value: dict[Value, list[int]] = {}
            for item_number in overridden:
                for value in set(self.values(column, item_number)):
                    by_value.setdefault(value, []).append(item_number)
            self._overridden[column] = np.array(overridden, np.int64), by_value
        return self._overridden[column]

    def vectors(self, item_numbers: Sequence[int] | NDArray[np.integer]) -> Vectors:
        """Return the vectors of n items, float32 [n, dimension]."""
        if not self._added_ids:
            return self._vectors[item_numbers]
        item_numbers = np.asarray(item_numbers, np.int64)
        added = item_numbers >= self.num_catalog_items
        vectors = np.empty((len(item_numbers), self._vectors.shape[1]), np.float32)
        vectors[added] = self.added_vectors[item_numbers[added] - self.num_catalog_items]
        vectors[~added] = self._vectors[item_numbers[~added]]
        return vectors

    def mask(self, conditions: Sequence[Condition], *, only_available: bool) -> Mask | None:
        """Return whether each item satisfies all conditions, bool [len(self)]; None without conditions.

        Raises:
            InputError: a condition does not fit the catalog's columns.
        """
        if not (conditions or only_available):
            return None
        self._columns.validate(conditions)
        mask = np.ones(len(self), np.bool_)
        in_catalog = mask[: self.num_catalog_items]
        if only_available and AVAILABLE in self._catalog.frame.columns:
            in_catalog &= ~self._columns.mask(Condition(AVAILABLE, any_of=(False,)))
        for condition in conditions:
            in_catalog &= self._columns.mask(condition)
        for item_number in (*self._changed, *range(self.num_catalog_items, len(self))):
            row = self.row(item_number)
            mask[item_number] = satisfies(row, conditions) and not (only_available and row.get(AVAILABLE) is False)
        return mask

    @cached_property
    def by_popularity(self) -> NDArray[np.int64]:
        """All item numbers, most interactions first, ties by item number."""
        counts = np.zeros(len(self), np.int64)
        counts[: self.num_catalog_items] = self._catalog.frame["interactions"].fill_null(0).to_numpy()
        return np.lexsort((np.arange(len(counts)), -counts))
