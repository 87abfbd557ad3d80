"""Conditions on catalog columns, evaluated to a mask over the items."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.errors import InputError
from recsys.retrieval.query import Condition, Value

Mask = NDArray[np.bool_]

NO_ITEMS = np.zeros(0, np.uint32)

AVAILABLE = "available"
"""Catalog column: whether an item can be recommended; a null or missing value means that it can."""
NOT_FEATURES = {"interactions", AVAILABLE}
"""Columns that conditions may name and that are not item features."""


class CatalogColumns:
    """The columns of a catalog, each prepared for conditions on first use.

    Args:
        frame: the catalog, one row per item.
    """

    def __init__(self, frame: pl.DataFrame) -> None:
        self._frame = frame
        self._prepared: dict[str, _Values | _Numbers] = {}

    def validate(self, conditions: Iterable[Condition]) -> None:
        """Raise if a condition does not fit its column.

        Raises:
            InputError: no such column, a string for a numeric column, or a range on a column of strings.
        """
        for condition in conditions:
            dtype = self._dtype(condition.column)
            numeric, boolean = dtype.is_numeric(), dtype == pl.Boolean
            invalid = [
                value
                for value in condition.any_of or ()
                if isinstance(value, str) == (numeric or boolean) or isinstance(value, bool) != boolean
            ]
            if invalid:
                expected = "numbers" if numeric else "true or false" if boolean else "strings"
                raise InputError(f"values of {condition.column!r} must be {expected}. Received: {invalid[0]!r}.")
            if condition.any_of is None and not numeric:
                raise InputError(f"{condition.column!r} must be a numeric column to have a range. Received: {dtype}.")

    def validate_countable(self, columns: Iterable[str]) -> None:
        """Raise if the items of a column cannot be counted by value.

        Raises:
            InputError: no such column, or a numeric one.
        """
        for column in columns:
            if self._dtype(column).is_numeric():
                raise InputError(
                    f"max_per_value must name columns of strings or booleans. Received: {column!r}, a numeric column."
                )

    def mask(self, condition: Condition) -> Mask:
        """Return whether each item satisfies a condition, bool [num_items]."""
        return self._column(condition.column).mask(condition)

    def items_with_value(self, column: str, value: Value) -> NDArray[np.integer]:
        """Return the numbers of the items with a value in a column of strings, lists of strings, or booleans."""
        return cast("_Values", self._column(column)).item_numbers(value)

    @property
    def names(self) -> list[str]:
        """Columns that conditions may name."""
        return [column for column in self._frame.columns if column not in ("item_id", "title")]

    @property
    def features(self) -> list[str]:
        """Columns with item features."""
        return [column for column in self.names if column not in NOT_FEATURES]

    @property
    def string_columns(self) -> list[str]:
        """Columns of strings, or of lists of strings."""
        return [column for column in self.names if self._dtype(column) == pl.String]

    def values(self, column: str, item_number: int) -> list[Value]:
        """Return the values of one item in a column: none, one, or the elements of a list."""
        return as_values(self._frame[column][item_number])

    def _column(self, column: str) -> _Values | _Numbers:
        if column not in self._prepared:
            series = self._frame[column]
            self._prepared[column] = _Numbers(series) if series.dtype.is_numeric() else _Values(series)
        return self._prepared[column]

    def _dtype(self, column: str) -> pl.DataType:
        """Return the type of a column, of a list column that of its elements."""
        if column not in self.names:
            close = difflib.get_close_matches(column, self.names, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            names = ", ".join(self.names) or "none"
            raise InputError(f"a condition must name a catalog column: {names}. Received: {column!r}.{hint}")
        dtype = self._frame.schema[column]
        return dtype.inner if isinstance(dtype, pl.List) else dtype  # type: ignore[return-value]


def as_values(cell: Any) -> list[Value]:
    """Return a cell of the catalog as a list of values."""
    if cell is None:
        return []
    return list(cell) if isinstance(cell, pl.Series | list | tuple) else [cell]


def satisfies(row: Mapping[str, Any], conditions: Sequence[Condition]) -> bool:
    """Return whether the columns of one item satisfy all conditions."""
    return all(_satisfies(as_values(row.get(condition.column)), condition) for condition in conditions)


def _satisfies(values: list[Value], condition: Condition) -> bool:
    if condition.any_of is not None:
        return not set(condition.any_of).isdisjoint(values)
    minimum = -np.inf if condition.minimum is None else condition.minimum
    maximum = np.inf if condition.maximum is None else condition.maximum
    return any(minimum <= float(value) <= maximum for value in values)


class _Values:
    """A column of strings, lists of strings, or booleans: the item numbers of each value."""

    def __init__(self, series: pl.Series) -> None:
        self._num_items = len(series)
        rows = pl.DataFrame({"value": series}).with_row_index("item_number")
        if isinstance(series.dtype, pl.List):
            rows = rows.explode("value", empty_as_null=False, keep_nulls=False)
        grouped = rows.drop_nulls("value").group_by("value").agg("item_number")
        self._item_numbers: dict[Value, NDArray[np.uint32]] = {
            value: item_numbers.to_numpy()
            for value, item_numbers in zip(grouped["value"].to_list(), grouped["item_number"], strict=True)
        }

    def mask(self, condition: Condition) -> Mask:
        mask = np.zeros(self._num_items, np.bool_)
        for value in condition.any_of or ():
            mask[self.item_numbers(value)] = True
        return mask

    def item_numbers(self, value: Value) -> NDArray[np.uint32]:
        return self._item_numbers.get(value, NO_ITEMS)


class _Numbers:
    """A numeric column."""

    def __init__(self, series: pl.Series) -> None:
        numbers = series.cast(pl.Float64)
        self._numbers = (numbers.fill_null(float("nan")) if numbers.null_count() else numbers).to_numpy()

    def mask(self, condition: Condition) -> Mask:
        if condition.any_of is not None:
            mask: Mask = np.isin(self._numbers, np.array(condition.any_of, np.float64))
            return mask
        mask = ~np.isnan(self._numbers)
        if condition.minimum is not None:
            mask &= self._numbers >= condition.minimum
        if condition.maximum is not None:
            mask &= self._numbers <= condition.maximum
        return mask
