"""Pairs of item numbers as one integer."""

import polars as pl
import pytest

from recsys.data.pair_keys import pair_key, pair_of_key

LAST = 2**31 - 1
PAIRS = [(0, 0), (0, LAST), (1, 0), (5, 7), (7, 5), (LAST, 0), (LAST, LAST)]


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_key_has_both_numbers(pair):
    rows = pl.DataFrame([pair], schema={"a": pl.Int32, "b": pl.Int32}, orient="row")
    again = rows.select(pair_key("a", "b")).select(pair_of_key("c", "d"))
    assert again.rows() == [pair]
    assert again.schema == {"c": pl.Int32, "d": pl.Int32}


def test_keys_have_the_order_of_pairs():
    rows = pl.DataFrame(PAIRS, schema={"a": pl.Int32, "b": pl.Int32}, orient="row").select(key=pair_key("a", "b"))
    assert rows["key"].is_sorted()
    assert rows["key"].n_unique() == len(PAIRS)
