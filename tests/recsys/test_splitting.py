import numpy as np
import pytest

from recsys.sequences import Sequences
from recsys.splitting import known_before, leave_one_out

LOG = [[10, 11, 12, 13], [20, 21], [30, 31, 32], [40], [], [50, 51, 50, 51, 52]]
"""Users' items by hand; those with 4, 3 and 5 interactions take part."""


def sequences_of(log):
    lengths = [len(items) for items in log]
    items = np.array([item for items in log for item in items], np.int32)
    return Sequences([str(user) for user in range(len(log))], items, np.cumsum([0, *lengths]))


def test_the_test_target_is_the_last_item_and_its_query_the_one_before():
    holdout = leave_one_out(sequences_of(LOG), "test", max_users=100)
    assert holdout.queries.tolist() == [12, 31, 51]
    assert holdout.targets.tolist() == [13, 32, 52]
    assert len(holdout) == 3


def test_the_validation_target_is_the_last_but_one():
    holdout = leave_one_out(sequences_of(LOG), "validation", max_users=100)
    assert holdout.queries.tolist() == [11, 30, 50]
    assert holdout.targets.tolist() == [12, 31, 51]


def test_known_before_the_test_target_is_all_but_the_last_of_those_who_take_part():
    known = known_before(sequences_of(LOG), "test").tolist()
    assert known == [True, True, True, False, True, True, True, True, False, True, True, True, True, True, False]


def test_known_before_the_validation_target_is_all_but_the_last_two():
    known = known_before(sequences_of(LOG), "validation").tolist()
    assert known == [True, True, False, False, True, True, True, False, False, True, True, True, True, False, False]


@pytest.mark.parametrize("target", ["test", "validation"])
def test_nothing_known_is_a_target_or_lies_after_it(target):
    log = [list(range(start, start + length)) for start, length in ((0, 3), (10, 7), (20, 2), (30, 4))]
    sequences = sequences_of(log)
    known = set(sequences.items[known_before(sequences, target)].tolist())
    holdout = leave_one_out(sequences, target, max_users=100)
    assert not known & set(holdout.targets.tolist())
    assert set(holdout.queries.tolist()) <= known


def test_a_sample_of_the_users_is_fixed_and_in_order():
    log = [[100 + user, 200 + user, 300 + user] for user in range(50)]
    sequences = sequences_of(log)
    some = leave_one_out(sequences, "test", max_users=7)
    again = leave_one_out(sequences, "test", max_users=7)
    assert len(set(some.targets.tolist())) == 7
    assert some.targets.tolist() == again.targets.tolist() == sorted(some.targets.tolist())
    assert (some.targets - some.queries == 100).all()
    other = leave_one_out(sequences, "test", max_users=7, seed=1)
    assert other.targets.tolist() != some.targets.tolist()


def test_nobody_with_three_interactions_leaves_nothing_to_ask():
    assert len(leave_one_out(sequences_of([[1, 2], [3]]), "test", max_users=5)) == 0
