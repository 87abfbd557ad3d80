"""Reader of JSON lines.

A file is read twice: first for the columns and their types, because any line may add a column or a type, then for the
rows.
"""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Iterator
from types import NoneType
from typing import Any

import polars as pl

from pipelines.context.raw_rows import MalformedRows, RawRows
from pipelines.context.text_files import open_text

JsonType = tuple[type, ...]
"""Type of a value: (type,) of a scalar, (list, type) of an element of a list; `object` is any other type."""
DataType = pl.DataType | type[pl.DataType]
SCALARS: dict[type, Any] = {bool: pl.Boolean, int: pl.Int64, float: pl.Float64, str: pl.String}


def read_json_lines(source: str, rows_per_chunk: int) -> Iterator[RawRows]:
    """Read the rows of a file in chunks; every chunk has all columns of the file, of the same types."""
    columns = _column_types(source)
    rows: list[dict[str, object]] = []
    malformed: MalformedRows = []
    first_row = 0

    def chunk() -> RawRows:
        series = [_series(name, [row.get(name) for row in rows], columns[name]) for name in columns]
        return RawRows.from_frame(pl.DataFrame(series or None, height=len(rows)), malformed, first_row)

    for number, line, row in _lines(source):
        if len(rows) + len(malformed) == rows_per_chunk:
            yield chunk()
            rows, malformed, first_row = [], [], number
        if row is None:
            malformed.append((number, "line is no JSON object", line.rstrip("\n")))
        else:
            rows.append(row)
    yield chunk()


def _lines(source: str) -> Iterator[tuple[int, str, dict[str, object] | None]]:
    """Yield number, text and JSON object of every line that is not blank; the object is None if malformed."""
    with open_text(source) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="\n")
        for number, line in enumerate(line for line in text if line.strip()):
            yield number, line, _json_object(line)


def _json_object(line: str) -> dict[str, object] | None:
    try:
        row = json.loads(line)
        if "\\u" in line:
            json.dumps(row, ensure_ascii=False).encode()  # rejects an unpaired surrogate, which is not valid text
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _column_types(source: str) -> dict[str, DataType]:
    json_types: dict[str, set[JsonType]] = defaultdict(set)
    for _, _, row in _lines(source):
        for column, value in (row or {}).items():
            json_types[column].update(_json_types(value))
    return {column: _common_type(types) for column, types in json_types.items()}


def _json_types(value: object) -> set[JsonType]:
    if isinstance(value, list):
        return {(list, _scalar_type(element)) for element in value} or {(list, NoneType)}
    return {(_scalar_type(value),)}


def _scalar_type(value: object) -> type:
    if type(value) is int and not -(2**63) <= value < 2**63:
        return object
    return type(value) if type(value) in {*SCALARS, NoneType} else object


def _common_type(types: set[JsonType]) -> DataType:
    """Return the data type of a column; values of several types become text, which is parsed later."""
    non_null = types - {(NoneType,)}
    scalars = {json_type[-1] for json_type in non_null} - {NoneType}
    one_type = next(iter(scalars)) if len(scalars) == 1 else object
    scalar = SCALARS.get(one_type, pl.String) if scalars else pl.Null
    if len({len(json_type) for json_type in non_null}) > 1:
        return pl.String
    return pl.List(scalar) if (list,) in {json_type[:-1] for json_type in non_null} else scalar


def _series(name: str, values: list[Any], data_type: DataType) -> pl.Series:
    if data_type == pl.String:
        values = [_text(value) for value in values]
    if data_type == pl.List(pl.String):
        values = [None if value is None else [_text(element) for element in value] for value in values]
    return pl.Series(name, values, data_type, strict=True)


def _text(value: object) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)
