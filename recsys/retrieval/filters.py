"""Conditions on the catalog's columns -> the items that meet them."""

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

NOBODY = np.zeros(0, np.uint32)

AVAILABLE = "available"
"""Column of the catalog: whether an item can be had; where it is null or missing, it can."""
OWN = {"interactions", AVAILABLE}
"""Columns that conditions may name, and that are no features."""


class Facets:
    """Columns of a catalog, each made ready for conditions when it is first asked for.

    Args:
        frame: the catalog's columns, one row an item.
    """

    def __init__(self, frame: pl.DataFrame) -> None:
        self._frame = frame
        self._columns: dict[str, _Terms | _Numbers] = {}

    def require(self, conditions: Iterable[Condition]) -> None:
        """Refuse conditions that do not go with the columns.

        Raises:
            InputError: no such column, a text where it holds numbers, or a range where it holds texts.
        """
        for condition in conditions:
            kind = self._kind(condition.column)
            numeric, flag = kind.is_numeric(), kind == pl.Boolean
            values = condition.any_of or ()
            wrong = [v for v in values if isinstance(v, str) == (numeric or flag) or isinstance(v, bool) != flag]
            if wrong:
                holds = "numbers" if numeric else "true or false" if flag else "texts"
                raise InputError(f"{condition.column!r} must be one of {holds}. Received: {wrong[0]!r}.")
            if condition.any_of is None and not numeric:
                raise InputError(f"{condition.column!r} must be of numbers to have a range. Received: {kind}.")

    def require_terms(self, columns: Iterable[str]) -> None:
        """Refuse columns of which neighbors cannot be counted by value.

        Raises:
            InputError: no such column, or one of numbers.
        """
        for column in columns:
            if self._kind(column).is_numeric():
                raise InputError(f"{column!r} must hold texts to be counted by value. Received: numbers.")

    def meeting(self, condition: Condition) -> Mask:
        """Whether each item meets a condition, bool [num_items]."""
        return self._column(condition.column).meeting(condition)

    def having(self, column: str, value: Value) -> NDArray[np.integer]:
        """Numbers of the items with a value in a column of texts, of lists of texts, or of true and false."""
        return cast("_Terms", self._column(column)).rows(value)

    @property
    def names(self) -> list[str]:
        """Columns that conditions may name."""
        return [column for column in self._frame.columns if column not in ("item_id", "title")]

    @property
    def features(self) -> list[str]:
        """Columns that say what an item is like."""
        return [column for column in self.names if column not in OWN]

    @property
    def of_terms(self) -> list[str]:
        """Columns of texts, or of lists of texts."""
        return [column for column in self.names if self._kind(column) == pl.String]

    def terms(self, column: str, number: int) -> list[Value]:
        """Values of one item in a column: none, one, or those of a list."""
        return as_terms(self._frame[column][number])

    def _column(self, column: str) -> _Terms | _Numbers:
        if column not in self._columns:
            values = self._frame[column]
            self._columns[column] = _Numbers(values) if values.dtype.is_numeric() else _Terms(values)
        return self._columns[column]

    def _kind(self, column: str) -> pl.DataType:
        if column not in self.names:
            close = difflib.get_close_matches(column, self.names, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            known = ", ".join(self.names) or "none"
            raise InputError(f"a condition must name a column of the catalog: {known}. Received: {column!r}.{hint}")
        kind = self._frame.schema[column]
        return kind.inner if isinstance(kind, pl.List) else kind  # type: ignore[return-value]


def as_terms(value: Any) -> list[Value]:
    """A cell as a list of values."""
    if value is None:
        return []
    return list(value) if isinstance(value, pl.Series | list | tuple) else [value]


def meets(row: Mapping[str, Any], conditions: Sequence[Condition]) -> bool:
    """Whether one item's columns meet all conditions."""
    return all(_meets(as_terms(row.get(condition.column)), condition) for condition in conditions)


def _meets(terms: list[Value], condition: Condition) -> bool:
    if condition.any_of is not None:
        return not set(condition.any_of).isdisjoint(terms)
    least = -np.inf if condition.least is None else condition.least
    most = np.inf if condition.most is None else condition.most
    return any(least <= float(term) <= most for term in terms)


class _Terms:
    """A column of texts, of lists of texts, or of true and false: the items of each value."""

    def __init__(self, values: pl.Series) -> None:
        self._size = len(values)
        rows = pl.DataFrame({"value": values}).with_row_index("row")
        if isinstance(values.dtype, pl.List):
            rows = rows.explode("value", empty_as_null=False, keep_nulls=False)
        grouped = rows.drop_nulls("value").group_by("value").agg("row")
        self._rows: dict[Value, NDArray[np.uint32]] = {
            value: row.to_numpy() for value, row in zip(grouped["value"].to_list(), grouped["row"], strict=True)
        }

    def meeting(self, condition: Condition) -> Mask:
        mask = np.zeros(self._size, np.bool_)
        for value in condition.any_of or ():
            mask[self.rows(value)] = True
        return mask

    def rows(self, value: Value) -> NDArray[np.uint32]:
        return self._rows.get(value, NOBODY)


class _Numbers:
    """A column of numbers."""

    def __init__(self, values: pl.Series) -> None:
        self._values = values.cast(pl.Float64).fill_null(float("nan")).to_numpy()

    def meeting(self, condition: Condition) -> Mask:
        if condition.any_of is not None:
            mask: Mask = np.isin(self._values, np.array(condition.any_of, np.float64))
            return mask
        mask = ~np.isnan(self._values)
        if condition.least is not None:
            mask &= self._values >= condition.least
        if condition.most is not None:
            mask &= self._values <= condition.most
        return mask
