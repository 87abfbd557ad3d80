import numpy as np
import polars as pl
import pytest

from recsys.data.sequences import Sequences, group_by_user, sort_interactions


def frame(users, items, times=None):
    times = times or [[float(place) for place in range(len(own))] for own in items]
    schema = {"user_id": pl.String, "items": pl.List(pl.Int32), "times": pl.List(pl.Float64)}
    return pl.DataFrame({"user_id": users, "items": items, "times": times}, schema=schema)


@pytest.fixture
def sequences():
    """Three, no, one and two interactions."""
    return Sequences.from_frame(
        frame(["c", "empty", "a", "b"], [[4, 4, 1], [], [9], [0, 4]], [[1, 2.5, 2.5], [], [7], [3, 9]])
    )


def test_users_are_consecutive(sequences):
    assert sequences.user_ids == ["c", "empty", "a", "b"]
    assert sequences.items.tolist() == [4, 4, 1, 9, 0, 4]
    assert sequences.items.dtype == np.int32
    assert sequences.offsets.tolist() == [0, 3, 3, 4, 6]
    assert sequences.offsets.dtype == np.int64
    assert len(sequences) == 4


def test_each_interaction_has_its_time(sequences):
    assert sequences.times.tolist() == [1.0, 2.5, 2.5, 7.0, 3.0, 9.0]
    assert sequences.times.dtype == np.float64


def test_lengths_are_the_interactions_of_each_user(sequences):
    assert sequences.lengths.tolist() == [3, 0, 1, 2]


def test_users_names_the_user_of_each_interaction(sequences):
    assert sequences.users.tolist() == [0, 0, 0, 2, 3, 3]


def test_positions_from_end_counts_what_the_same_user_did_later(sequences):
    assert sequences.positions_from_end.tolist() == [2, 1, 0, 0, 1, 0]


def test_no_users_give_no_interactions():
    empty = Sequences.from_frame(frame([], []))
    assert len(empty) == 0
    assert empty.items.tolist() == empty.times.tolist() == []
    assert empty.positions_from_end.tolist() == []


def test_load_keeps_the_order_of_the_parts(tmp_path):
    frame(["a"], [[1, 2]], [[5, 6]]).write_parquet(tmp_path / "x.parquet")
    frame(["b", "c"], [[3], [4, 5, 6]], [[0], [1, 2, 3]]).write_parquet(tmp_path / "y.parquet")
    loaded = Sequences.load([tmp_path / "y.parquet", tmp_path / "x.parquet"])
    assert loaded.user_ids == ["b", "c", "a"]
    assert loaded.items.tolist() == [3, 4, 5, 6, 1, 2]
    assert loaded.times.tolist() == [0, 1, 2, 3, 5, 6]
    assert loaded.offsets.tolist() == [0, 1, 4, 6]


def test_rows_become_sequences_ordered_by_time():
    """Ties stay in the order of the rows; what repeats the item before is left out, and the first time kept."""
    rows = pl.DataFrame(
        [("b", 3, 5.0), ("a", 1, 2.0), ("b", 4, 5.0), ("a", 1, 3.0), ("a", 2, 1.0), ("b", 3, 6.0), ("a", 1, 9.0)],
        schema=["user_id", "item_number", "timestamp"],
        orient="row",
    )
    sequences = Sequences.from_frame(group_by_user(sort_interactions(rows)))
    assert sequences.user_ids == ["a", "b"]
    assert sequences.items.tolist() == [2, 1, 3, 4, 3]
    assert sequences.times.tolist() == [1.0, 2.0, 5.0, 5.0, 6.0]


def test_select_keeps_the_sequences_of_some_users(sequences):
    selected = sequences.select(np.array([True, True, False, True]))
    assert selected.user_ids == ["c", "empty", "b"]
    assert selected.items.tolist() == [4, 4, 1, 0, 4]
    assert selected.offsets.tolist() == [0, 3, 3, 5]
    assert selected.times.tolist() == [1.0, 2.5, 2.5, 3.0, 9.0]
    assert len(sequences.select(np.zeros(4, bool)).items) == 0
