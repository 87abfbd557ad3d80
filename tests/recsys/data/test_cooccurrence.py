import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from recsys.config.sections import PrepareConfig
from recsys.data import cooccurrence, splits
from recsys.data.sequences import Sequences
from recsys.data.splits import Split, TimeCut, held_out_users

DAY = 86_400.0
WEIGHTS = ("weight", "validation_weight")


@pytest.fixture
def nobody_held_out(monkeypatch):
    """All users are training data for validation, so that both weights can be computed by hand."""
    monkeypatch.setattr(splits, "held_out_users", lambda user_ids: np.zeros(len(user_ids), bool))


def sequences_of(log, times=None):
    lengths = [len(items) for items in log]
    items = np.array([item for items in log for item in items], np.int32)
    flat = [float(n) for n in range(len(items))] if times is None else [time for own in times for time in own]
    return Sequences(
        [str(user) for user in range(len(log))], items, np.cumsum([0, *lengths]), np.array(flat, np.float64)
    )


def counted(log, *, weights=None, times=None, cut=None, newest=None, **prepare):
    sequences = sequences_of(log, times)
    ones = np.ones(len(sequences.items)) if weights is None else weights
    newest = sequences.times.max(initial=0.0) if newest is None else newest
    config = PrepareConfig(**prepare)
    return cooccurrence.count_pairs(Split(sequences, cut), np.array(ones, np.float32), config, newest)


def known_lengths(own_times, cut):
    """How many interactions of a user who is not held out are training data for the test, and for validation."""
    if cut is not None:
        return [sum(time < instant for time in own_times) for instant in (cut.test, cut.validation)]
    length = len(own_times)
    return [length - 1, length - 1] if length >= 3 else [length, length]


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
    """Every two interactions of every user, one by one: {(anchor, positive): weights in the order of `WEIGHTS`}."""
    summed = {}
    held_out = held_out_users(str(user) for user in range(len(log)))
    for user, (items, own_times, own_weights) in enumerate(zip(log, times, weights, strict=True)):
        test, validation = known_lengths(own_times, cut)
        for place, known in enumerate([test, 0 if held_out[user] else validation]):
            result = list(pairs_of_user((items, own_times, own_weights), known, newest, config))
            share = sum(weight for _, _, weight in result) ** config.user_power if result else 1
            for earlier, later, weight in result:
                key = (earlier, later) if config.directed else (min(earlier, later), max(earlier, later))
                summed.setdefault(key, [0.0, 0.0])[place] += weight / share
    return summed


def as_dictionary(frame, columns=WEIGHTS):
    return {(row["anchor"], row["positive"]): [row[name] for name in columns] for row in frame.iter_rows(named=True)}


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
    st.sampled_from([None, TimeCut(3.5 * DAY, 6 * DAY), TimeCut(6 * DAY, 7.25 * DAY)]),
    st.randoms(use_true_random=False),
)
def test_count_pairs_equals_a_double_loop_over_each_user(log, config, cut, random):
    weights = [[random.choice([0.5, 1.0, 2.0, 3.0]) for _ in items] for items in log]
    times = [sorted(random.choice(range(1, 33)) * DAY / 4 for _ in items) for items in log]
    newest = 8.5 * DAY
    counts = cooccurrence.count_pairs(
        Split(sequences_of(log, times), cut),
        np.array([weight for own in weights for weight in own], np.float32),
        config,
        newest,
    )
    expected = naive(log, times, weights, cut=cut, newest=newest, config=config)
    received = as_dictionary(counts, WEIGHTS)
    assert received.keys() == expected.keys()
    for key, weights_of_pair in expected.items():
        assert received[key] == pytest.approx(weights_of_pair, rel=1e-6), key


def test_users_that_are_held_out_count_only_in_the_weight_for_the_test():
    log = [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    held_out = held_out_users(str(user) for user in range(5))
    assert 0 < held_out.sum() < 5
    received = as_dictionary(counted(log), WEIGHTS)
    assert received == {(2 * user, 2 * user + 1): [1, 0 if held_out[user] else 1] for user in range(5)}


@pytest.mark.usefixtures("nobody_held_out")
def test_count_pairs_of_a_small_log_computed_by_hand():
    """The example of the module: 7, 3, 9 by one user who is too short for a split, window 2, decay 1."""
    frame = counted([[7, 3], [7, 3, 9, 5, 5]], window=2)
    assert as_dictionary(frame) == {
        (3, 5): [0.5, 0.5],
        (3, 7): [2.0, 2.0],
        (3, 9): [1.0, 1.0],
        (5, 9): [1.0, 1.0],
        (7, 9): [0.5, 0.5],
    }


def test_count_pairs_is_sorted_and_typed():
    frame = counted([[9, 1, 4, 0, 2]], decay=0.0)
    assert frame.schema == cooccurrence.SCHEMA
    keys = frame.select("anchor", "positive").rows()
    assert keys == sorted(keys)
    assert all(anchor < positive for anchor, positive in keys)


@pytest.mark.usefixtures("nobody_held_out")
def test_directed_pair_leads_from_the_earlier_to_the_later_item():
    log = [[4, 1], [1, 4], [4, 1], [7, 0]]
    assert as_dictionary(counted(log, directed=True)) == {(4, 1): [2, 2], (1, 4): [1, 1], (7, 0): [1, 1]}
    assert as_dictionary(counted(log)) == {(1, 4): [3, 3], (0, 7): [1, 1]}


def test_no_pair_spans_two_sessions():
    times = [[0.0, 1800.0, 3601.0, 3601.0 + 1800.0], [5000.0, 6801.0]]
    frame = counted([[0, 1, 2, 3], [4, 5]], times=times, session_gap_minutes=30.0, cut=TimeCut(1e9, 1e9))
    assert as_dictionary(frame).keys() == {(0, 1), (2, 3)}


@pytest.mark.usefixtures("nobody_held_out")
def test_pair_weight_halves_with_each_half_life_of_age():
    times = [[0.0, 2 * DAY], [4 * DAY, 5 * DAY]]
    frame = counted([[0, 1], [2, 3]], times=times, half_life_days=1.5, newest=8 * DAY)
    assert as_dictionary(frame) == {(0, 1): [2**-4, 2**-4], (2, 3): [2**-2, 2**-2]}


@pytest.mark.usefixtures("nobody_held_out")
def test_interaction_limit_counts_known_interactions_only():
    log = [[0, 1, 2, 3, 4], [5, 6, 7, 8]]
    frame = counted(log, max_user_interactions=2, decay=0.0)
    assert as_dictionary(frame) == {(2, 3): [1, 1], (6, 7): [1, 1]}
    times = [[0.0, 1.0, 2.0, 11.0, 25.0], [3.0, 12.0, 13.0, 14.0]]
    frame = counted(log, times=times, cut=TimeCut(10.0, 20.0), max_user_interactions=2)
    assert as_dictionary(frame) == {(1, 2): [0, 1], (2, 3): [1, 0], (7, 8): [1, 0]}


@pytest.mark.usefixtures("nobody_held_out")
@pytest.mark.parametrize("cut", [None, TimeCut(7.5, 11.0)], ids=["leave one out", "global time"])
def test_user_power_1_makes_the_pairs_of_each_user_sum_to_1(cut):
    """Each user has separate items, so that the pairs of users can be distinguished."""
    log = [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9], [10, 11, 10, 12, 13]]
    times = [
        [float(time) for time in range(first, first + len(own))] for own, first in zip(log, (4, 5, 5), strict=True)
    ]
    weights = np.random.default_rng(3).uniform(0.5, 3, 15)
    frame = counted(log, times=times, cut=cut, weights=weights, user_power=1.0, window=3)
    for own in log:
        sums = frame.filter(pl.col("anchor").is_in(own)).select(pl.col(*WEIGHTS).sum()).row(0)
        assert sums == pytest.approx((1, 1))


@pytest.mark.usefixtures("nobody_held_out")
def test_weights_of_very_old_interactions_stay_finite():
    """1060 half-lives: a weight above 0 whose inverse is infinite."""
    times = [[0.0, 0.0], [1060 * DAY, 1060 * DAY]]
    values = as_dictionary(counted([[0, 1], [2, 3]], times=times, half_life_days=1.0, user_power=1.0))
    assert values[2, 3] == [1, 1]
    assert 0 < values[0, 1][0] <= 1


@pytest.mark.parametrize("log", [[], [[]], [[3]], [[3], [4]], [[3, 3]], [[3], [], []]], ids=str)
@pytest.mark.parametrize("cut", [None, TimeCut(1.0, 2.0)], ids=["leave one out", "global time"])
def test_log_without_two_items_of_one_user_has_no_pairs(log, cut):
    frame = counted(log, cut=cut, max_user_interactions=4, user_power=0.5, session_gap_minutes=1.0)
    assert frame.height == 0
    assert frame.schema == cooccurrence.SCHEMA


def test_no_pair_spans_two_users():
    assert as_dictionary(counted([[0, 1], [2, 3]], window=3)).keys() == {(0, 1), (2, 3)}


# --- mirror, group_by_anchor and to_matrix


def some_pairs():
    return pl.DataFrame(
        {
            "anchor": [0, 0, 2],
            "positive": [1, 3, 3],
            "weight": [1.5, 2.0, 0.25],
            "validation_weight": [1.5, 0.0, 0.25],
        },
        schema={name: cooccurrence.SCHEMA[name] for name in ("anchor", "positive", *WEIGHTS)},
    )


def test_mirror_adds_the_opposite_direction():
    assert set(cooccurrence.mirror(some_pairs()).rows()) == {
        (0, 1, 1.5, 1.5),
        (1, 0, 1.5, 1.5),
        (0, 3, 2.0, 0.0),
        (3, 0, 2.0, 0.0),
        (2, 3, 0.25, 0.25),
        (3, 2, 0.25, 0.25),
    }
    assert cooccurrence.mirror(some_pairs()).height == 6


def test_group_by_anchor_sums_equal_pairs_and_lists_positives():
    twice = pl.concat([cooccurrence.mirror(some_pairs()), some_pairs().head(1)])
    grouped = cooccurrence.group_by_anchor(twice.sample(fraction=1, shuffle=True, seed=4), max_positives=100)
    assert grouped.schema["positives"] == pl.List(pl.Int32)
    assert grouped.schema["weight"] == grouped.schema["validation_weight"] == pl.List(pl.Float32)
    assert grouped.rows() == [
        (0, [1, 3], [3.0, 2.0], [3.0, 0.0], 2, 0),
        (1, [0], [1.5], [1.5], 1, 0),
        (2, [3], [0.25], [0.25], 1, 0),
        (3, [0, 2], [2.0, 0.25], [0.0, 0.25], 2, 0),
    ]


def test_group_by_anchor_keeps_the_heaviest_positives():
    rng = np.random.default_rng(5)
    weights = rng.integers(1, 4, (6, 9)) * (rng.random((6, 9)) < 0.7)  # with ties: of those the first is kept
    row, column = np.nonzero(weights)
    frame = pl.DataFrame({"anchor": row, "positive": column, "weight": weights[row, column], "validation_weight": 0})
    grouped = cooccurrence.group_by_anchor(
        frame.cast({name: cooccurrence.SCHEMA[name] for name in frame.columns}), max_positives=4
    )
    for anchor, positives, weight, _, size, dropped_positives in grouped.iter_rows():
        every = np.flatnonzero(weights[anchor])
        heaviest = sorted(sorted(every, key=lambda other: (-weights[anchor, other], other))[:4])
        assert positives == heaviest
        assert weight == weights[anchor, heaviest].tolist()
        assert (size, dropped_positives) == (len(heaviest), len(every) - len(heaviest))
    assert grouped["dropped_positives"].max() > 0 == grouped["dropped_positives"].min()


@pytest.mark.parametrize("weight", WEIGHTS)
def test_to_matrix_has_no_explicit_zeros(weight):
    matrix = cooccurrence.to_matrix(some_pairs(), 5, weight)
    expected = np.zeros((5, 5), np.float32)
    for row in some_pairs().iter_rows(named=True):
        expected[row["anchor"], row["positive"]] = row[weight]
    np.testing.assert_array_equal(matrix.toarray(), expected)
    assert matrix.dtype == np.float32
    assert matrix.nnz == np.count_nonzero(expected)


def test_from_matrix_scales_the_rows_of_the_anchors():
    rng = np.random.default_rng(8)
    dense = rng.random((3, 7)) * (rng.random((3, 7)) < 0.5)
    anchors, factor = np.array([2, 4, 6]), np.array([0.5, 3.0, 2.0])
    frame = cooccurrence.from_matrix(sparse.csr_array(dense), anchors, factor, "validation_weight")
    assert frame.schema == {name: cooccurrence.SCHEMA[name] for name in ("anchor", "positive", "validation_weight")}
    received = {(anchor, positive): weight for anchor, positive, weight in frame.iter_rows()}
    expected = {
        (anchors[row], column): dense[row, column] * factor[row]
        for row in range(3)
        for column in range(7)
        if dense[row, column]
    }
    assert received == pytest.approx(expected)
