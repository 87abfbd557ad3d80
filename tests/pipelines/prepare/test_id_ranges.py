"""Ranges of item ids: complete, ordered, and of about equal size."""

from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.prepare.id_ranges import IdRanges, sample_ids

IDS = st.lists(st.text(st.characters(codec="utf-8"), max_size=3), unique=True)


@given(chunks=st.lists(IDS, min_size=1, max_size=4), count=st.integers(1, 7))
def test_ranges_contain_every_id_once_in_order(chunks: list[list[str]], count: int) -> None:
    """Polars sorts strings by their UTF-8 bytes; Python sorts them in the same order."""
    columns = [pl.Series("item_id", chunk, pl.String).sort() for chunk in chunks]
    ranges = IdRanges.from_samples([sample_ids(column) for column in columns], count)
    assert len(ranges.starts) == count - 1
    for column in columns:
        ids = pa.array(column.to_list(), pa.string())
        parts = [ids[ranges.rows_within(ids, number)].to_pylist() for number in range(count)]
        assert [item_id for part in parts for item_id in part] == sorted(column.to_list())
    for number in range(count):
        ids_within = {item_id for column in columns for item_id in _ids_within(ranges, column, number)}
        previous = {
            item_id
            for column in columns
            for previous_number in range(number)
            for item_id in _ids_within(ranges, column, previous_number)
        }
        assert not previous or not ids_within or max(previous) < min(ids_within)


def _ids_within(ranges: IdRanges, column: pl.Series, number: int) -> list[str]:
    ids = pa.array(column.to_list(), pa.string())
    return ids[ranges.rows_within(ids, number)].to_pylist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("sizes", [[20_000], [12_000, 5_000, 3_000], [10, 19_990]])
def test_ranges_have_about_equal_size(sizes: list[int]) -> None:
    """Samples have about the same size, so each id represents more ids of a large chunk than of a small one."""
    ids = pl.Series("item_id", [f"item-{number:05d}" for number in range(sum(sizes))])
    columns = [ids.slice(sum(sizes[:position]), size) for position, size in enumerate(sizes)]
    ranges = IdRanges.from_samples([sample_ids(column) for column in columns], 8)
    counts = [sum(len(_ids_within(ranges, column, number)) for column in columns) for number in range(8)]
    assert sum(counts) == 20_000
    assert max(counts) < 1.2 * 20_000 / 8
    assert min(counts) > 0.8 * 20_000 / 8


def test_load_returns_the_saved_ranges(tmp_path: Path) -> None:
    ranges = IdRanges.from_samples([(["", "a", "ü", "\U0001f600"], 1.0)], 4)
    ranges.save(tmp_path / "ranges.json")
    assert IdRanges.load(tmp_path / "ranges.json") == ranges
