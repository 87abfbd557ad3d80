import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys import pairs
from recsys.sequences import Sequences


def sequences_of(log):
    lengths = [len(items) for items in log]
    items = np.array([item for items in log for item in items], np.int32)
    return Sequences([str(user) for user in range(len(log))], items, np.cumsum([0, *lengths]))


def naive(log, weights, window, decay):
    """Every two interactions of every user, one by one: {(low, high): [weight, weight before validation]}."""
    summed = {}
    start = 0
    for items in log:
        own = weights[start : start + len(items)]
        start += len(items)
        before_test = len(items) - 1 if len(items) >= 3 else len(items)
        before_validation = len(items) - 2 if len(items) >= 3 else len(items)
        for one in range(before_test):
            for two in range(one + 1, before_test):
                if two - one > window or items[one] == items[two]:
                    continue
                key = (min(items[one], items[two]), max(items[one], items[two]))
                weight = own[one] * own[two] / (two - one) ** decay
                entry = summed.setdefault(key, [0.0, 0.0])
                entry[0] += weight
                if two < before_validation:
                    entry[1] += weight
    return summed


def as_dictionary(frame):
    return {(row[0], row[1]): [row[2], row[3]] for row in frame.iter_rows()}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.lists(st.integers(0, 5), max_size=9), max_size=5),
    st.integers(1, 12),
    st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    st.randoms(use_true_random=False),
)
def test_count_agrees_with_a_double_loop_over_each_user(log, window, decay, random):
    weights = [random.choice([0.5, 1.0, 2.0, 3.0]) for items in log for _ in items]
    counted = pairs.count(sequences_of(log), np.array(weights, np.float32), 6, window, decay)
    expected = naive(log, weights, window, decay)
    received = as_dictionary(counted)
    assert received.keys() == expected.keys()
    for key, both in expected.items():
        assert received[key] == pytest.approx(both, rel=1e-6), key


def test_count_of_a_log_by_hand():
    """The example of the module: 7, 3, 9 by one user who is too short for a split, window 2, decay 1."""
    log = [[7, 3], [7, 3, 9, 5, 5]]
    counted = pairs.count(sequences_of(log), np.ones(7, np.float32), 10, 2, 1.0)
    assert as_dictionary(counted) == {
        (3, 5): [0.5, 0.0],
        (3, 7): [2.0, 2.0],
        (3, 9): [1.0, 1.0],
        (5, 9): [1.0, 0.0],
        (7, 9): [0.5, 0.5],
    }


def test_count_is_sorted_and_typed():
    counted = pairs.count(sequences_of([[9, 1, 4, 0, 2]]), np.ones(5, np.float32), 10, 10, 0.0)
    assert counted.schema == pairs.SCHEMA
    keys = counted.select("anchor", "positive").rows()
    assert keys == sorted(keys)
    assert all(anchor < positive for anchor, positive in keys)


@pytest.mark.parametrize("log", [[], [[]], [[3]], [[3], [4]], [[3, 3]]], ids=str)
def test_a_log_without_two_items_of_one_user_has_no_pairs(log):
    counted = pairs.count(sequences_of(log), np.ones(sum(map(len, log)), np.float32), 5, 10, 1.0)
    assert counted.height == 0
    assert counted.schema == pairs.SCHEMA


def test_a_user_does_not_pair_with_the_next_one():
    counted = pairs.count(sequences_of([[0, 1], [2, 3]]), np.ones(4, np.float32), 4, 3, 0.0)
    assert as_dictionary(counted).keys() == {(0, 1), (2, 3)}


def some_pairs():
    return pl.DataFrame(
        {
            "anchor": [0, 0, 2],
            "positive": [1, 3, 3],
            "weight": [1.5, 2.0, 0.25],
            "weight_before_validation": [1.5, 0.0, 0.25],
        },
        schema=pairs.SCHEMA,
    )


def test_mirror_gives_both_directions():
    assert set(pairs.mirror(some_pairs()).rows()) == {
        (0, 1, 1.5, 1.5),
        (1, 0, 1.5, 1.5),
        (0, 3, 2.0, 0.0),
        (3, 0, 2.0, 0.0),
        (2, 3, 0.25, 0.25),
        (3, 2, 0.25, 0.25),
    }
    assert pairs.mirror(some_pairs()).height == 6


def test_by_anchor_collects_and_sums_the_positives_of_each_anchor():
    twice = pl.concat([pairs.mirror(some_pairs()), some_pairs().head(1)])
    grouped = pairs.by_anchor(twice.sample(fraction=1, shuffle=True, seed=4))
    assert grouped.schema["positives"] == pl.List(pl.Int32)
    assert grouped.schema["weight"] == pl.List(pl.Float32)
    assert grouped.rows() == [
        (0, [1, 3], [3.0, 2.0], [3.0, 0.0]),
        (1, [0], [1.5], [1.5]),
        (2, [3], [0.25], [0.25]),
        (3, [0, 2], [2.0, 0.25], [0.0, 0.25]),
    ]


@pytest.mark.parametrize("weight", ["weight", "weight_before_validation"])
def test_load_gives_the_symmetric_matrix_of_one_weight(tmp_path, weight):
    grouped = pairs.by_anchor(pairs.mirror(some_pairs()))
    grouped.head(1).write_parquet(tmp_path / "a.parquet")
    grouped.tail(3).write_parquet(tmp_path / "b.parquet")
    matrix = pairs.load([tmp_path / "b.parquet", tmp_path / "a.parquet"], 5, weight)
    expected = np.zeros((5, 5), np.float32)
    for row in some_pairs().iter_rows(named=True):
        expected[row["anchor"], row["positive"]] = expected[row["positive"], row["anchor"]] = row[weight]
    np.testing.assert_array_equal(matrix.toarray(), expected)
    assert matrix.dtype == np.float32
    assert matrix.nnz == np.count_nonzero(expected)
