import json
import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data.labeled_pairs import LabeledPairs, check_labeled_pairs
from recsys.errors import InputError


def judged(**columns):
    """One good row, some columns replaced."""
    return pl.DataFrame({"item_a": ["a"], "item_b": ["b"], "same": [1]} | columns, strict=False)


# --- rows


def test_valid_rows_are_typed_and_keep_their_position():
    raw = judged(item_a=[7, None, 9], item_b=[8, 8, 7], same=[1, 0, 0], judge=["x", "y", "z"])
    rows = check_labeled_pairs(raw, "pairs.csv").rows
    assert rows.schema == {"row": pl.UInt32, "item_a": pl.String, "item_b": pl.String, "same": pl.Boolean}
    assert rows.rows() == [(0, "7", "8", True), (2, "9", "7", False)]


@pytest.mark.parametrize(
    ("values", "same"),
    [([0, 1], [False, True]), ([0.0, 1.0], [False, True]), (["0", " 1 "], [False, True]), ([True, False],) * 2],
    ids=["integers", "floats", "text", "truth"],
)
def test_accepts_every_form_of_same(values, same):
    raw = judged(item_a=["a", "c"], item_b=["b", "d"], same=values)
    assert check_labeled_pairs(raw, "pairs.csv").rows["same"].to_list() == same


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"item_a": [None]}, "item_a is missing"),
        ({"item_a": [""]}, "item_a is missing"),
        ({"item_b": [None]}, "item_b is missing"),
        ({"item_b": ["a"]}, "item_a and item_b are the same item"),
        ({"same": [2]}, "same is neither 0 nor 1"),
        ({"same": [0.5]}, "same is neither 0 nor 1"),
        ({"same": [-1]}, "same is neither 0 nor 1"),
        ({"same": [math.nan]}, "same is neither 0 nor 1"),
        ({"same": ["yes"]}, "same is neither 0 nor 1"),
        ({"same": [""]}, "same is neither 0 nor 1"),
        ({"same": [None]}, "same is neither 0 nor 1"),
        ({"same": pl.Series([None], dtype=pl.Boolean)}, "same is neither 0 nor 1"),
        ({"item_a": [None], "item_b": [None], "same": ["?"]}, "item_a is missing"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_invalid_row_is_rejected_once_with_its_reason(columns, reason):
    checked = check_labeled_pairs(judged(**columns), "pairs.csv")
    assert checked.rows.height == 0
    assert checked.rejects.select("row", "reason").rows() == [(0, reason)]


def test_dead_letter_keeps_the_raw_row():
    rejects = check_labeled_pairs(judged(same=["maybe"], judge=["x"]), "pairs.csv").rejects
    assert json.loads(rejects["content"].item()) == {"item_a": "a", "item_b": "b", "same": "maybe", "judge": "x"}


@pytest.mark.parametrize("column", ["item_a", "item_b", "same"])
def test_rejects_a_table_without_a_required_column(column):
    with pytest.raises(InputError, match=rf"pairs\.csv.*'{column}'"):
        check_labeled_pairs(judged().drop(column), "pairs.csv")


@pytest.mark.parametrize(("column", "values"), [("item_a", [1.5]), ("same", [[1]])], ids=["float id", "list"])
def test_rejects_a_column_of_an_unsupported_type(column, values):
    with pytest.raises(InputError, match=rf"pairs\.csv: {column} must be"):
        check_labeled_pairs(judged(**{column: values}), "pairs.csv")


values = st.none() | st.text(max_size=2) | st.sampled_from(["", "a", "b", "0", "1"])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(values, values, values), max_size=10))
def test_every_row_is_valid_or_rejected(rows):
    raw = pl.DataFrame(rows, schema=dict.fromkeys(("item_a", "item_b", "same"), pl.String), orient="row")
    checked = check_labeled_pairs(raw, "pairs.csv")
    assert sorted([*checked.rows["row"], *checked.rejects["row"]]) == list(range(len(rows)))
    for row, first, second, same in checked.rows.iter_rows():
        assert (first, second) == rows[row][:2]
        assert first != second
        assert "" not in (first, second)
        assert float(rows[row][2]) == same


# --- pairs


def pairs_of(*rows):
    first, second, same = zip(*rows, strict=True) if rows else ((), (), ())
    return LabeledPairs(np.array(first, np.int32), np.array(second, np.int32), np.array(same, bool))


def rows_of(pairs):
    return list(zip(pairs.first.tolist(), pairs.second.tolist(), pairs.same.tolist(), strict=True))


def test_read_returns_the_written_pairs(tmp_path):
    schema = {"first": pl.Int32, "second": pl.Int32, "same": pl.Boolean}
    pl.DataFrame({"first": [3, 1], "second": [0, 2], "same": [True, False]}, schema=schema).write_parquet(
        tmp_path / "labeled.parquet"
    )
    loaded = LabeledPairs.load(tmp_path / "labeled.parquet")
    assert rows_of(loaded) == [(3, 0, True), (1, 2, False)]
    assert (loaded.first.dtype, loaded.second.dtype, loaded.same.dtype) == (np.int32, np.int32, np.bool_)
    assert len(loaded) == 2


@pytest.mark.parametrize("seed", [0, 1])
def test_holds_out_a_tenth_without_losing_pairs(seed):
    rng = np.random.default_rng(seed)
    pairs = pairs_of(*((a, b, same) for a, b, same in rng.integers(0, 60, (3_000, 3)).tolist() if a != b))
    training, held_out = pairs.split(seed)
    assert sorted(rows_of(training) + rows_of(held_out)) == sorted(rows_of(pairs))
    assert 0.05 * len(pairs) < len(held_out) < 0.15 * len(pairs)


def test_a_pair_and_its_mirror_are_in_the_same_part():
    rng = np.random.default_rng(3)
    rows = [(a, b, bool(same)) for a, b, same in rng.integers(0, 20, (400, 3)).tolist() if a != b]
    training, held_out = pairs_of(*rows).split(seed=1)
    sides = [{frozenset(row[:2]) for row in rows_of(side)} for side in (training, held_out)]
    assert not sides[0] & sides[1]
    assert all(sides)


def test_seed_determines_the_parts():
    pairs = pairs_of(*((a, a + 1, True) for a in range(200)))
    assert rows_of(pairs.split(4)[1]) == rows_of(pairs.split(4)[1]) != rows_of(pairs.split(5)[1])


def test_no_pairs_give_two_empty_parts():
    assert [len(part) for part in pairs_of().split(1)] == [0, 0]
