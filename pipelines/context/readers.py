"""Readers of interactions and items: Parquet, CSV and JSON lines, the last two also gzipped, by path or by URL.

Hands on units of work, and for each unit Polars frames of raw rows, a chunk at a time: no file is held as a whole.
What is not even a row (a line with too many fields, a line that is no JSON) comes out beside the frame, with its
line number and a reason.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import NoneType
from typing import Any, BinaryIO, Literal, NamedTuple, cast

import polars as pl
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from recsys.data import storage
from recsys.errors import InputError

Format = Literal["parquet", "csv", "jsonl"]
BLOCK_BYTES = 1 << 20
SUFFIXES: dict[str, Format] = {".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}

Broken = list[tuple[int, str, str]]
"""Row, reason and content of what is no row."""


@dataclass(frozen=True)
class Unit:
    """A part of the input that is worked on at once."""

    number: int
    source: str
    """Path or URL of the file."""
    format: Format
    row_groups: tuple[int, ...] = ()
    """Of a Parquet file; () is the whole file."""
    first_row: int = 0
    """Row of the file that the unit begins with."""
    rows: int = 0
    """Rows, where the format tells without reading; else an estimate."""


class Raw(NamedTuple):
    """What a chunk of a unit holds."""

    frame: pl.DataFrame
    numbers: pl.Series
    """Where in the file each row of the frame stands, from 0, a CSV's header not counted; uint32."""
    broken: pl.DataFrame
    """`row` (uint32, counted alike), `reason` and `content` of what is no row."""


def find(pattern: str, name: str) -> list[str]:
    """The files of a path, a URL or a glob, sorted.

    Raises:
        InputError: there are none, one is of a format that we do not read, or they are not ours to read.
        ConfigError: a URL that holds a password, or whose library is not installed.
    """
    location = storage.locate(pattern)
    sources = location.list_files()
    if not sources:
        raise InputError(f"{name} must be a file, or a glob that matches files. Received: {location.display_name}.")
    for source in sources:
        _format(source, name)
    return sources


def plan(sources: list[str], rows_per_unit: int) -> list[Unit]:
    """Cut files into units of about `rows_per_unit` rows: Parquet by row groups, other files whole.

    Raises:
        InputError: a file is empty or broken.
    """
    units: list[Unit] = []
    for source in sources:
        size = storage.locate(source).size()
        if size == 0:
            raise InputError(f"{_shown(source)} must hold rows. Received: an empty file.")
        kind = _format(source, "input")
        if kind == "parquet":
            units.extend(_plan_parquet(source, rows_per_unit, len(units)))
        else:
            bytes_a_row = 10 if _zipped(source) else 32
            units.append(Unit(len(units), source, kind, rows=size // bytes_a_row + 1))
    return units


def read(unit: Unit, rows: int) -> Iterator[Raw]:
    """The rows of a unit, in chunks of about so many; CSV as text, since a type guessed from some breaks others.

    Every chunk has all columns of the file, of the same types. There is at least one, also of a file without rows.

    Raises:
        InputError: the file cannot be read as what its name says; also after the first chunks.
    """
    readers = {"parquet": _read_parquet, "csv": _read_csv, "jsonl": _read_jsonl}
    try:
        yield from readers[unit.format](unit, rows)
    except (pa.ArrowException, pl.exceptions.PolarsError, OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{_shown(unit.source)} must be a {unit.format} file. Received: {error}.") from None


def _format(source: str, name: str) -> Format:
    path = PurePosixPath(source)
    suffix = path.with_suffix("").suffix if _zipped(source) else path.suffix
    if suffix.lower() not in SUFFIXES:
        known = ", ".join(SUFFIXES)
        raise InputError(f"{name} must end in {known}, the text formats also with .gz. Received: {_shown(source)}.")
    return SUFFIXES[suffix.lower()]


def _zipped(source: str) -> bool:
    return source.endswith(".gz")


def _shown(source: str) -> str:
    return storage.locate(source).display_name


def _plan_parquet(source: str, rows_per_unit: int, number: int) -> list[Unit]:
    try:
        with storage.locate(source).open() as file:
            metadata = pq.read_metadata(file)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{_shown(source)} must be a parquet file. Received: {error}.") from None
    units: list[Unit] = []
    groups: list[int] = []
    rows = first_row = 0
    for group in range(metadata.num_row_groups):
        groups.append(group)
        rows += metadata.row_group(group).num_rows
        if rows >= rows_per_unit or group == metadata.num_row_groups - 1:
            units.append(Unit(number + len(units), source, "parquet", tuple(groups), first_row, rows))
            groups, rows, first_row = [], 0, first_row + rows
    return units or [Unit(number, source, "parquet")]


def _read_parquet(unit: Unit, rows: int) -> Iterator[Raw]:
    with storage.locate(unit.source).open() as opened, pq.ParquetFile(opened) as file:
        batches = file.iter_batches(batch_size=rows, row_groups=list(unit.row_groups) or None)
        yield from _chunks(batches, file.schema_arrow, rows, [], unit.first_row)


def _read_csv(unit: Unit, rows: int) -> Iterator[Raw]:
    broken: Broken = []

    def on_broken(row: pacsv.InvalidRow) -> str:
        reason = f"line has {row.actual_columns} fields where the header has {row.expected_columns}"
        broken.append((row.number - 2, reason, row.text))
        return "skip"

    with _open_text(unit.source) as file:
        header = file.peek(BLOCK_BYTES).partition(b"\n")[0].decode("utf-8-sig").strip()
        if not header:
            raise InputError(f"{_shown(unit.source)} must begin with a line of column names. Received: an empty line.")
        columns = next(iter(pl.read_csv(header.encode(), has_header=False, infer_schema=False).iter_rows()))
        batches = pacsv.open_csv(
            file,
            # one thread, since only then rows come with their numbers
            read_options=pacsv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
            parse_options=pacsv.ParseOptions(newlines_in_values=True, invalid_row_handler=on_broken),
            convert_options=pacsv.ConvertOptions(
                column_types={column: pa.string() for column in columns},
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
        yield from _chunks(batches, batches.schema, rows, broken)


def _chunks(
    batches: Iterable[pa.RecordBatch], schema: pa.Schema, rows: int, broken: Broken, first_row: int = 0
) -> Iterator[Raw]:
    """Batches together, until they are enough rows; `broken` fills while they are read, and is emptied here."""
    held: list[pa.RecordBatch] = []

    def chunk() -> Raw:
        frame = cast("pl.DataFrame", pl.from_arrow(pa.Table.from_batches(held, schema)))
        # the reader may be ahead: those count that come before the row after this chunk
        passed = sum(row - first_row - before <= frame.height for before, (row, _, _) in enumerate(broken))
        raw = _raw(frame, broken[:passed], first_row)
        held.clear()
        del broken[:passed]
        return raw

    yielded = False
    for batch in batches:
        held.append(batch)
        if sum(each.num_rows for each in held) + len(broken) >= rows:
            raw = chunk()
            yield raw
            yielded, first_row = True, first_row + raw.frame.height + raw.broken.height
    if held or broken or not yielded:
        yield chunk()


Kind = tuple[type, ...]
"""Of a value: (its type,), of an element of a list: (list, its type). Of what is no plain value: object."""
TYPES: dict[type, Any] = {bool: pl.Boolean, int: pl.Int64, float: pl.Float64, str: pl.String}
PLAIN = {*TYPES, NoneType}


def _read_jsonl(unit: Unit, rows: int) -> Iterator[Raw]:
    kinds: dict[str, set[Kind]] = defaultdict(set)
    for _, _, row in _lines(unit.source):  # the whole file, since its last line may have another column or type
        for column, value in (row or {}).items():
            kinds[column].update(_kinds(value))
    types = {column: _type(found) for column, found in kinds.items()}
    held: list[dict[str, object]] = []
    broken: Broken = []
    first_row = 0

    def chunk() -> Raw:
        columns = [_column(name, [row.get(name) for row in held], types[name]) for name in types]
        return _raw(pl.DataFrame(columns or None, height=len(held)), broken, first_row)

    for number, line, row in _lines(unit.source):
        if len(held) + len(broken) == rows:
            yield chunk()
            held, broken, first_row = [], [], number
        if row is None:
            broken.append((number, "line is no JSON object", line.rstrip("\n")))
        else:
            held.append(row)
    yield chunk()


def _lines(source: str) -> Iterator[tuple[int, str, dict[str, object] | None]]:
    """Number and text of every line that is not blank, and its JSON object if it is one."""
    with _open_text(source) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="\n")
        for number, line in enumerate(line for line in text if line.strip()):
            yield number, line, _json_object(line)


def _json_object(line: str) -> dict[str, object] | None:
    try:
        row = json.loads(line)
        if "\\u" in line:
            json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _kinds(value: object) -> set[Kind]:
    if isinstance(value, list):
        return {(list, _plain(each)) for each in value} or {(list, NoneType)}
    return {(_plain(value),)}


def _plain(value: object) -> type:
    if type(value) is int and not -(2**63) <= value < 2**63:
        return object
    return type(value) if type(value) in PLAIN else object


def _type(kinds: set[Kind]) -> pl.DataType | type[pl.DataType]:
    """Lists stay lists; of anything mixed, the text decides later what it is."""
    there = kinds - {(NoneType,)}
    inner = {kind[-1] for kind in there} - {NoneType}
    plain = TYPES.get(next(iter(inner)), pl.String) if len(inner) == 1 else pl.String if inner else pl.Null
    if len({len(kind) for kind in there}) > 1:
        return pl.String
    return pl.List(plain) if (list,) in {kind[:-1] for kind in there} else plain


def _column(name: str, values: list[Any], of: pl.DataType | type[pl.DataType]) -> pl.Series:
    if of == pl.String:
        values = [_text(value) for value in values]
    if of == pl.List(pl.String):
        values = [None if value is None else [_text(each) for each in value] for value in values]
    return pl.Series(name, values, of, strict=True)


def _text(value: object) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _raw(frame: pl.DataFrame, broken: Broken, first_row: int) -> Raw:
    schema = {"row": pl.UInt32, "reason": pl.String, "content": pl.String}
    bad = pl.DataFrame(broken, schema=schema, orient="row")
    places = pl.int_range(first_row, first_row + frame.height + bad.height, dtype=pl.UInt32, eager=True)
    return Raw(frame, places.filter(~places.is_in(bad["row"].implode())), bad)


@contextmanager
def _open_text(source: str) -> Iterator[io.BufferedReader]:
    """A file of text, unzipped."""
    with ExitStack() as stack:
        file = stack.enter_context(storage.locate(source).open())
        if _zipped(source):
            file = stack.enter_context(cast("BinaryIO", gzip.GzipFile(fileobj=file)))
        yield stack.enter_context(io.BufferedReader(_Utf8(file), BLOCK_BYTES))


class _Utf8(io.RawIOBase):
    """Text that is checked before it is parsed: pyarrow prints a traceback where it cannot decode a broken line."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._file.read(len(buffer))
        self._decoder.decode(block, final=not block)
        buffer[: len(block)] = block
        return len(block)
