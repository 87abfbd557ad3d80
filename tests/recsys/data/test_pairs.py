from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.config.sections import PrepareConfig
from recsys.data import pairs
from recsys.data.sequences import Sequences
from recsys.data.splits import Cut, Split

DAY = 86_400.0
WEIGHTS = ("weight", "weight_before_validation")


def sequences_of(log, times=None):
    lengths = [len(items) for items in log]
    items = np.array([item for items in log for item in items], np.int32)
    flat = [float(n) for n in range(len(items))] if times is None else [time for own in times for time in own]
    return Sequences(
        [str(user) for user in range(len(log))], items, np.cumsum([0, *lengths]), np.array(flat, np.float64)
    )


def counted(log, *, weights=None, times=None, num_items=10, cut=None, newest=None, **prepare):
    sequences = sequences_of(log, times)
    ones = np.ones(len(sequences.items)) if weights is None else weights
    newest = sequences.times.max(initial=0.0) if newest is None else newest
    config = PrepareConfig(**prepare)
    return pairs.count(Split(sequences, cut), np.array(ones, np.float32), num_items, config, newest)


def known_lengths(own_times, cut):
    """How many of a user's interactions are known before the test target, and before the validation target."""
    if cut is not None:
        return [sum(time < instant for time in own_times) for instant in (cut.test, cut.validation)]
    length = len(own_times)
    return [length - 1, length - 2] if length >= 3 else [length, length]


def pairs_of_user(own, known, newest, config):
    """(earlier, later, weight) of every two of the user's first `known` interactions that make a pair."""
    items, times, weights = own
    most = config.max_user_interactions
    begin = max(0, known - most)
    for one in range(begin, known):
        for two in range(one + 1, known):
            if two - one > config.window or items[one] == items[two]:
                continue
            pauses = [times[step + 1] - times[step] for step in range(one, two)]
            if config.session_gap_minutes is not None and max(pauses) > 60 * config.session_gap_minutes:
                continue
            weight = weights[one] * weights[two] / (two - one) ** config.decay
            if config.half_life_days is not None:
                weight /= 2 ** ((newest - times[two]) / DAY / config.half_life_days)
            yield items[one], items[two], weight


def naive(log, times, weights, *, cut, newest, config):
    """Every two interactions of every user, one by one: {(anchor, positive): [weight, weight before validation]}."""
    summed = {}
    for items, own_times, own_weights in zip(log, times, weights, strict=True):
        for place, known in enumerate(known_lengths(own_times, cut)):
            found = list(pairs_of_user((items, own_times, own_weights), known, newest, config))
            share = sum(weight for _, _, weight in found) ** config.user_power if found else 1
            for earlier, later, weight in found:
                key = (earlier, later) if config.directed else (min(earlier, later), max(earlier, later))
                summed.setdefault(key, [0.0, 0.0])[place] += weight / share
    return summed


def as_dictionary(frame):
    return {(row[0], row[1]): [row[2], row[3]] for row in frame.iter_rows()}


CONFIGS = st.builds(
    PrepareConfig,
    window=st.integers(1, 12),
    decay=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    directed=st.booleans(),
    session_gap_minutes=st.sampled_from([None, 60.0, 1500.0]),
    half_life_days=st.sampled_from([None, 0.5, 3.0]),
    max_user_interactions=st.sampled_from([10_000, 2, 3, 5]),
    user_power=st.sampled_from([0.0, 0.5, 1.0]),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(st.lists(st.integers(0, 5), max_size=9), max_size=5),
    CONFIGS,
    st.sampled_from([None, Cut(3.5 * DAY, 6 * DAY), Cut(6 * DAY, 7.25 * DAY)]),
    st.randoms(use_true_random=False),
)
def test_count_agrees_with_a_double_loop_over_each_user(log, config, cut, random):
    weights = [[random.choice([0.5, 1.0, 2.0, 3.0]) for _ in items] for items in log]
    times = [sorted(random.choice(range(1, 33)) * DAY / 4 for _ in items) for items in log]
    newest = 8.5 * DAY
    counts = pairs.count(
        Split(sequences_of(log, times), cut),
        np.array([weight for own in weights for weight in own], np.float32),
        6,
        config,
        newest,
    )
    expected = naive(log, times, weights, cut=cut, newest=newest, config=config)
    received = as_dictionary(counts)
    assert received.keys() == expected.keys()
    for key, both in expected.items():
        assert received[key] == pytest.approx(both, rel=1e-6), key


def test_count_of_a_log_by_hand():
    """The example of the module: 7, 3, 9 by one user who is too short for a split, window 2, decay 1."""
    frame = counted([[7, 3], [7, 3, 9, 5, 5]], window=2)
    assert as_dictionary(frame) == {
        (3, 5): [0.5, 0.0],
        (3, 7): [2.0, 2.0],
        (3, 9): [1.0, 1.0],
        (5, 9): [1.0, 0.0],
        (7, 9): [0.5, 0.5],
    }


def test_count_is_sorted_and_typed():
    frame = counted([[9, 1, 4, 0, 2]], decay=0.0)
    assert frame.schema == pairs.SCHEMA
    keys = frame.select("anchor", "positive").rows()
    assert keys == sorted(keys)
    assert all(anchor < positive for anchor, positive in keys)


def test_a_directed_pair_goes_from_the_earlier_to_the_later():
    log = [[4, 1], [1, 4], [4, 1], [7, 0]]
    assert as_dictionary(counted(log, directed=True)) == {(4, 1): [2, 2], (1, 4): [1, 1], (7, 0): [1, 1]}
    assert as_dictionary(counted(log)) == {(1, 4): [3, 3], (0, 7): [1, 1]}


def test_no_pair_reaches_across_a_pause_that_is_longer_than_a_session_allows():
    times = [[0.0, 1800.0, 3601.0, 3601.0 + 1800.0], [5000.0, 6801.0]]
    frame = counted([[0, 1, 2, 3], [4, 5]], times=times, session_gap_minutes=30.0, cut=Cut(1e9, 1e9))
    assert as_dictionary(frame).keys() == {(0, 1), (2, 3)}


def test_a_pair_weighs_half_for_each_half_life_before_the_newest_interaction_of_the_log():
    times = [[0.0, 2 * DAY], [4 * DAY, 5 * DAY]]
    frame = counted([[0, 1], [2, 3]], times=times, half_life_days=1.5, newest=8 * DAY)
    assert as_dictionary(frame) == {(0, 1): [2**-4, 2**-4], (2, 3): [2**-2, 2**-2]}


def test_the_newest_known_interactions_make_pairs_also_where_what_is_held_out_is_newer():
    log = [[0, 1, 2, 3, 4], [5, 6, 7, 8]]
    frame = counted(log, max_user_interactions=2, decay=0.0)
    assert as_dictionary(frame) == {(1, 2): [0, 1], (2, 3): [1, 0], (5, 6): [0, 1], (6, 7): [1, 0]}
    times = [[0.0, 1.0, 2.0, 11.0, 25.0], [3.0, 12.0, 13.0, 14.0]]
    frame = counted(log, times=times, cut=Cut(10.0, 20.0), max_user_interactions=2)
    assert as_dictionary(frame) == {(1, 2): [0, 1], (2, 3): [1, 0], (7, 8): [1, 0]}


@pytest.mark.parametrize("cut", [None, Cut(7.5, 11.0)], ids=["leave one out", "global time"])
def test_at_power_1_the_pairs_of_every_user_sum_to_1_in_both_weights(cut):
    """Each user has items of his own, so that his pairs can be told from those of the others."""
    log = [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9], [10, 11, 10, 12, 13]]
    times = [
        [float(time) for time in range(first, first + len(own))] for own, first in zip(log, (4, 5, 5), strict=True)
    ]
    weights = np.random.default_rng(3).uniform(0.5, 3, 15)
    frame = counted(log, times=times, cut=cut, weights=weights, num_items=14, user_power=1.0, window=3)
    for own in log:
        sums = frame.filter(pl.col("anchor").is_in(own)).select(pl.col(*WEIGHTS).sum()).row(0)
        assert sums == pytest.approx((1, 1))


def test_weights_of_very_long_ago_stay_finite():
    """1060 half-lives: a weight above 0 whose inverse is infinite."""
    times = [[0.0, 0.0], [1060 * DAY, 1060 * DAY]]
    values = as_dictionary(counted([[0, 1], [2, 3]], times=times, half_life_days=1.0, user_power=1.0))
    assert values[2, 3] == [1, 1]
    assert 0 < values[0, 1][0] <= 1


@pytest.mark.parametrize("log", [[], [[]], [[3]], [[3], [4]], [[3, 3]], [[3], [], []]], ids=str)
@pytest.mark.parametrize("cut", [None, Cut(1.0, 2.0)], ids=["leave one out", "global time"])
def test_a_log_without_two_items_of_one_user_has_no_pairs(log, cut):
    frame = counted(log, cut=cut, num_items=5, max_user_interactions=4, user_power=0.5, session_gap_minutes=1.0)
    assert frame.height == 0
    assert frame.schema == pairs.SCHEMA


def test_a_user_does_not_pair_with_the_next_one():
    assert as_dictionary(counted([[0, 1], [2, 3]], window=3)).keys() == {(0, 1), (2, 3)}


# --- both directions, by anchor


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
    grouped = pairs.by_anchor(twice.sample(fraction=1, shuffle=True, seed=4), most=100)
    assert grouped.schema["positives"] == pl.List(pl.Int32)
    assert grouped.schema["weight"] == grouped.schema["weight_before_validation"] == pl.List(pl.Float32)
    assert grouped.rows() == [
        (0, [1, 3], [3.0, 2.0], [3.0, 0.0], 2, 0),
        (1, [0], [1.5], [1.5], 1, 0),
        (2, [3], [0.25], [0.25], 1, 0),
        (3, [0, 2], [2.0, 0.25], [0.0, 0.25], 2, 0),
    ]


def test_an_item_keeps_its_heaviest_positives():
    rng = np.random.default_rng(5)
    weights = rng.integers(1, 4, (6, 9)) * (rng.random((6, 9)) < 0.7)  # with ties: of those the first is kept
    row, column = np.nonzero(weights)
    frame = pl.DataFrame(
        {"anchor": row, "positive": column, "weight": weights[row, column], "weight_before_validation": 0}
    )
    grouped = pairs.by_anchor(frame.cast(pairs.SCHEMA), most=4)
    for anchor, positives, weight, _, size, left_out in grouped.iter_rows():
        every = np.flatnonzero(weights[anchor])
        heaviest = sorted(sorted(every, key=lambda other: (-weights[anchor, other], other))[:4])
        assert positives == heaviest
        assert weight == weights[anchor, heaviest].tolist()
        assert (size, left_out) == (len(heaviest), len(every) - len(heaviest))
    assert grouped["left_out"].max() > 0 == grouped["left_out"].min()


@pytest.mark.parametrize("weight", WEIGHTS)
def test_a_matrix_in_memory_leaves_zeros_out(weight):
    matrix = pairs.matrix(some_pairs(), 5, weight)
    expected = np.zeros((5, 5), np.float32)
    for row in some_pairs().iter_rows(named=True):
        expected[row["anchor"], row["positive"]] = row[weight]
    np.testing.assert_array_equal(matrix.toarray(), expected)
    assert matrix.dtype == np.float32
    assert matrix.nnz == np.count_nonzero(expected)


# --- on disk

NUM_ITEMS = 41
SLICE = 30
"""Pairs of a row group, for these tests."""
LONGEST = 12
"""Positives of an anchor at most."""


@pytest.fixture(autouse=True)
def small_slices(monkeypatch):
    monkeypatch.setattr(pairs, "ROW_GROUP_PAIRS", SLICE)


def random_pairs(seed=0):
    """Items 0 and 17 have no pairs, 5 and 22 none before validation; some weights are 0 in one of the two."""
    rng = np.random.default_rng(seed)
    rows = []
    for anchor in rng.permutation(NUM_ITEMS).tolist():
        if anchor in (0, 17):
            continue
        others = rng.choice(np.setdiff1d(np.arange(NUM_ITEMS), [anchor, 17]), rng.integers(1, LONGEST), replace=False)
        for positive in others.tolist():
            weight = float(rng.choice([0.25, 1.0, 3.5]))
            before = 0.0 if anchor in (5, 22) or rng.random() < 0.3 else weight / 2
            rows.append((anchor, positive, weight, before))
    return rows


def on_disk(folder, weight="weight", rows=None, num_parts=4):
    """Pairs in several parts, of which the last has no row, as that of a shard without pairs."""
    rows = random_pairs() if rows is None else rows
    parts = []
    for number in range(num_parts):
        some = [row for row in rows if row[0] % (num_parts - 1) == number]
        frame = pl.DataFrame(some, schema=pairs.SCHEMA, orient="row")
        parts.append(folder / f"part-{number}.parquet")
        pairs.write(pairs.by_anchor(frame, most=100), parts[-1])
    return pairs.Pairs(parts, NUM_ITEMS, weight)


def dense_of(rows, place):
    dense = np.zeros((NUM_ITEMS, NUM_ITEMS), np.float32)
    for row in rows:
        dense[row[0], row[1]] = row[place]
    return dense


@pytest.fixture(params=WEIGHTS)
def stored(request, tmp_path):
    """Pairs on disk, and the same as a dense matrix."""
    return on_disk(tmp_path, request.param), dense_of(random_pairs(), 2 + WEIGHTS.index(request.param))


def test_pairs_are_read_in_several_slices_of_about_a_row_group(stored):
    on_disk, _ = stored
    rows = random_pairs()
    assert len(on_disk.slices) > len(on_disk.parts)
    assert max(piece.size for piece in on_disk.slices) < SLICE + LONGEST
    assert sum(piece.size for piece in on_disk.slices) == on_disk.size == len(rows)


def test_row_groups_are_small_enough_to_be_read_one_by_one(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    stored = on_disk(tmp_path)
    numbers = [parquet.ParquetFile(part).metadata.num_row_groups for part in stored.parts]
    wanted = [pl.read_parquet(part)["size"].sum() / SLICE for part in stored.parts]
    assert all(number >= size // 1 for number, size in zip(numbers, wanted, strict=True))
    assert max(numbers) > 1


def test_iteration_gives_every_row_once_and_equals_the_matrix(stored):
    on_disk, dense = stored
    seen = []
    for block in on_disk:
        assert block.rows.dtype == np.float32
        assert block.anchors.dtype == np.int32
        assert (block.rows.data > 0).all()
        np.testing.assert_array_equal(block.rows.toarray(), dense[block.anchors])
        seen += block.anchors.tolist()
    assert sorted(seen) == np.flatnonzero(dense.any(axis=1)).tolist()
    np.testing.assert_array_equal(on_disk.matrix().toarray(), dense)
    assert on_disk.matrix().nnz == np.count_nonzero(dense)


def test_counts_and_totals_are_naive_sums(stored):
    on_disk, dense = stored
    rows = dense.astype(float).tolist()
    assert on_disk.counts.tolist() == [sum(value > 0 for value in row) for row in rows]
    anchor, positive, share = on_disk.totals
    assert anchor == pytest.approx([sum(row) for row in rows])
    assert positive == pytest.approx([sum(row[item] for row in rows) for item in range(NUM_ITEMS)])
    anchors = [row for row in rows if sum(row)]
    assert share == pytest.approx(
        [sum(row[item] / sum(row) for row in anchors) / len(anchors) for item in range(NUM_ITEMS)]
    )
    assert share.sum() == pytest.approx(1)


def test_shares_of_weights_that_float32_can_hardly_hold_are_finite(tmp_path):
    stored = on_disk(tmp_path, rows=[(0, 1, 2e-42, 0.0), (0, 2, 2e-42, 0.0), (1, 0, 4.0, 0.0)])
    np.testing.assert_allclose(stored.totals[2][:3], [0.5, 0.25, 0.25], rtol=1e-3)


@pytest.mark.parametrize("at_once", [1, 25, 77, 10_000], ids="at once {}".format)
def test_a_shuffled_pass_gives_every_row_exactly_once(stored, at_once):
    on_disk, dense = stored
    seen = []
    for block in on_disk.shuffled(np.random.default_rng(0), at_once):
        np.testing.assert_array_equal(block.rows.toarray(), dense[block.anchors])
        seen += block.anchors.tolist()
    assert sorted(seen) == np.flatnonzero(dense.any(axis=1)).tolist()


@pytest.mark.parametrize("at_once", [1, 25, 77, 10_000], ids="at once {}".format)
def test_passes_have_different_orders_and_a_seed_repeats_them(tmp_path, at_once):
    stored = on_disk(tmp_path)

    def order(rng):
        return [number for block in stored.shuffled(rng, at_once) for number in block.anchors.tolist()]

    one, again, other = (np.random.default_rng(seed) for seed in (4, 4, 5))
    first, second = order(one), order(one)
    assert first != second
    assert [order(again), order(again)] == [first, second]
    assert order(other) != first


def test_slices_come_in_random_order(tmp_path):
    stored = on_disk(tmp_path)
    rng = np.random.default_rng(2)
    firsts = {frozenset(next(stored.shuffled(rng, 1)).anchors.tolist()) for _ in range(12)}
    assert len(firsts) > 3


def test_rows_of_different_slices_and_parts_are_mixed(tmp_path):
    stored = on_disk(tmp_path)
    (block,) = stored.shuffled(np.random.default_rng(0), 10_000)
    parts = [number % 3 for number in block.anchors.tolist()]
    assert sum(one != other for one, other in pairwise(parts)) > 10


@pytest.mark.parametrize("at_once", [1, 25, 77], ids="at once {}".format)
def test_no_more_is_held_than_asked_for_and_a_slice(tmp_path, monkeypatch, at_once):
    stored = on_disk(tmp_path)
    read = []
    original = pairs.Pairs.read

    def watched(self, piece):
        read.append(piece.size)
        return original(self, piece)

    monkeypatch.setattr(pairs.Pairs, "read", watched)
    largest = max(piece.size for piece in stored.slices)
    for block in stored.shuffled(np.random.default_rng(1), at_once):
        # all that was read since the last block is in this one, and no more was needed to fill it
        assert sum(read) == block.rows.nnz < at_once + largest
        assert sum(read[:-1]) < at_once
        read.clear()
    assert not read


def test_what_fits_into_memory_is_read_once_for_all_passes(tmp_path, monkeypatch):
    stored = on_disk(tmp_path)
    read = []
    original = pairs.Pairs.read
    monkeypatch.setattr(pairs.Pairs, "read", lambda self, piece: (read.append(piece), original(self, piece))[1])
    rng = np.random.default_rng(1)
    for _ in range(3):
        for _ in stored.shuffled(rng, stored.size):
            pass
    assert len(read) == len(stored.slices)


def test_no_pairs_at_all(tmp_path):
    stored = on_disk(tmp_path, rows=[])
    assert stored.size == 0
    assert list(stored) == list(stored.shuffled(np.random.default_rng(0), 10)) == []
    assert stored.matrix().nnz == stored.counts.sum() == stored.totals[0].sum() == stored.totals[2].sum() == 0


def test_take_and_join_keep_rows_and_anchors_together(tmp_path):
    dense = dense_of(random_pairs(), 2)
    blocks = list(on_disk(tmp_path))[:3]
    joined = pairs.join(blocks)
    chosen = joined.take(np.array([7, 2, 11]))
    assert chosen.anchors.tolist() == joined.anchors[[7, 2, 11]].tolist()
    np.testing.assert_array_equal(chosen.rows.toarray(), dense[chosen.anchors])
