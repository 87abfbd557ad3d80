"""Rows of an input file before validation, and lines that could not be parsed."""

from __future__ import annotations

from typing import NamedTuple

import polars as pl

MalformedRows = list[tuple[int, str, str]]
"""Row number, reason and content of lines that could not be parsed."""


class RawRows(NamedTuple):
    """The rows of a chunk of a unit."""

    frame: pl.DataFrame
    row_numbers: pl.Series
    """Number of each row of `frame` in its file, uint32, from 0; the header of a CSV file is not counted."""
    malformed: pl.DataFrame
    """`row` (row number as above), `reason` and `content` of lines that could not be parsed."""

    @classmethod
    def from_frame(cls, frame: pl.DataFrame, malformed: MalformedRows, first_row: int) -> RawRows:
        """Number the rows of a frame, from `first_row`, skipping the numbers of the malformed rows."""
        schema = {"row": pl.UInt32, "reason": pl.String, "content": pl.String}
        rejected = pl.DataFrame(malformed, schema=schema, orient="row")
        numbers = pl.int_range(first_row, first_row + frame.height + rejected.height, dtype=pl.UInt32, eager=True)
        return cls(frame, numbers.filter(~numbers.is_in(rejected["row"].implode())), rejected)
