"""Ranges of ids: each id in one of them, in order, and about as many in each."""

from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.prepare import id_ranges as numbering
from pipelines.prepare.id_ranges import Ranges

IDS = st.lists(st.text(st.characters(codec="utf-8"), max_size=3), unique=True)


@given(chunks=st.lists(IDS, min_size=1, max_size=4), count=st.integers(1, 7))
def test_ranges_side_by_side_are_all_ids_in_order(chunks: list[list[str]], count: int) -> None:
    """In the order that Polars sorts by too: that of the bytes, which is that of Python's text."""
    columns = [pl.Series("item_id", chunk, pl.String).sort() for chunk in chunks]
    ranges = Ranges.of([numbering.sample(column) for column in columns], count)
    assert len(ranges.starts) == count - 1
    for column in columns:
        ids = pa.array(column.to_list(), pa.string())
        parts = [ids[ranges.within(ids, number)].to_pylist() for number in range(count)]
        assert [item_id for part in parts for item_id in part] == sorted(column.to_list())
    for number in range(count):
        held = {each for column in columns for each in _held(ranges, column, number)}
        others = {each for column in columns for other in range(number) for each in _held(ranges, column, other)}
        assert not others or not held or max(others) < min(held)


def _held(ranges: Ranges, column: pl.Series, number: int) -> list[str]:
    ids = pa.array(column.to_list(), pa.string())
    return ids[ranges.within(ids, number)].to_pylist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("sizes", [[20_000], [12_000, 5_000, 3_000], [10, 19_990]])
def test_ranges_hold_about_as_many_ids_each(sizes: list[int]) -> None:
    """Also where chunks of different sizes send samples of one size."""
    ids = pl.Series("item_id", [f"item-{number:05d}" for number in range(sum(sizes))])
    columns = [ids.slice(sum(sizes[:place]), size) for place, size in enumerate(sizes)]
    ranges = Ranges.of([numbering.sample(column) for column in columns], 8)
    held = [sum(len(_held(ranges, column, number)) for column in columns) for number in range(8)]
    assert sum(held) == 20_000
    assert max(held) < 1.2 * 20_000 / 8
    assert min(held) > 0.8 * 20_000 / 8


def test_ranges_survive_a_file(tmp_path: Path) -> None:
    ranges = Ranges.of([(["", "a", "ü", "\U0001f600"], 1.0)], 4)
    ranges.save(tmp_path / "ranges.json")
    assert Ranges.load(tmp_path / "ranges.json") == ranges
