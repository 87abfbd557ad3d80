import numpy as np
import pytest

from recsys.data.splits import Holdout
from recsys.index.queries import MAX_EXCLUDED, Queries, default_recency

LOG = [[4, 1, 4, 7, 2], [3, 9], [5, 6, 8]]
"""Items of each user, ordered by time; the last one is the target."""


def holdout():
    items = np.array([item for own in LOG for item in own], np.int32)
    ends = np.cumsum([len(own) for own in LOG])
    return Holdout(items, ends - [len(own) for own in LOG], ends - 1)


def test_a_single_item_query_excludes_the_item():
    queries = Queries.from_items(np.array([3, 8, 3], np.int32))
    assert len(queries) == 3
    assert queries.items.tolist() == queries.excluded.tolist() == [[3], [8], [3]]
    assert queries.weights.tolist() == [[1], [1], [1]]


@pytest.mark.parametrize("recency", [0.3, 1.0], ids="recency {}".format)
@pytest.mark.parametrize("length", [1, 3, 50], ids="length {}".format)
def test_histories_are_newest_first_with_decreasing_weights(recency, length):
    queries = Queries.from_histories(holdout(), recency, length)
    for row, sequence in enumerate(LOG):
        history = sequence[:-1][::-1]
        items = history[:length]
        pads = queries.items.shape[1] - len(items)
        assert queries.items[row].tolist() == items + [-1] * pads
        weights = [recency**step for step in range(len(items))] + [0] * pads
        assert queries.weights[row].tolist() == pytest.approx(weights)
        assert [number for number in queries.excluded[row].tolist() if number != -1] == history


def test_excludes_the_newest_items_of_a_long_history():
    longest = MAX_EXCLUDED + 500
    bot = Holdout(np.arange(longest + 1, dtype=np.int32), np.array([0, 0]), np.array([longest, 2]))
    queries = Queries.from_histories(bot, 0.5, 3)
    newest = list(range(longest - 1, -1, -1))
    assert queries.items.tolist() == [newest[:3], [1, 0, -1]]
    assert queries.excluded[0].tolist() == newest[:MAX_EXCLUDED]
    assert queries.excluded[1].tolist() == [1, 0] + [-1] * (MAX_EXCLUDED - 2)


def test_excludes_all_items_with_a_weight():
    bot = Holdout(np.arange(2_001, dtype=np.int32), np.array([0]), np.array([2_000]))
    queries = Queries.from_histories(bot, 1.0, MAX_EXCLUDED + 200)
    assert queries.items.shape == queries.excluded.shape == (1, MAX_EXCLUDED + 200)


def test_types_and_shapes():
    for queries in (Queries.from_histories(holdout(), 0.5, 2), Queries.from_items(np.array([1, 2, 5], np.int32))):
        assert (queries.items.dtype, queries.weights.dtype, queries.excluded.dtype) == (np.int32, np.float32, np.int32)
        assert queries.items.shape == queries.weights.shape
        assert len(queries.items) == len(queries.excluded) == len(queries) == 3


@pytest.mark.parametrize(("recencies", "expected"), [((0.3,), 0.3), ((0.9, 0.2, 0.5), 0.5), ((0.1, 0.4), 0.4)])
def test_the_default_recency_is_the_median(recencies, expected):
    assert default_recency(recencies) == expected


def test_slicing_selects_queries():
    queries = Queries.from_histories(holdout(), 0.5, 3)
    selected = queries[1:]
    assert len(selected) == 2
    for part in ("items", "weights", "excluded"):
        np.testing.assert_array_equal(getattr(selected, part), getattr(queries, part)[1:])


def test_no_users_give_no_queries():
    no_users = Holdout(np.array([1, 2], np.int32), np.empty(0, np.int64), np.empty(0, np.int64))
    assert len(Queries.from_histories(no_users, 0.5, 3)) == 0
    assert len(Queries.from_items(no_users.queries)) == 0
