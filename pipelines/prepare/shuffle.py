"""Rows that the units of one phase hand to those of the next, through files: one file a unit.

A file holds its rows in batches, one for each reader. A reader maps the file and touches its own batches alone,
so memory follows a batch, and the number of files follows the units and not units times readers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray


class Writer:
    """A file of batches that all have the columns of the first; whole when it is closed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: pa.ipc.RecordBatchFileWriter | None = None

    def write(self, rows: pl.DataFrame) -> None:
        """One batch; of no rows is one too."""
        self._write(_as_batch(rows))

    def spread(self, rows: pl.DataFrame, reader: NDArray[np.integer], readers: int) -> None:
        """A batch for each of `readers`, in the order of the rows; `reader` is each row's, [rows]."""
        order = np.argsort(reader, kind="stable")
        batch = _as_batch(rows[order])
        ends = np.searchsorted(reader[order], np.arange(readers), side="right").tolist()
        for start, end in zip([0, *ends], ends, strict=False):
            self._write(batch.slice(start, end - start))

    def close(self) -> None:
        """End the file."""
        if self._file is not None:
            self._file.close()

    def _write(self, batch: pa.RecordBatch) -> None:
        if self._file is None:
            self._file = pa.ipc.new_file(self.path, batch.schema)
        self._file.write_batch(batch)


def batches(path: Path) -> Any:
    """The batches of a file, mapped: `num_record_batches` of them, and `get_batch(number)`."""
    return pa.ipc.open_file(pa.memory_map(str(path)))


def read(path: Path, reader: int, readers: int) -> list[pl.DataFrame]:
    """What `spread` wrote for one of the readers, in the order in which it was written."""
    file = batches(path)
    return [as_frame(file.get_batch(number)) for number in range(reader, file.num_record_batches, readers)]


def as_frame(batch: pa.RecordBatch) -> pl.DataFrame:
    """A batch, or a part of it, as Polars has it."""
    return cast("pl.DataFrame", pl.from_arrow(batch))


def _as_batch(rows: pl.DataFrame) -> pa.RecordBatch:
    # of the newest kind of strings, a slice would be written with the text of all rows
    table = rows.to_arrow(compat_level=pl.CompatLevel.oldest()).combine_chunks()
    found = table.to_batches()
    return found[0] if found else pa.RecordBatch.from_pylist([], schema=table.schema)
