"""Input files and their division into units of work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from recsys.data import storage
from recsys.errors import InputError

Format = Literal["parquet", "csv", "jsonl"]
SUFFIXES: dict[str, Format] = {".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
BYTES_PER_ROW, BYTES_PER_GZIPPED_ROW = 32, 10
"""Approximate size of a row of text, to estimate the number of rows of a file without reading it."""


@dataclass(frozen=True)
class Unit:
    """A part of the input that is processed as one unit of work."""

    number: int
    source: str
    """Path or URL of the file."""
    format: Format
    row_groups: tuple[int, ...] = ()
    """Row groups of a Parquet file; () means all."""
    first_row: int = 0
    """Number of the first row of the unit in its file."""
    rows: int = 0
    """Number of rows, which is an estimate for formats other than Parquet."""


def find_files(pattern: str, setting: str) -> list[str]:
    """Return the files of a path, a URL or a glob, sorted.

    Args:
        pattern: a path, a URL or a glob.
        setting: name of the setting, for messages.

    Raises:
        InputError: no file matches, a file has an unknown format, or the files cannot be accessed.
        ConfigError: a URL contains a password, or the library for its scheme is not installed.
    """
    location = storage.locate(pattern)
    sources = location.list_files()
    if not sources:
        raise InputError(f"{setting} must be a file, or a glob that matches files. Received: {location.display_name}.")
    for source in sources:
        _file_format(source, setting)
    return sources


def plan_units(sources: list[str], rows_per_unit: int) -> list[Unit]:
    """Divide files into units of about `rows_per_unit` rows: Parquet by row groups; other files are one unit each.

    Raises:
        InputError: a file is empty or damaged.
    """
    units: list[Unit] = []
    for source in sources:
        size = storage.locate(source).size()
        if size == 0:
            raise InputError(f"{display_name(source)} must contain rows. Received: an empty file.")
        file_format = _file_format(source, "input")
        if file_format == "parquet":
            units.extend(_plan_parquet(source, rows_per_unit, len(units)))
        else:
            bytes_per_row = BYTES_PER_GZIPPED_ROW if is_gzipped(source) else BYTES_PER_ROW
            units.append(Unit(len(units), source, file_format, rows=size // bytes_per_row + 1))
    return units


def is_gzipped(source: str) -> bool:
    """Return whether the name of a file says that it is gzipped."""
    return source.endswith(".gz")


def display_name(source: str) -> str:
    """Return the name of a file for messages, without passwords."""
    return storage.locate(source).display_name


def _file_format(source: str, setting: str) -> Format:
    path = PurePosixPath(source)
    suffix = path.with_suffix("").suffix if is_gzipped(source) else path.suffix
    if suffix.lower() not in SUFFIXES:
        suffixes = ", ".join(SUFFIXES)
        raise InputError(
            f"{setting} must end in {suffixes}, the text formats also with .gz. Received: {display_name(source)}."
        )
    return SUFFIXES[suffix.lower()]


def _plan_parquet(source: str, rows_per_unit: int, first_number: int) -> list[Unit]:
    try:
        with storage.locate(source).open() as file:
            metadata = pq.read_metadata(file)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{display_name(source)} must be a parquet file. Received: {error}.") from None
    units: list[Unit] = []
    groups: list[int] = []
    rows = first_row = 0
    for group in range(metadata.num_row_groups):
        groups.append(group)
        rows += metadata.row_group(group).num_rows
        if rows >= rows_per_unit or group == metadata.num_row_groups - 1:
            units.append(Unit(first_number + len(units), source, "parquet", tuple(groups), first_row, rows))
            groups, rows, first_row = [], 0, first_row + rows
    return units or [Unit(first_number, source, "parquet")]
