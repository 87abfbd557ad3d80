"""Readers of interactions and items: Parquet, CSV and JSON lines, the last two also gzipped.

Hands on units of work, and for each unit a Polars frame of raw rows. What is not even a row (a line with too
many fields, a line that is no JSON) comes out beside the frame, with its line number and a reason.
"""

from __future__ import annotations

import codecs
import glob
import gzip
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, NamedTuple, cast

import polars as pl
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from recsys.errors import InputError

Format = Literal["parquet", "csv", "jsonl"]
BLOCK_BYTES = 1 << 20
SUFFIXES: dict[str, Format] = {".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}


@dataclass(frozen=True)
class Unit:
    """A part of the input that is read at once."""

    number: int
    path: Path
    format: Format
    row_groups: tuple[int, ...] = ()
    """Of a Parquet file; () is the whole file."""
    first_row: int = 0
    """Row of the file that the unit begins with."""
    rows: int = 0
    """Rows, where the format tells without reading; else an estimate."""


class Raw(NamedTuple):
    """What a unit holds."""

    frame: pl.DataFrame
    numbers: pl.Series
    """Where in the file each row of the frame stands, from 0, a CSV's header not counted; uint32."""
    broken: pl.DataFrame
    """`row` (uint32, counted alike), `reason` and `content` of what is no row."""


def find(pattern: str, name: str) -> list[Path]:
    """The files of a path or a glob, sorted.

    Raises:
        InputError: there are none, or one is of a format that we do not read.
    """
    paths = [
        Path(path)
        for path in sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - patterns may be absolute
        if Path(path).is_file()
    ]
    if not paths and Path(pattern).is_file():  # a name with brackets is also a file
        paths = [Path(pattern)]
    if not paths:
        raise InputError(f"{name} must be a file, or a glob that matches files. Received: {pattern}.")
    for path in paths:
        _format(path, name)
    return paths


def plan(paths: list[Path], rows_per_unit: int) -> list[Unit]:
    """Cut files into units of about `rows_per_unit` rows: Parquet by row groups, other files whole.

    Raises:
        InputError: a file is empty or broken.
    """
    units: list[Unit] = []
    for path in paths:
        if path.stat().st_size == 0:
            raise InputError(f"{path} must hold rows. Received: an empty file.")
        kind = _format(path, "input")
        if kind == "parquet":
            units.extend(_plan_parquet(path, rows_per_unit, len(units)))
        else:
            bytes_a_row = 32 if path.suffix != ".gz" else 10
            estimate = path.stat().st_size // bytes_a_row + 1
            units.append(Unit(len(units), path, kind, rows=estimate))
    return units


def read(unit: Unit) -> Raw:
    """The rows of a unit; CSV columns as text, since a type guessed from some rows breaks others.

    Raises:
        InputError: the file cannot be read as what its name says.
    """
    readers = {"parquet": _read_parquet, "csv": _read_csv, "jsonl": _read_jsonl}
    try:
        return readers[unit.format](unit)
    except (pa.ArrowException, pl.exceptions.PolarsError, OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{unit.path} must be a {unit.format} file. Received: {error}.") from None


def _format(path: Path, name: str) -> Format:
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix.lower() not in SUFFIXES:
        raise InputError(f"{name} must end in {', '.join(SUFFIXES)}, the text formats also with .gz. Received: {path}.")
    return SUFFIXES[suffix.lower()]


def _plan_parquet(path: Path, rows_per_unit: int, number: int) -> list[Unit]:
    try:
        metadata = pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} must be a parquet file. Received: {error}.") from None
    units: list[Unit] = []
    groups: list[int] = []
    rows = first_row = 0
    for group in range(metadata.num_row_groups):
        groups.append(group)
        rows += metadata.row_group(group).num_rows
        if rows >= rows_per_unit or group == metadata.num_row_groups - 1:
            units.append(Unit(number + len(units), path, "parquet", tuple(groups), first_row, rows))
            groups, rows, first_row = [], 0, first_row + rows
    return units or [Unit(number, path, "parquet")]


def _read_parquet(unit: Unit) -> Raw:
    file = pq.ParquetFile(unit.path)
    table = file.read_row_groups(list(unit.row_groups)) if unit.row_groups else file.read()
    return _raw(cast("pl.DataFrame", pl.from_arrow(table)), [], unit.first_row)


def _read_csv(unit: Unit) -> Raw:
    broken: list[tuple[int, str, str]] = []

    def on_broken(row: pacsv.InvalidRow) -> str:
        reason = f"line has {row.actual_columns} fields where the header has {row.expected_columns}"
        broken.append((row.number - 2, reason, row.text))
        return "skip"

    _require_utf8(unit.path)
    with _open(unit.path) as file:
        header = file.readline().decode("utf-8-sig").strip()
    if not header:
        raise InputError(f"{unit.path} must begin with a line of column names. Received: an empty line.")
    columns = next(iter(pl.read_csv(header.encode(), has_header=False, infer_schema=False).iter_rows()))
    with _open(unit.path) as file:
        table = pacsv.read_csv(
            file,
            # one thread, since only then rows come with their numbers
            read_options=pacsv.ReadOptions(use_threads=False),
            parse_options=pacsv.ParseOptions(newlines_in_values=True, invalid_row_handler=on_broken),
            convert_options=pacsv.ConvertOptions(
                column_types={column: pa.string() for column in columns},
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
    return _raw(cast("pl.DataFrame", pl.from_arrow(table)), broken)


def _read_jsonl(unit: Unit) -> Raw:
    rows: list[dict[str, object]] = []
    broken: list[tuple[int, str, str]] = []
    with _open(unit.path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="\n")
        for number, line in enumerate(line for line in text if line.strip()):
            row = _json_object(line)
            if row is None:
                broken.append((number, "line is no JSON object", line.rstrip("\n")))
            else:
                rows.append(row)
    columns = {column: [row.get(column) for row in rows] for column in dict.fromkeys(k for r in rows for k in r)}
    return _raw(pl.DataFrame([_column(name, values) for name, values in columns.items()]), broken)


def _json_object(line: str) -> dict[str, object] | None:
    try:
        row = json.loads(line)
        if "\\u" in line:
            json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _column(name: str, values: list[object]) -> pl.Series:
    """Lists stay lists; of anything mixed, the text decides later what it is."""
    try:
        return pl.Series(name, values, strict=True)
    except (TypeError, OverflowError, pl.exceptions.PolarsError):
        texts = [None if value is None else value if isinstance(value, str) else json.dumps(value) for value in values]
        return pl.Series(name, texts, pl.String)


def _raw(frame: pl.DataFrame, broken: list[tuple[int, str, str]], first_row: int = 0) -> Raw:
    schema = {"row": pl.UInt32, "reason": pl.String, "content": pl.String}
    bad = pl.DataFrame(broken, schema=schema, orient="row")
    places = pl.int_range(first_row, first_row + frame.height + bad.height, dtype=pl.UInt32, eager=True)
    return Raw(frame, places.filter(~places.is_in(bad["row"].implode())), bad)


def _require_utf8(path: Path) -> None:
    """Checked before, since pyarrow prints a traceback where it cannot decode a broken line."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with _open(path) as file:
        while block := file.read(BLOCK_BYTES):
            decoder.decode(block)
        decoder.decode(b"", final=True)


def _open(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")
