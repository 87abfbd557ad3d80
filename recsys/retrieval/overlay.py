"""What changed since a release was built, and the items as they are with it: what a question is answered from."""

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
from recsys.retrieval.filters import AVAILABLE, Facets, Mask, as_terms, meets
from recsys.retrieval.query import Condition, Value
from recsys.retrieval.search import checked


@dataclass(frozen=True)
class Added:
    """An item with a place of its own."""

    vector: NDArray[np.floating]
    """[dimension]; of any length, for cosine too."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """Its `title` and columns of the catalog; what is left out is missing."""


@dataclass(frozen=True)
class Overlay:
    """Changes between two nights. None of the ids has to be in the release."""

    hidden: frozenset[str] = frozenset()
    """Taken down: in no answer, and unknown when asked about. Stronger than the other two."""
    added: Mapping[str, Added] = field(default_factory=dict)
    """New items, or other places of items that the release has, by id."""
    changed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Columns, also `title`, that have another value, by id of an item that the release has."""
    revision: str = ""
    """Another one for another content: what a cached answer depends on beside the release."""


UNCHANGED = Overlay()


class Stock:
    """The items of a release with an overlay. Added items have the numbers after those of the catalog.

    Raises:
        InputError: an added vector that is not finite, of another dimension, or without a direction for cosine.
    """

    def __init__(
        self, catalog: Catalog, vectors: Vectors, facets: Facets, distance: Distance, overlay: Overlay
    ) -> None:
        self._catalog = catalog
        self._facets = facets
        self._vectors = vectors
        self.size = len(catalog)
        """Items of the catalog: numbers from here on are of added items."""
        added = {item_id: one for item_id, one in overlay.added.items() if item_id not in overlay.hidden}
        self._added_ids = sorted(added)
        self._added_rows = [{"item_id": item_id, **added[item_id].row} for item_id in self._added_ids]
        self._added_numbers = {item_id: self.size + row for row, item_id in enumerate(self._added_ids)}
        self.added_vectors = np.array(
            [
                checked(f"vector of {item_id!r}", added[item_id].vector, vectors.shape[1], distance)
                for item_id in self._added_ids
            ],
            np.float32,
        ).reshape(len(added), vectors.shape[1])
        """Of the added items, float32 [num_added, dimension]."""
        gone = catalog.numbers(sorted(overlay.hidden | added.keys()), missing=-1)
        self.gone = frozenset(gone[gone >= 0].tolist())
        """Numbers of the catalog that are taken down, or stand at another place now."""
        changed = zip(overlay.changed.values(), catalog.numbers(list(overlay.changed), missing=-1), strict=True)
        self._changed = {int(number): dict(row) for row, number in changed if number >= 0}
        self._made_apart: dict[str, tuple[NDArray[np.int64], dict[Value, list[int]]]] = {}

    def __len__(self) -> int:
        return self.size + len(self._added_ids)

    def number(self, item_id: str) -> int | None:
        """The number of an item, None if it is unknown or taken down."""
        added = self._added_numbers.get(item_id)
        if added is not None:
            return added
        number = self._catalog.find(item_id)
        return None if number in self.gone else number

    def named(self, numbers: Sequence[int]) -> list[tuple[str, str | None]]:
        """Ids and titles of some items."""
        item_ids, titles = self._catalog.item_ids, self._catalog.titles
        if not (self._changed or self._added_ids):
            return [(item_ids[number], titles[number]) for number in numbers]
        changed = self._changed
        rows = {number: self.row(number) for number in numbers if number >= self.size or number in changed}
        return [
            (rows[number]["item_id"], rows[number]["title"]) if number in rows else (item_ids[number], titles[number])
            for number in numbers
        ]

    def row(self, number: int) -> dict[str, Any]:
        """All columns of an item."""
        if number >= self.size:
            return dict.fromkeys(self._catalog.frame.columns) | self._added_rows[number - self.size]
        return self._catalog.frame.row(number, named=True) | self._changed.get(number, {})

    def terms(self, column: str, number: int) -> list[Value]:
        """Values of one item in a column: none, one, or those of a list."""
        if number >= self.size or column in self._changed.get(number, ()):
            return as_terms(self.row(number).get(column))
        return self._facets.terms(column, number)

    def having(self, column: str, value: Value) -> NDArray[np.integer]:
        """Numbers of the items with a value in a column of texts, of lists of texts, or of true and false."""
        held = self._facets.having(column, value)
        if not (self._changed or self._added_ids):
            return held
        apart, numbers = self._apart(column)
        return np.concatenate([held[~np.isin(held, apart)], np.array(numbers.get(value, []), np.int64)])

    def _apart(self, column: str) -> tuple[NDArray[np.int64], dict[Value, list[int]]]:
        """Numbers of the items that have another value in a column than the catalog, and those of each value."""
        if column not in self._made_apart:
            apart = [number for number, row in self._changed.items() if column in row]
            apart += range(self.size, len(self))
            numbers: dict[Value, list[int]] = {}
            for number in apart:
                for value in set(self.terms(column, number)):
                    numbers.setdefault(value, []).append(number)
            self._made_apart[column] = np.array(apart, np.int64), numbers
        return self._made_apart[column]

    def vectors(self, numbers: Sequence[int] | NDArray[np.integer]) -> Vectors:
        """Of some items, float32 [n, dimension]."""
        if not self._added_ids:
            return self._vectors[numbers]
        wanted = np.asarray(numbers, np.int64)
        added = wanted >= self.size
        found = np.empty((len(wanted), self._vectors.shape[1]), np.float32)
        found[added] = self.added_vectors[wanted[added] - self.size]
        found[~added] = self._vectors[wanted[~added]]
        return found

    def meeting(self, conditions: Sequence[Condition], *, only_available: bool) -> Mask | None:
        """Whether each item meets all conditions, bool [len(self)]; None where there are none.

        Raises:
            InputError: a condition that does not go with the catalog.
        """
        if not (conditions or only_available):
            return None
        self._facets.require(conditions)
        mask = np.ones(len(self), np.bool_)
        known = mask[: self.size]
        if only_available and AVAILABLE in self._catalog.frame.columns:
            known &= ~self._facets.meeting(Condition(AVAILABLE, any_of=(False,)))
        for condition in conditions:
            known &= self._facets.meeting(condition)
        for number in (*self._changed, *range(self.size, len(self))):
            row = self.row(number)
            mask[number] = meets(row, conditions) and not (only_available and row.get(AVAILABLE) is False)
        return mask

    @cached_property
    def popular(self) -> NDArray[np.int64]:
        """All numbers, most interactions first, ties by number."""
        count = np.zeros(len(self), np.int64)
        count[: self.size] = self._catalog.frame["interactions"].fill_null(0).to_numpy()
        return np.lexsort((np.arange(len(count)), -count))
