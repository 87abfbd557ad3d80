"""Contracts against a check of each value by itself, and what they leave to the checks that were there before."""

import datetime as dt
import math

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.config.column_rules import ColumnRules
from recsys.config.sections import ItemsConfig
from recsys.data.validation import check_interactions, check_items
from recsys.errors import InputError

ROLES = ItemsConfig(title="name", categorical=("brand",), multi_categorical=("tags",), numeric=("price",))


def log(**columns):
    rows = max(map(len, columns.values()))
    usable = {"user_id": [f"u{n}" for n in range(rows)], "item_id": ["i"] * rows, "timestamp": [5.0] * rows}
    return pl.DataFrame(usable | columns)


def goods(**columns):
    rows = max(map(len, columns.values()))
    usable = {"item_id": [f"i{n}" for n in range(rows)], "name": ["n"] * rows, "brand": ["b"] * rows}
    return pl.DataFrame(usable | {"tags": ["t"] * rows, "price": [1.0] * rows} | columns)


def reasons(checked, rows):
    """The reason of each row, None where it is used."""
    result = dict(checked.rejects.select("row", "reason").iter_rows())
    assert sorted([*result, *checked.rows["row"]]) == list(range(rows))
    return [result.get(row) for row in range(rows)]


def of_items(rules, column, values):
    return reasons(check_items(goods(**{column: values}), ROLES, "items.csv", {column: rules}), len(values))


def of_log(rules, column, values):
    raw = log(**{column: values})
    return reasons(check_interactions(raw, "log.csv", column_rules={column: rules}), len(values))


def reason(column, what, rule, table="items"):
    return f"{column} is {what} (column_rules.{table}.{column}.{rule})"


# --- each rule


def test_rejects_numbers_out_of_range():
    low, high = reason("price", "below 0.5", "min"), reason("price", "above 20", "max")
    values = [0.5, 0.49, 20.0, 20.01, None, -7.0]
    assert of_items(ColumnRules(min=0.5, max=20), "price", values) == [None, low, None, high, None, low]


def test_rejects_fractions_of_integers():
    wrong = reason("price", "not an integer", "type")
    values = ["3", "3.0", "3.5", "", " -2 ", "1e2"]
    assert of_items(ColumnRules(type="integer"), "price", values) == [None, None, wrong, None, None, None]


@pytest.mark.parametrize("rules", [ColumnRules(type="number"), ColumnRules(min=-99), ColumnRules(allowed=(7, -1.5))])
def test_rejects_text_that_is_not_a_number(rules):
    wrong = reason("brand", "not a number", "type")
    values = ["7", " -1.5 ", "seven", "nan", "inf", None, " "]
    assert of_items(rules, "brand", values) == [None, None, wrong, wrong, wrong, None, None]


@pytest.mark.parametrize(
    ("column", "values"),
    [("name", ["n", None, "", "  "]), ("price", [1.0, None]), ("tags", [["a"], None, [], [""]]), ("brand", ["b", ""])],
)
def test_rejects_missing_values(column, values):
    wrong = reason(column, "missing", "missing")
    assert of_items(ColumnRules(missing=False), column, values) == [None, *[wrong] * (len(values) - 1)]


def test_rejects_values_that_are_not_allowed():
    wrong = reason("event", "not of the allowed values", "allowed", "interactions")
    values = ["view", "buy", "View", " view", None, ""]
    assert of_log(ColumnRules(allowed=("view", "buy")), "event", values) == [None, None, wrong, wrong, None, None]


def test_rejects_lists_with_a_value_that_is_not_allowed():
    wrong = reason("tags", "not of the allowed values", "allowed")
    values = ["a|b", "a|c", "", None, " b |a", "c"]
    assert of_items(ColumnRules(allowed=("a", "b")), "tags", values) == [None, wrong, None, None, None, wrong]


def test_allowed_numbers_are_compared_by_value():
    wrong = reason("price", "not of the allowed values", "allowed")
    assert of_items(ColumnRules(allowed=(1, 2.5)), "price", ["1.0", "2.5", "2", ""]) == [None, None, wrong, None]


def test_rejects_timestamps_out_of_range():
    rules = ColumnRules(earliest=dt.date(2020, 3, 1), latest=dt.date(2020, 3, 2))
    early = reason("timestamp", "before 2020-03-01T00:00:00+00:00", "earliest", "interactions")
    late = reason("timestamp", "after 2020-03-02T23:59:59.999999+00:00", "latest", "interactions")
    values = [
        "2020-02-29T23:59:59Z",
        "2020-03-01",
        "1583020799",
        "2020-03-02T23:59:59.5",
        "2020-03-03",
        "2020-03-01T01:00+02:00",
    ]
    assert of_log(rules, "timestamp", values) == [early, None, early, None, late, early]


@pytest.mark.parametrize("limit", [0.1, 0.7, 1 / 3])
def test_limits_are_inclusive(limit):
    """It is used as float32, whose nearest number may lie beyond the limit."""
    assert of_log(ColumnRules(min=limit, max=limit), "weight", [limit]) == [None]
    assert of_log(ColumnRules(allowed=(limit,)), "weight", [limit]) == [None]
    assert of_log(ColumnRules(min=limit), "weight", [limit * 0.99]) != [None]


def test_rules_apply_to_ids():
    wrong = reason("user_id", "not an integer", "type", "interactions")
    assert of_log(ColumnRules(type="integer"), "user_id", ["12", "12.5"]) == [None, wrong]
    assert of_items(ColumnRules(min=3), "item_id", ["3", "2"]) == [None, reason("item_id", "below 3", "min")]


def test_ratings_may_have_rules_without_a_minimum_rating():
    below = reason("rating", "below 1", "min", "interactions")
    ratings = ["1", "0", "", "x"]
    assert of_log(ColumnRules(min=1), "rating", ratings) == [None, below, None, "rating is not a number"]


# --- beside the other checks


def test_invalid_rows_keep_their_reason():
    """Column rules are checked last, and the first reason counts."""
    raw = log(timestamp=["soon", "4", ""], weight=["-1", "0.5", "1"])
    column_rules = {"timestamp": ColumnRules(earliest=dt.date(2020, 1, 1)), "weight": ColumnRules(min=1)}
    checked = check_interactions(raw, "log.csv", column_rules=column_rules)
    assert reasons(checked, 3) == [
        "timestamp is neither a number of seconds nor ISO 8601",
        reason("timestamp", "before 2020-01-01T00:00:00+00:00", "earliest", "interactions"),
        "timestamp is missing",
    ]


def test_rejected_row_does_not_reserve_its_id():
    raw = goods(item_id=["a", "a", "a"], price=[-1.0, 1.0, 2.0])
    checked = check_items(raw, ROLES, "items.csv", {"price": ColumnRules(min=0)})
    assert checked.rows["price"].to_list() == [1.0]
    assert reasons(checked, 3) == [reason("price", "below 0", "min"), None, "item_id is a duplicate"]


def test_rules_do_not_change_valid_rows():
    raw = goods(name=["x", ""])
    column_rules = {"name": ColumnRules(missing=False)}
    plain, checked = check_items(raw, ROLES, "items.csv"), check_items(raw, ROLES, "items.csv", column_rules)
    assert checked.rows.equals(plain.rows.head(1))
    events = check_interactions(log(event=["a", "b"]), "log.csv", column_rules={"event": ColumnRules(allowed=("a",))})
    assert events.rows.columns == ["row", "user_id", "item_id", "timestamp", "weight"]


def test_optional_column_may_be_absent_if_values_may_be_missing():
    raw = log(timestamp=[1, 2])
    for column in ("weight", "event", "rating"):
        rule = {"allowed": ("a",)} if column == "event" else {"min": 3}
        assert check_interactions(raw, "log.csv", column_rules={column: ColumnRules(**rule)}).rows.height == 2
        with pytest.raises(InputError, match=rf"log\.csv: column '{column}' must exist"):
            check_interactions(raw, "log.csv", column_rules={column: ColumnRules(missing=False, **rule)})


# --- any rules, any values


def naive(rules, value):
    """Whether one value, as text or None, satisfies the rules."""
    text = (value or "").strip()
    if not text:
        return rules.missing
    if rules.allowed is not None and isinstance(rules.allowed[0], str):
        return value in rules.allowed
    try:
        number = float(text)
    except ValueError:
        return False
    if not math.isfinite(number) or (rules.type == "integer" and number != int(number)):
        return False
    if rules.allowed is not None:
        return number in rules.allowed
    return (rules.min is None or number >= rules.min) and (rules.max is None or number <= rules.max)


some_values = st.none() | st.sampled_from(["", " ", "1", "1.5", "2", " 3 ", "-4", "x", "nan", "-inf", "1e1"])
some_rules = st.one_of(
    st.builds(
        lambda ends, kind, missing: ColumnRules(min=min(ends), max=max(ends), type=kind, missing=missing),
        st.tuples(st.integers(-5, 5), st.integers(-5, 11)),
        st.sampled_from([None, "integer", "number"]),
        st.booleans(),
    ),
    st.builds(
        lambda allowed, missing: ColumnRules(allowed=allowed, missing=missing),
        st.lists(st.sampled_from([1, 1.5, -4]), min_size=1) | st.lists(st.sampled_from(["1", "x", " 3 "]), min_size=1),
        st.booleans(),
    ),
)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(some_rules, st.lists(some_values, min_size=1, max_size=9))
def test_accepts_exactly_the_rows_that_satisfy_the_rules(rules, values):
    raw = goods(brand=pl.Series(values, dtype=pl.String))
    result = reasons(check_items(raw, ROLES, "items.csv", {"brand": rules}), len(values))
    assert [reason is None for reason in result] == [naive(rules, value) for value in values]
