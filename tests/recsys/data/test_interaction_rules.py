import datetime as dt
import math
from collections import defaultdict

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.config.sections import PrepareConfig
from recsys.data.interaction_rules import apply_event_weights, apply_row_rules, drop_bursts, drop_disliked
from recsys.data.sequences import sort_interactions
from recsys.data.validation import check_interactions

NOON = 1_704_196_800
"""2024-01-02 12:00 UTC, a whole quarter of an hour."""


def log(**columns):
    """One good interaction, some columns replaced."""
    rows = {"user_id": ["u"], "item_id": ["i"], "timestamp": [NOON]} | columns
    return pl.DataFrame(rows, strict=False)


# --- event weights


def test_event_scales_the_weight_and_events_without_a_factor_are_filtered():
    events = ["view", "buy", "scroll", None, "view", "View"]
    weights = [1.0, 2.0, 1.0, 1.0, 0.5, 1.0]
    raw = log(user_id=["a"] * 6, item_id=["i"] * 6, timestamp=[1] * 6, event=events, weight=weights)
    weighed = apply_event_weights(check_interactions(raw, "log.csv", events=True).rows, {"view": 0.5, "buy": 3})
    assert weighed.columns == ["row", "user_id", "item_id", "timestamp", "weight"]
    assert weighed.schema["weight"] == pl.Float32
    assert weighed.select("row", "weight").rows() == [(0, 0.5), (1, 6.0), (4, 0.25)]


def test_no_rows_remain_if_no_event_has_a_factor():
    rows = check_interactions(log(event=["view"]), "log.csv", events=True).rows
    assert apply_event_weights(rows, {"buy": 1.0}).height == 0
    assert apply_event_weights(rows.head(0), {"buy": 1.0}).height == 0


@pytest.mark.parametrize(("weight", "factor"), [(1e38, 1e6), (1e-38, 1e-30)], ids=["overflow", "underflow"])
def test_scaled_weights_are_finite_and_positive(weight, factor):
    """What is used is a float32: a product that has none is held at the nearest that it has."""
    rows = check_interactions(log(weight=[weight], event=["buy"]), "log.csv", events=True).rows
    (used,) = apply_event_weights(rows, {"buy": factor})["weight"].to_list()
    assert math.isfinite(used)
    assert used > 0


# --- ratings


def test_rows_rated_below_the_minimum_are_dropped():
    """A rating of exactly the minimum is used, and so is a row without a rating."""
    rows = pl.DataFrame(
        {"row": range(5), "rating": [2.9, 3.0, None, 5.0, -1.0]}, schema_overrides={"rating": pl.Float32}
    )
    liked = drop_disliked(rows, 3.0)
    assert liked.columns == ["row"]
    assert liked["row"].to_list() == [1, 2, 3]


@pytest.mark.parametrize("dtype", [pl.Float32, pl.Float64, pl.String])
@pytest.mark.parametrize("rating", [3.3, 3.7, 0.1])
def test_a_rating_equals_the_same_minimum_in_every_type(dtype, rating):
    """As float64, the float32 3.3 would be below 3.3."""
    raw = log(rating=pl.Series([rating]).cast(dtype))
    rows = check_interactions(raw, "log.csv", ratings=True).rows
    assert drop_disliked(rows, rating).height == 1
    assert drop_disliked(rows, rating + 0.001).height == 0


# --- all rules of a row


def test_each_row_counts_for_the_first_rule_that_filters_it():
    day = 86_400
    times = [0, 3 * day, 0, 0, 3 * day, 0, 0]
    ratings = [5, 1, 1, 4, 5, None, 2]
    events = ["buy", "buy", "buy", "view", "view", "buy", "view"]
    raw = log(user_id=["u"] * 7, item_id=["i"] * 7, timestamp=times, rating=ratings, event=events)
    prepare = PrepareConfig(as_of=dt.datetime(1970, 1, 3, tzinfo=dt.UTC), min_rating=3.0, event_weights={"buy": 2.0})
    used, filtered = apply_row_rules(check_interactions(raw, "log.csv", events=True, ratings=True).rows, prepare)
    assert used.columns == ["row", "user_id", "item_id", "timestamp", "weight"]
    assert used.select("row", "weight").rows() == [(0, 2.0), (5, 2.0)]
    assert filtered == {
        "after --as-of": 2,
        "rating below prepare.min_rating": 2,
        "event has no weight in prepare.event_weights": 1,
    }


def test_no_row_is_filtered_by_the_default_settings():
    rows = check_interactions(log(), "log.csv").rows
    used, filtered = apply_row_rules(rows, PrepareConfig())
    assert used.equals(rows)
    assert set(filtered.values()) == {0}


# --- bursts


def interactions(rows):
    """Rows of user, item number and time."""
    schema = {"user_id": pl.String, "item_number": pl.Int32, "timestamp": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def naive_bursts(rows, maximum):
    """The rows that are left, one by one."""
    items = defaultdict(set)
    for user, item, time in rows:
        items[user, math.floor(time)].add(item)
    return [
        (user, item, time)
        for user, item, time in rows
        if len(items[user, math.floor(time)]) <= maximum or math.floor(time) % 900 == 0
    ]


def test_all_rows_of_a_user_in_a_second_with_too_many_items_are_dropped():
    """Two bursts of one user; exactly the maximum is none, nor are as many in two seconds or of two users."""
    second = NOON + 7
    first = [("a", item, second + item / 10) for item in range(4)]
    again = [("a", item, second + 60.0) for item in range(5)]
    left = [
        *[("a", item, second + 30.0) for item in range(3)],
        *[("b", item, second + 0.5) for item in range(3)],
        *[("b", item, second + 1.0) for item in range(3)],
        ("a", 9, second + 1.0),
    ]
    rows = [*first, *left, *again]
    assert drop_bursts(interactions(rows), 3).rows() == left
    assert drop_bursts(interactions(rows), 4).rows() == [*first, *left]
    assert drop_bursts(interactions(rows), 5).rows() == rows
    assert drop_bursts(interactions([]), 3).rows() == []


def test_copies_of_a_row_are_no_burst():
    """A log that was delivered twice, or 50 times, filters the same rows."""
    rows = [("a", item, NOON + 1.0) for item in range(3)] + [("b", item, NOON + 1.0) for item in range(4)]
    assert drop_bursts(interactions(rows * 50), 3).rows() == [row for row in rows * 50 if row[0] == "a"]


@pytest.mark.parametrize("zone", ["+00:00", "+05:30", "-03:30", "+05:45", "+14:00"])
def test_dates_without_a_time_of_day_are_no_burst(zone):
    """All interactions of a day are at midnight of some time zone."""
    midnight = dt.datetime.fromisoformat(f"2024-05-06T00:00:00{zone}").timestamp()
    rows = [("a", item, midnight) for item in range(9)]
    assert drop_bursts(interactions(rows), 3).rows() == rows
    a_second_later = [(user, item, time + 1) for user, item, time in rows]
    assert drop_bursts(interactions(a_second_later), 3).rows() == []


def test_an_item_before_and_after_a_burst_is_a_repeat():
    """Bursts are dropped first, so what is left becomes adjacent."""
    burst = [("a", item, NOON + 5.0) for item in range(4)]
    rows = interactions([("a", 7, NOON + 4.0), *burst, ("a", 7, NOON + 9.0)])
    assert sort_interactions(drop_bursts(rows, 3)).rows() == [("a", 7, NOON + 4.0)]


some_times = st.integers(NOON - 2, NOON + 2).flatmap(lambda second: st.sampled_from([second, second + 0.5]))
some_rows = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5), some_times.map(float)), max_size=60)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(some_rows, st.integers(1, 5), st.randoms(use_true_random=False))
def test_bursts_are_those_of_a_naive_count_in_any_order(rows, maximum, random):
    assert drop_bursts(interactions(rows), maximum).rows() == naive_bursts(rows, maximum)
    shuffled = random.sample(rows, len(rows))
    assert sorted(drop_bursts(interactions(shuffled), maximum).rows()) == sorted(naive_bursts(rows, maximum))
