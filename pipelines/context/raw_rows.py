"""Rows of an input file before validation, and the lines that are not rows."""

from __future__ import annotations

from typing import NamedTuple

import polars as pl

MalformedRows = list[tuple[int, str, str]]
"""Row number, reason and content of lines that are not rows."""


class RawRows(NamedTuple):
    """A chunk of a unit."""

    frame: pl.DataFrame
    row_numbers: pl.Series
    """Row number in the file of each row of `frame`, uint32; from 0, not counting the header of a CSV file."""
    malformed: pl.DataFrame
    """`row` (uint32, counted in the same way), `reason` and `content` of lines that are not rows."""

    @classmethod
    def from_frame(cls, frame: pl.DataFrame, malformed: MalformedRows, first_row: int) -> RawRows:
        """Number the rows of a frame that begins at `first_row` of its file, leaving out the malformed rows."""
        schema = {"row": pl.UInt32, "reason": pl.String, "content": pl.String}
        rejected = pl.DataFrame(malformed, schema=schema, orient="row")
        numbers = pl.int_range(first_row, first_row + frame.height + rejected.height, dtype=pl.UInt32, eager=True)
        return cls(frame, numbers.filter(~numbers.is_in(rejected["row"].implode())), rejected)
