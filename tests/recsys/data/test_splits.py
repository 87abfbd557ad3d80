from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.config.sections import EvaluateConfig
from recsys.data import splits
from recsys.data.sequences import Sequences
from recsys.data.splits import DAY_S, Split, TimeCut, held_out_users, time_cut

LOG = [[10, 11, 12, 13], [20, 21], [30, 31, 32], [40], [], [50, 51, 50, 51, 52]]
"""Users' items by hand; those with 4, 3 and 5 interactions take part."""

TARGETS = ["test", "validation"]


def sequences_of(log, times=None):
    """Users' items, at times of their own or at 0, 1, 2 and so on."""
    lengths = [len(items) for items in log]
    items = np.array([item for items in log for item in items], np.int32)
    moments = times or [list(range(length)) for length in lengths]
    flat = np.array([moment for own in moments for moment in own], np.float64)
    return Sequences([str(user) for user in range(len(log))], items, np.cumsum([0, *lengths]), flat)


def left_out(log=LOG):
    return Split(sequences_of(log))


# --- leave-one-out


def test_test_target_is_the_last_item():
    holdout = left_out().holdout("test", max_queries=100)
    assert holdout.queries.tolist() == [12, 31, 51]
    assert holdout.targets.tolist() == [13, 32, 52]
    assert len(holdout) == 3


def test_validation_targets_are_the_items_of_the_held_out_users_before_the_last(monkeypatch):
    monkeypatch.setattr(splits, "held_out_users", lambda ids: np.array([user in "025" for user in ids]))
    split = left_out()
    holdout = split.holdout("validation", max_queries=100)
    assert holdout.queries.tolist() == [10, 11, 30, 50, 51, 50]
    assert holdout.targets.tolist() == [11, 12, 31, 51, 50, 51]
    histories = [[item for item in row if item >= 0] for row in holdout.histories(9).tolist()]
    assert histories == [[10], [11, 10], [30], [50], [51, 50], [50, 51, 50]]
    newest = split.holdout("validation", max_queries=4)
    assert set(zip(newest.queries.tolist(), newest.targets.tolist(), strict=True)) >= {(11, 12), (30, 31), (50, 51)}
    assert len(newest) == 4


def test_training_data_for_the_test_exclude_the_last_item():
    included = left_out().training_mask("test").tolist()
    assert included == [True, True, True, False, True, True, True, True, False, True, True, True, True, True, False]


def test_training_data_for_validation_exclude_the_held_out_users(monkeypatch):
    monkeypatch.setattr(splits, "held_out_users", lambda ids: np.array([user in "02" for user in ids]))
    included = left_out().training_mask("validation").tolist()
    assert included == [*[False] * 4, True, True, *[False] * 3, True, True, True, True, True, False]


@pytest.mark.parametrize("target", TARGETS)
def test_training_data_do_not_contain_the_targets(target):
    log = [list(range(20 * user, 20 * user + length)) for user, length in enumerate([3, 7, 2, 4] * 5)]
    split = left_out(log)
    included = set(split.sequences.items[split.training_mask(target)].tolist())
    holdout = split.holdout(target, max_queries=100)
    assert len(holdout) > 3
    assert not included & set(holdout.targets.tolist())
    assert (set(holdout.queries.tolist()) <= included) == (target == "test")


def test_sample_of_users_is_fixed_and_ordered():
    split = left_out([[100 + user, 200 + user, 300 + user] for user in range(50)])
    some = split.holdout("test", max_queries=7)
    again = split.holdout("test", max_queries=7)
    assert len(set(some.targets.tolist())) == 7
    assert some.targets.tolist() == again.targets.tolist() == sorted(some.targets.tolist())
    assert (some.targets - some.queries == 100).all()
    other = split.holdout("test", max_queries=7, seed=1)
    assert other.targets.tolist() != some.targets.tolist()


def test_users_with_fewer_than_three_interactions_have_no_query():
    empty = left_out([[1, 2], [3]]).holdout("test", max_queries=5)
    assert len(empty) == 0
    assert empty.histories(10).shape == (0, 0)


# --- through time


@pytest.mark.parametrize(("validation", "test"), [(1.0, 1.0), (2.5, 0.5)])
def test_time_cuts_are_relative_to_the_newest_interaction(validation, test):
    config = EvaluateConfig(split="global_time", test_days=test, validation_days=validation)
    instants = time_cut(1_000_000.0, config)
    assert instants.test == 1_000_000 - test * 86_400
    assert instants.validation == instants.test - validation * 86_400


def test_leave_one_out_has_no_time_cut():
    assert time_cut(1_000_000.0, EvaluateConfig(test_days=3.0)) is None


def test_global_time_by_hand(monkeypatch):
    """Users without interactions before or after the cut have no query, nor users active only after validation.

    All users are held out, so these are all the queries there can be.
    """
    monkeypatch.setattr(splits, "held_out_users", lambda ids: np.ones(len(ids), bool))
    items = [[1, 2, 3, 4, 5], [6, 7], [8, 9], [10, 11, 12], [13, 14]]
    times = [[0, 9, 10, 19, 20], [10, 20], [0, 9], [0, 20, 20], [3, 10]]
    split = Split(sequences_of(items, times), TimeCut(validation=10.0, test=20.0))
    test, validation = split.holdout("test", 100), split.holdout("validation", 100)
    assert (test.queries.tolist(), test.targets.tolist()) == ([4, 6, 10], [5, 7, 11])
    assert (validation.queries.tolist(), validation.targets.tolist()) == ([2, 3, 13], [3, 4, 14])
    assert validation.histories(9).tolist() == [[2, 1, -1], [3, 2, 1], [13, -1, -1]]
    assert split.holdout("validation", 2).targets.tolist() == [3, 14]
    assert not split.training_mask("validation").any()
    before_test = [time < 20 for own in times for time in own]
    assert split.training_mask("test").tolist() == before_test


logs = st.lists(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 12)), max_size=14).map(
        lambda own: sorted(own, key=lambda moment: moment[1])
    ),
    max_size=6,
)
"""Users' (item, time), oldest first, with many ties."""

cuts = st.none() | st.tuples(st.integers(0, 14), st.integers(0, 14)).map(lambda two: TimeCut(*map(float, sorted(two))))


def naive_training_data(log, instants, target):
    """One interaction after the other."""
    included = []
    held_out = held_out_users(str(user) for user in range(len(log)))
    for user, own in enumerate(log):
        for position, (_, time) in enumerate(own):
            if instants is not None:
                known = time < getattr(instants, target)
            else:
                known = len(own) < 3 or position < len(own) - 1
            included.append(known and not (target == "validation" and held_out[user]))
    return included


def naive_questions(log, instants, target):
    """(items before the target, the target) of each query: one of a user in the test, three in validation."""
    questions = []
    held_out = held_out_users(str(user) for user in range(len(log)))
    for user, own in enumerate(log):
        if target == "validation" and not held_out[user]:
            continue
        if instants is None:
            places = [len(own) - 1] if target == "test" else list(range(1, len(own) - 1))[-3:]
            places = places if len(own) >= 3 else []
        else:
            first = sum(time < getattr(instants, target) for _, time in own)
            end = sum(time < instants.test for _, time in own) if target == "validation" else min(first + 1, len(own))
            places = range(first, end)[:3] if first > 0 else []
        questions += [([item for item, _ in own[:place]], own[place][0]) for place in places]
    return questions


@settings(max_examples=300, deadline=None, derandomize=True)
@given(logs, cuts, st.sampled_from(TARGETS), st.sampled_from([1, 3, 100]))
def test_split_agrees_with_a_loop_over_users(log, instants, target, most):
    items = [[item for item, _ in own] for own in log]
    times = [[time for _, time in own] for own in log]
    split = Split(sequences_of(items, times), instants)
    included = naive_training_data(log, instants, target)
    assert split.training_mask(target).tolist() == included
    counts = Counter(item for item, used in zip((item for own in items for item in own), included, strict=True) if used)
    assert split.popularity(target, 9).tolist() == [counts[item] for item in range(9)]
    holdout = split.holdout(target, max_queries=100)
    expected = naive_questions(log, instants, target)
    assert holdout.queries.tolist() == [before[-1] for before, _ in expected]
    assert holdout.targets.tolist() == [right for _, right in expected]
    histories = [[item for item in row if item >= 0] for row in holdout.histories(most).tolist()]
    assert histories == [before[::-1][:most] for before, _ in expected]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(logs, cuts)
def test_training_data_for_validation_are_training_data_for_the_test(log, instants):
    split = Split(sequences_of([[i for i, _ in own] for own in log], [[t for _, t in own] for own in log]), instants)
    assert not (split.training_mask("validation") & ~split.training_mask("test")).any()


@pytest.mark.parametrize("cut", [None, TimeCut(12.0, 30.0)], ids=["leave one out", "global time"])
def test_nearest_targets_of_all_users_are_chosen_first(cut):
    """Users have 30 items at the times 0 to 29: their nearest targets are 28, 27 and so on, or 12, 13 and so on."""
    log = [list(range(100 * user, 100 * user + 30)) for user in range(40)]
    split = Split(sequences_of(log), cut)
    num_users = int(split.held_out.sum())
    nearest = [28, 27, 26] if cut is None else [12, 13, 14]
    some = split.holdout("validation", max_queries=2 * num_users + 3)
    places = Counter((some.targets % 100).tolist())
    assert places == {nearest[0]: num_users, nearest[1]: num_users, nearest[2]: 3}
    assert (some.targets - some.queries == 1).all()
    assert (np.diff(some.targets) > 0).all()
    other = split.holdout("validation", max_queries=2 * num_users + 3, seed=1)
    assert other.targets.tolist() != some.targets.tolist()
    everything = split.holdout("validation", max_queries=10_000)
    assert Counter((everything.targets % 100).tolist()) == dict.fromkeys(nearest, num_users)


def test_sample_of_users_by_time_is_fixed():
    log = [[user, 100 + user] for user in range(40)]
    split = Split(sequences_of(log, [[0, DAY_S]] * 40), TimeCut(0.5 * DAY_S, DAY_S))
    some, again = (split.holdout("test", max_queries=6) for _ in range(2))
    assert some.targets.tolist() == again.targets.tolist()
    assert len(some) == 6
    assert (some.targets - some.queries == 100).all()


# --- histories


@pytest.mark.parametrize(("most", "kept"), [(100, [0, 1, 2, 3, 4, 5, 6]), (7, [0, 1, 2, 3, 4, 5, 6]), (3, [0, 3, 6])])
def test_subsampled_queries_are_evenly_spaced(most, kept):
    holdout = left_out([[10 * user, 1, 2, 10 * user + 3] for user in range(7)]).holdout("test", max_queries=100)
    subsampled = holdout.subsample(most)
    assert subsampled.targets.tolist() == [10 * user + 3 for user in kept]
    assert subsampled.histories(9)[:, -1].tolist() == [10 * user for user in kept]


def test_subsample_of_no_queries_is_empty():
    assert len(left_out([[1]]).holdout("test", max_queries=100).subsample(5)) == 0


def test_long_histories_are_truncated_to_fit_into_memory():
    """One user of 100,000 interactions among 20,000: the newest items of each remain, as int32."""
    log = [list(range(100_000)), *([1, 2, user] for user in range(20_000))]
    newest = left_out(log).holdout("test", max_queries=100_000).histories(1_000)
    assert newest.dtype == np.int32
    assert newest.shape == (20_001, 1_000)
    assert newest[0].tolist() == list(range(99_998, 98_998, -1))
    assert newest[7, :3].tolist() == [2, 1, -1]


# --- users that are held out


def test_users_are_held_out_by_their_id_alone():
    ids = [f"user {number}" for number in range(4_000)]
    mask = held_out_users(ids, share=0.25)
    assert 0.22 < mask.mean() < 0.28
    by_id = dict(zip(ids, mask.tolist(), strict=True))
    reverse = held_out_users(ids[::-1], share=0.25)
    assert reverse.tolist() == [by_id[each] for each in ids[::-1]]
    assert (mask <= held_out_users(ids, share=0.5)).all()
    assert not held_out_users(ids, share=0).any()
    assert held_out_users(ids, share=1).all()
