"""Shuffle through files: each unit of a phase writes one file, which the units of a later phase read.

The rows of a file are in batches, one per reading unit. A reader memory-maps the file and accesses only its own
batches. So memory is bounded by the size of a batch, and the number of files is the number of writers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray


class Writer:
    """Writes batches with equal columns to a file, which is complete after `close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: pa.ipc.RecordBatchFileWriter | None = None

    def write(self, rows: pl.DataFrame) -> None:
        """Write one batch, which may be empty."""
        self._write(_to_batch(rows))

    def spread(self, rows: pl.DataFrame, reader: NDArray[np.integer], num_readers: int) -> None:
        """Write one batch per reader, keeping the order of rows; `reader` is the reader of each row, [rows]."""
        order = np.argsort(reader, kind="stable")
        batch = _to_batch(rows[order])
        ends = np.searchsorted(reader[order], np.arange(num_readers), side="right").tolist()
        for start, end in zip([0, *ends], ends, strict=False):
            self._write(batch.slice(start, end - start))

    def close(self) -> None:
        """Finish the file."""
        if self._file is not None:
            self._file.close()

    def _write(self, batch: pa.RecordBatch) -> None:
        if self._file is None:
            self._file = pa.ipc.new_file(self.path, batch.schema)
        self._file.write_batch(batch)


def open_batches(path: Path) -> Any:
    """Memory-map a file; return a reader with `num_record_batches` and `get_batch(number)`."""
    return pa.ipc.open_file(pa.memory_map(str(path)))


def read(path: Path, reader: int, num_readers: int) -> list[pl.DataFrame]:
    """Return the batches that `spread` wrote for one reader, in the order of writing."""
    file = open_batches(path)
    return [to_frame(file.get_batch(number)) for number in range(reader, file.num_record_batches, num_readers)]


def to_frame(batch: pa.RecordBatch) -> pl.DataFrame:
    """Convert a batch, or a slice of a batch, to a data frame."""
    return cast("pl.DataFrame", pl.from_arrow(batch))


def _to_batch(rows: pl.DataFrame) -> pa.RecordBatch:
    # a slice of the newer string type would be written with the text of all rows
    table = rows.to_arrow(compat_level=pl.CompatLevel.oldest()).combine_chunks()
    batches = table.to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)
