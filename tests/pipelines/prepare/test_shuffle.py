"""The shuffle through files: each reader gets its rows once and in order."""

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.prepare import shuffle

ROWS = st.lists(st.tuples(st.integers(0, 4), st.text(max_size=5), st.lists(st.text(max_size=2), max_size=3)))
SCHEMA = {"reader": pl.Int64, "text": pl.String, "tags": pl.List(pl.String)}
SETTINGS = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)


@SETTINGS
@given(chunks=st.lists(ROWS, min_size=1, max_size=3))
def test_each_reader_gets_its_rows_in_order(tmp_path: Path, chunks: list[list[Any]]) -> None:
    path = tmp_path / "rows.arrow"
    with closing(shuffle.Writer(path)) as writer:
        for rows in chunks:
            frame = pl.DataFrame(rows, SCHEMA, orient="row")
            writer.spread(frame, frame["reader"].to_numpy(), 5)
    for reader in range(5):
        read = [part.rows() for part in shuffle.read(path, reader, 5)]
        assert read == [[row for row in rows if row[0] == reader] for rows in chunks]


def test_batches_equal_the_written_frames(tmp_path: Path) -> None:
    frames = [pl.DataFrame({"item_id": ["b", None], "n": [1.5, 2.5]}), pl.DataFrame({"item_id": ["ü"], "n": [0.0]})]
    with closing(shuffle.Writer(tmp_path / "rows.arrow")) as writer:
        for frame in frames:
            writer.write(frame)
    file = shuffle.open_batches(tmp_path / "rows.arrow")
    read = [shuffle.to_frame(file.get_batch(number)) for number in range(file.num_record_batches)]
    assert [frame.equals(batch) for frame, batch in zip(frames, read, strict=True)] == [True, True]


def test_spread_writes_each_text_once(tmp_path: Path) -> None:
    """With Arrow's string views, each batch would contain the text of all rows."""
    texts = [f"{number:01000d}" for number in range(200)]
    with closing(shuffle.Writer(tmp_path / "rows.arrow")) as writer:
        writer.spread(pl.DataFrame({"text": texts}), np.arange(200) % 50, 50)
    assert (tmp_path / "rows.arrow").stat().st_size < 2 * 200 * 1_000
