"""Readers of the input files: Parquet, CSV and JSON lines, by path or URL; the text formats may be gzipped.

A unit is read in chunks, so that memory is bounded. Lines that cannot be parsed, such as a CSV line with too many
fields, are returned with their row number and a reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import cast

import polars as pl
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from pipelines.context.input_units import Unit, display_name
from pipelines.context.json_lines import read_json_lines
from pipelines.context.raw_rows import MalformedRows, RawRows
from pipelines.context.text_files import BLOCK_BYTES, open_text
from recsys.data import storage
from recsys.errors import InputError


def read_unit(unit: Unit, rows_per_chunk: int) -> Iterator[RawRows]:
    """Read the rows of a unit in chunks of about `rows_per_chunk`.

    Every chunk has all columns of the file, of the same types; columns of CSV are text. A file without rows
    yields one empty chunk.

    Raises:
        InputError: the file does not have the format of its suffix; may be raised after the first chunks.
    """
    try:
        if unit.format == "parquet":
            yield from _read_parquet(unit, rows_per_chunk)
        elif unit.format == "csv":
            yield from _read_csv(unit.source, rows_per_chunk)
        else:
            yield from read_json_lines(unit.source, rows_per_chunk)
    except (pa.ArrowException, pl.exceptions.PolarsError, OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{display_name(unit.source)} must be a {unit.format} file. Received: {error}.") from None


def _read_parquet(unit: Unit, rows_per_chunk: int) -> Iterator[RawRows]:
    with storage.locate(unit.source).open() as opened, pq.ParquetFile(opened) as file:
        batches = file.iter_batches(batch_size=rows_per_chunk, row_groups=list(unit.row_groups) or None)
        yield from _chunks(batches, file.schema_arrow, rows_per_chunk, [], unit.first_row)


def _read_csv(source: str, rows_per_chunk: int) -> Iterator[RawRows]:
    malformed: MalformedRows = []

    def on_malformed(row: pacsv.InvalidRow) -> str:
        reason = f"line has {row.actual_columns} fields where the header has {row.expected_columns}"
        malformed.append((row.number - 2, reason, row.text))
        return "skip"

    with open_text(source) as file:
        header = file.peek(BLOCK_BYTES).partition(b"\n")[0].decode("utf-8-sig").strip()
        if not header:
            raise InputError(f"{display_name(source)} must begin with a line of column names. Received: an empty line.")
        columns = next(iter(pl.read_csv(header.encode(), has_header=False, infer_schema=False).iter_rows()))
        batches = pacsv.open_csv(
            file,
            # pyarrow numbers rows only with one thread
            read_options=pacsv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
            parse_options=pacsv.ParseOptions(newlines_in_values=True, invalid_row_handler=on_malformed),
            # types inferred from the first rows would reject later rows
            convert_options=pacsv.ConvertOptions(
                column_types={column: pa.string() for column in columns},
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
        yield from _chunks(batches, batches.schema, rows_per_chunk, malformed)


def _chunks(
    batches: Iterable[pa.RecordBatch],
    schema: pa.Schema,
    rows_per_chunk: int,
    malformed: MalformedRows,
    first_row: int = 0,
) -> Iterator[RawRows]:
    """Combine batches into chunks. Reading a batch appends its malformed rows to `malformed`; a chunk removes them."""
    pending: list[pa.RecordBatch] = []

    def chunk() -> RawRows:
        frame = cast("pl.DataFrame", pl.from_arrow(pa.Table.from_batches(pending, schema)))
        # the reader may be ahead of this chunk: count the malformed rows before the next chunk
        preceding = sum(row - first_row - earlier <= frame.height for earlier, (row, _, _) in enumerate(malformed))
        rows = RawRows.from_frame(frame, malformed[:preceding], first_row)
        pending.clear()
        del malformed[:preceding]
        return rows

    yielded = False
    for next_batch in batches:
        pending.append(next_batch)
        if sum(batch.num_rows for batch in pending) + len(malformed) >= rows_per_chunk:
            rows = chunk()
            yield rows
            yielded, first_row = True, first_row + rows.frame.height + rows.malformed.height
    if pending or malformed or not yielded:
        yield chunk()
