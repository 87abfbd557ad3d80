import datetime as dt
import json
import math

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.config.sections import ItemsConfig
from recsys.data.validation import check_interactions, check_items
from recsys.errors import InputError

MOMENT = 1_704_164_645.0
"""2024-01-02 03:04:05 UTC: 19,724 days and 11,045 seconds after 1970 began."""


def log(**columns):
    """One good interaction, some columns replaced."""
    rows = {"user_id": ["u"], "item_id": ["i"], "timestamp": [MOMENT]} | columns
    return pl.DataFrame(rows, strict=False)


def reasons(raw):
    return check_interactions(raw, "log.csv").rejects["reason"].to_list()


def moments(raw):
    return check_interactions(raw, "log.csv").rows["timestamp"].to_list()


# --- usable interactions


def test_valid_rows_are_typed_and_keep_their_position():
    raw = pl.DataFrame(
        {
            "item_id": [7, 8, 9],
            "user_id": ["a", None, "c"],
            "timestamp": [5, 6, 7],
            "weight": [2.5, 1.0, None],
            "event": ["view", "view", "buy"],
        }
    )
    rows = check_interactions(raw, "log.csv").rows
    assert rows.schema == {
        "row": pl.UInt32,
        "user_id": pl.String,
        "item_id": pl.String,
        "timestamp": pl.Float64,
        "weight": pl.Float32,
    }
    assert rows.rows() == [(0, "a", "7", 5.0, 2.5), (2, "c", "9", 7.0, 1.0)]


def test_weight_is_one_without_a_weight_column():
    assert check_interactions(log(), "log.csv").rows["weight"].to_list() == [1.0]


@pytest.mark.parametrize("text", ["a,b", " padded ", "日本", "-1", "null", 'q"uote'], ids=repr)
def test_ids_are_not_changed(text):
    rows = check_interactions(log(user_id=[text], item_id=[text]), "log.csv").rows
    assert (rows["user_id"].item(), rows["item_id"].item()) == (text, text)


@pytest.mark.parametrize("dtype", [pl.Categorical, pl.Int8, pl.UInt64], ids=str)
def test_ids_may_be_categories_or_integers_of_any_width(dtype):
    ids = pl.Series(["12"]).cast(pl.Int64).cast(dtype) if dtype.is_integer() else pl.Series(["12"], dtype=dtype)
    assert check_interactions(log(item_id=ids), "log.csv").rows["item_id"].to_list() == ["12"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2024-01-02T03:04:05Z", MOMENT),
        ("2024-01-02T03:04:05", MOMENT),
        ("2024-01-02 03:04:05", MOMENT),
        ("2024-01-02T03:04:05+00:00", MOMENT),
        ("2024-01-02T05:04:05+02:00", MOMENT),
        ("2024-01-01T21:34:05-05:30", MOMENT),
        ("2024-01-02 05:04:05+02:00", MOMENT),
        ("2024-01-02T05:04:05+0200", MOMENT),
        ("2024-01-02T03:04:05.25Z", MOMENT + 0.25),
        ("2024-01-02 03:04:05.250", MOMENT + 0.25),
        ("2024-01-02T03:04:05.000001", MOMENT + 1e-6),
        ("2024-01-02 03:04", MOMENT - 5),
        ("2024-01-02", MOMENT - 11_045),
        ("  2024-01-02  ", MOMENT - 11_045),
        ("1704164645", MOMENT),
        (" 1704164645.5 ", MOMENT + 0.5),
        ("0", 0.0),
    ],
    ids=lambda value: repr(value) if isinstance(value, str) else "",
)
def test_timestamps_as_text(text, seconds):
    assert moments(log(timestamp=[text])) == [pytest.approx(seconds, abs=1e-6)]


@pytest.mark.parametrize("text", ["2024-01-02T03:04", "2024-01-02T03:04Z", "2024-01-02T05:04+02:00"])
def test_timestamps_without_seconds(text):
    """ISO 8601 may leave the seconds out; HTML's datetime-local does."""
    assert moments(log(timestamp=[text])) == [MOMENT - 5]


def test_column_may_mix_timestamp_formats():
    assert moments(
        log(user_id=["a"] * 3, item_id=["i"] * 3, timestamp=["5", "1970-01-02", "1970-01-01T00:01:00Z"])
    ) == [
        5.0,
        86_400.0,
        60.0,
    ]


ROME = dt.timezone(dt.timedelta(hours=2))


@pytest.mark.parametrize(
    "value",
    [
        dt.datetime(2024, 1, 2, 3, 4, 5),  # noqa: DTZ001 - one without a zone is the case
        dt.datetime(2024, 1, 2, 3, 4, 5, tzinfo=dt.UTC),
        dt.datetime(2024, 1, 2, 5, 4, 5, tzinfo=ROME),
    ],
    ids=["no zone", "UTC", "+02:00"],
)
@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_timestamps_as_datetimes(value, unit):
    column = pl.Series([value])
    assert moments(log(timestamp=column.dt.cast_time_unit(unit))) == [MOMENT]


def test_timestamps_as_dates():
    assert moments(log(timestamp=[dt.date(1970, 1, 11)])) == [864_000.0]


@pytest.mark.parametrize("weight", [0.25, "0.25", " 0.25 "], ids=repr)
def test_weights_as_numbers_or_text(weight):
    assert check_interactions(log(weight=[weight]), "log.csv").rows["weight"].to_list() == [0.25]


# --- dead letters


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"user_id": [None]}, "user_id is missing"),
        ({"user_id": [""]}, "user_id is missing"),
        ({"item_id": [None]}, "item_id is missing"),
        ({"item_id": [""]}, "item_id is missing"),
        ({"timestamp": [None]}, "timestamp is missing"),
        ({"timestamp": ["  "]}, "timestamp is missing"),
        ({"timestamp": ["yesterday"]}, "timestamp is neither a number of seconds nor ISO 8601"),
        ({"timestamp": ["2024-13-01"]}, "timestamp is neither a number of seconds nor ISO 8601"),
        ({"timestamp": ["2023-02-29"]}, "timestamp is neither a number of seconds nor ISO 8601"),
        ({"timestamp": [math.nan]}, "timestamp is not a finite number"),
        ({"timestamp": ["nan"]}, "timestamp is not a finite number"),
        ({"timestamp": [math.inf]}, "timestamp is not a finite number"),
        ({"timestamp": ["-inf"]}, "timestamp is not a finite number"),
        ({"timestamp": [MOMENT * 1000]}, "outside 1970 to 2100"),
        ({"timestamp": ["1704164645000"]}, "outside 1970 to 2100"),
        ({"timestamp": [-1]}, "outside 1970 to 2100"),
        ({"timestamp": ["1969-12-31"]}, "outside 1970 to 2100"),
        ({"weight": [0.0]}, "weight is not finite and above 0"),
        ({"weight": [-2.0]}, "weight is not finite and above 0"),
        ({"weight": [math.nan]}, "weight is not finite and above 0"),
        ({"weight": [math.inf]}, "weight is not finite and above 0"),
        ({"weight": ["heavy"]}, "weight is not a number"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_invalid_row_is_rejected_with_its_reason(columns, reason):
    checked = check_interactions(log(**columns), "log.csv")
    assert checked.rows.height == 0
    assert checked.rejects["row"].to_list() == [0]
    assert reason in checked.rejects["reason"].item()


def test_row_with_several_errors_is_rejected_once():
    assert reasons(log(user_id=[None], timestamp=["x"], weight=[-1])) == ["user_id is missing"]


def test_dead_letter_keeps_the_raw_row_and_its_position():
    raw = pl.DataFrame(
        {
            "user_id": ["a", "b", "c"],
            "item_id": [1, 2, None],
            "timestamp": ["5", "soon", "7"],
            "event": ["view", 'b"uy', None],
        }
    )
    rejects = check_interactions(raw, "log.csv").rejects
    assert rejects["row"].to_list() == [1, 2]
    assert [json.loads(content) for content in rejects["content"]] == [
        {"user_id": "b", "item_id": 2, "timestamp": "soon", "event": 'b"uy'},
        {"user_id": "c", "item_id": None, "timestamp": "7", "event": None},
    ]


@pytest.mark.parametrize("weight", [1e39, 1e-50], ids="{}".format)
def test_valid_weights_are_finite_and_positive(weight):
    """What is used is a float32: a weight that has none is a dead letter too."""
    for used in check_interactions(log(weight=[weight]), "log.csv").rows["weight"].to_list():
        assert math.isfinite(used)
        assert used > 0


def test_column_named_row_is_kept():
    assert check_interactions(log(row=[3]), "log.csv").rows["item_id"].to_list() == ["i"]


def test_dead_letter_keeps_columns_with_internal_names():
    rejects = check_interactions(log(_user=["x"], item_id=[None]), "log.csv").rejects
    assert json.loads(rejects["content"].item())["_user"] == "x"


def test_an_empty_weight_is_one():
    assert check_interactions(log(weight=[""]), "log.csv").rows["weight"].to_list() == [1.0]


# --- events


def test_events_are_read_if_required_and_may_be_missing():
    raw = log(user_id=["a"] * 4, item_id=["i"] * 4, timestamp=[1] * 4, event=["view", None, "", " buy"])
    assert "event" not in check_interactions(raw, "log.csv").rows.columns
    rows = check_interactions(raw, "log.csv", events=True).rows
    assert rows.columns == ["row", "user_id", "item_id", "timestamp", "weight", "event"]
    assert rows["event"].to_list() == ["view", None, "", " buy"]


def test_events_may_be_numbers():
    rows = check_interactions(log(event=[3]), "log.csv", events=True).rows
    assert rows["event"].to_list() == ["3"]


def test_invalid_row_is_rejected_whatever_its_event():
    raw = log(user_id=["a", None], item_id=["i"] * 2, timestamp=[1, 1], event=["nothing", "view"])
    checked = check_interactions(raw, "log.csv", events=True)
    assert checked.rows["event"].to_list() == ["nothing"]
    assert checked.rejects["reason"].to_list() == ["user_id is missing"]


def test_rejects_a_table_without_events_only_if_required():
    assert check_interactions(log(), "log.csv").rows.height == 1
    with pytest.raises(InputError, match=r"log\.csv.*'event'"):
        check_interactions(log(), "log.csv", events=True)


def test_rejects_a_list_of_events():
    with pytest.raises(InputError, match=r"log\.csv: event must have one value per row"):
        check_interactions(log(event=[["view"]]), "log.csv", events=True)


# --- ratings


def ratings(values):
    """Rows with these ratings, checked."""
    raw = log(user_id=["a"] * len(values), item_id=["i"] * len(values), timestamp=[1] * len(values), rating=values)
    return check_interactions(raw, "log.csv", ratings=True)


def test_ratings_are_read_if_required_and_may_be_missing():
    rows = ratings([" 4.5", None, "", "-1", "1e1"]).rows
    assert rows.columns == ["row", "user_id", "item_id", "timestamp", "weight", "rating"]
    assert rows.schema["rating"] == pl.Float32
    assert rows["rating"].to_list() == [4.5, None, None, -1.0, 10.0]
    assert ratings([3, None, 5]).rows["rating"].to_list() == [3.0, None, 5.0]


def test_ratings_are_missing_without_the_column():
    assert check_interactions(log(), "log.csv", ratings=True).rows["rating"].to_list() == [None]


def test_rejects_ratings_that_are_not_finite_numbers():
    checked = ratings(["5", "five", "nan", "-inf", "1e99"])
    assert checked.rows["row"].to_list() == [0]
    not_finite = "rating is not a finite number"
    assert checked.rejects["reason"].to_list() == ["rating is not a number", *[not_finite] * 3]


@pytest.mark.parametrize("values", [["five"], [float("nan")], [[3]]], ids=repr)
def test_ratings_are_ignored_if_not_required(values):
    assert "rating" not in check_interactions(log(rating=values), "log.csv").rows.columns


@pytest.mark.parametrize("value", [True, [3]], ids=repr)
def test_rejects_a_column_of_ratings_that_are_not_numbers(value):
    with pytest.raises(InputError, match=r"log\.csv: rating must be numbers"):
        ratings([value])


# --- tables that cannot be used


@pytest.mark.parametrize("column", ["user_id", "item_id", "timestamp"])
def test_rejects_a_table_without_a_required_column(column):
    with pytest.raises(InputError, match=rf"log\.csv.*'{column}'"):
        check_interactions(log().drop(column), "log.csv")


@pytest.mark.parametrize(
    ("column", "values"),
    [("user_id", [1.5]), ("item_id", [["a"]]), ("timestamp", [True]), ("weight", [[1.0]])],
    ids=["float user", "list of items", "truth as timestamp", "list of weights"],
)
def test_rejects_a_column_of_an_unsupported_type(column, values):
    with pytest.raises(InputError, match=rf"log\.csv: {column} must be"):
        check_interactions(log(**{column: values}), "log.csv")


def test_chunk_without_rows_is_valid():
    checked = check_interactions(log().head(0), "log.csv")
    assert (checked.rows.height, checked.rejects.height) == (0, 0)


# --- any mix of rows


mixed_ids = st.none() | st.text(max_size=4) | st.sampled_from(["", "a", "b"])
mixed_moments = (
    st.none()
    | st.text(max_size=6)
    | st.floats().map(str)
    | st.integers(-(10**13), 10**13).map(str)
    | st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2200, 1, 1)).map(dt.datetime.isoformat)  # noqa: DTZ001
)
mixed_weights = st.none() | st.text(max_size=3) | st.floats().map(str)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(mixed_ids, mixed_ids, mixed_moments, mixed_weights), max_size=12))
def test_every_row_is_valid_or_rejected(rows):
    names = ("user_id", "item_id", "timestamp", "weight")
    raw = pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row")
    checked = check_interactions(raw, "log.csv")
    assert sorted([*checked.rows["row"], *checked.rejects["row"]]) == list(range(len(rows)))
    assert checked.rejects["reason"].null_count() == 0
    for row, user, item, seconds, _ in checked.rows.iter_rows():
        assert (user, item) == rows[row][:2]
        assert "" not in (user, item)
        assert 0 <= seconds <= 4_102_444_800
    for row, _, content in checked.rejects.iter_rows():
        assert json.loads(content) == dict(zip(names, rows[row], strict=True))


# --- items


ROLES = ItemsConfig(title="name", categorical=("brand",), multi_categorical=("tags",), numeric=("price", "year"))


def goods(**columns):
    rows = {"item_id": ["i"], "name": ["n"], "brand": ["b"], "tags": ["x"], "price": [1.5], "year": [1999]}
    return pl.DataFrame(rows | columns, strict=False)


def test_valid_items_are_typed():
    raw = goods(item_id=[12], brand=[7], color=["red"])
    rows = check_items(raw, ROLES, "items.csv").rows
    assert rows.schema == {
        "row": pl.UInt32,
        "item_id": pl.String,
        "title": pl.String,
        "brand": pl.String,
        "tags": pl.List(pl.String),
        "price": pl.Float64,
        "year": pl.Float64,
    }
    assert rows.row(0) == (0, "12", "n", "7", ["x"], 1.5, 1999.0)


def test_text_is_not_changed_and_may_be_the_title():
    roles = ItemsConfig(title="name", text=("name", "blurb"))
    raw = pl.DataFrame({"item_id": ["a", "b"], "name": ["N", None], "blurb": [" Some Text, ", None]})
    checked = check_items(raw, roles, "items.csv")
    assert checked.rows.columns == ["row", "item_id", "title", "name", "blurb"]
    assert checked.rows.rows() == [(0, "a", "N", "N", " Some Text, "), (1, "b", None, None, None)]
    titled = check_items(raw.rename({"name": "title"}), ItemsConfig(title="title", text=("title",)), "items.csv")
    assert titled.rows.rows() == [(0, "a", "N"), (1, "b", None)]


def test_evidence_is_kept_as_text():
    roles = ItemsConfig(text=("blurb",), evidence=("plot", "genre"))
    raw = pl.DataFrame({"item_id": ["a", "b"], "plot": ["A plot", None], "blurb": ["x", "y"], "genre": [3, 4]})
    rows = check_items(raw, roles, "items.csv").rows
    assert rows.select("item_id", "blurb", "plot", "genre").rows() == [
        ("a", "x", "A plot", "3"),
        ("b", "y", None, "4"),
    ]
    with pytest.raises(InputError, match=r"items\.csv.*'plot'"):
        check_items(raw.drop("plot"), roles, "items.csv")


def test_rejects_missing_and_list_valued_text_columns():
    roles = ItemsConfig(text=("blurb",))
    with pytest.raises(InputError, match=r"items\.csv.*'blurb'"):
        check_items(pl.DataFrame({"item_id": ["a"]}), roles, "items.csv")
    with pytest.raises(InputError, match=r"items\.csv: blurb must have one value per row"):
        check_items(pl.DataFrame({"item_id": ["a"], "blurb": [["x", "y"]]}), roles, "items.csv")


def test_titles_are_null_without_a_title_column():
    rows = check_items(pl.DataFrame({"item_id": ["a"], "name": ["n"]}), ItemsConfig(), "items.csv").rows
    assert rows.rows() == [(0, "a", None)]


def test_first_row_of_duplicate_ids_is_used():
    raw = pl.DataFrame({"item_id": ["a", "b", "a", "a"], "name": ["1", "2", "3", "4"]})
    checked = check_items(raw, ItemsConfig(title="name"), "items.csv")
    assert checked.rows.rows() == [(0, "a", "1"), (1, "b", "2")]
    assert checked.rejects.select("row", "reason").rows() == [
        (2, "item_id is a duplicate"),
        (3, "item_id is a duplicate"),
    ]


def test_rows_without_an_id_are_not_duplicates_of_each_other():
    checked = check_items(pl.DataFrame({"item_id": [None, "", None, "a"]}), ItemsConfig(), "items.csv")
    assert checked.rejects["reason"].to_list() == ["item_id is missing"] * 3
    assert checked.rows["item_id"].to_list() == ["a"]


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"price": ["cheap"]}, "price is not a number"),
        ({"price": [math.nan]}, "price is not a finite number"),
        ({"price": ["inf"]}, "price is not a finite number"),
        ({"year": [-math.inf]}, "year is not a finite number"),
    ],
    ids=["text", "NaN", "inf", "-inf"],
)
def test_rejects_an_item_with_an_invalid_number(columns, reason):
    checked = check_items(goods(**columns), ROLES, "items.csv")
    assert checked.rows.height == 0
    assert checked.rejects["reason"].to_list() == [reason]
    assert json.loads(checked.rejects["content"].item())["item_id"] == "i"


@pytest.mark.parametrize("empty", [None, "", "  "], ids=repr)
def test_missing_number_is_allowed(empty):
    assert check_items(goods(price=[empty]), ROLES, "items.csv").rows["price"].to_list() == [None]


@pytest.mark.parametrize(
    ("separator", "text", "tokens"),
    [
        ("|", "x|y", ["x", "y"]),
        ("|", " x | y z|", ["x", "y z"]),
        ("|", "y|x|y", ["y", "x"]),
        ("|", "x,y", ["x,y"]),
        (",", "x,y|z", ["x", "y|z"]),
        (" :: ", "x :: y", ["x", "y"]),
        (".", "a.b", ["a", "b"]),
        ("|", "", []),
        ("|", "||", []),
        ("|", None, None),
    ],
    ids=repr,
)
def test_text_is_split_at_the_separator(separator, text, tokens):
    roles = ROLES.model_copy(update={"separator": separator})
    assert check_items(goods(tags=pl.Series([text], dtype=pl.String)), roles, "items.csv").rows["tags"].to_list() == [
        tokens
    ]


@pytest.mark.parametrize(
    ("given_tokens", "tokens"),
    [
        (["x|y", " z "], ["x|y", "z"]),
        (["b", "a", "b"], ["b", "a"]),
        ([None, "", "a"], ["a"]),
        ([], []),
        ([3, 1], ["3", "1"]),
    ],
    ids=repr,
)
def test_lists_are_not_changed(given_tokens, tokens):
    """Not cut at the separator; blanks around a token, empty tokens and repeats are left out."""
    dtype = pl.List(pl.Int64 if given_tokens == [3, 1] else pl.String)
    raw = goods(tags=pl.Series([given_tokens], dtype=dtype))
    assert check_items(raw, ROLES, "items.csv").rows["tags"].to_list() == [tokens]


@pytest.mark.parametrize("column", ["item_id", "name", "brand", "tags", "year"])
def test_rejects_items_without_a_configured_column(column):
    with pytest.raises(InputError, match=rf"items\.csv.*'{column}'"):
        check_items(goods().drop(column), ROLES, "items.csv")


@pytest.mark.parametrize(
    ("column", "values"),
    [("item_id", [2.5]), ("price", [[1.0]])],
    ids=["float id", "list of prices"],
)
def test_rejects_an_item_column_of_an_unsupported_type(column, values):
    with pytest.raises(InputError, match=rf"items\.csv: {column} must be"):
        check_items(goods(**{column: values}), ROLES, "items.csv")


@pytest.mark.parametrize("column", ["name", "brand"])
def test_rejects_lists_as_titles_and_categories(column):
    with pytest.raises(InputError, match=rf"items\.csv: {column} must have one value per row"):
        check_items(goods(**{column: [["a", "b"]]}), ROLES, "items.csv")


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.tuples(mixed_ids, mixed_weights, st.none() | st.text("ab| ", max_size=6)), max_size=10))
def test_every_item_is_valid_or_rejected(rows):
    roles = ItemsConfig(multi_categorical=("tags",), numeric=("price",))
    raw = pl.DataFrame(rows, schema=dict.fromkeys(("item_id", "price", "tags"), pl.String), orient="row")
    checked = check_items(raw, roles, "items.csv")
    assert sorted([*checked.rows["row"], *checked.rejects["row"]]) == list(range(len(rows)))
    assert checked.rows["item_id"].is_unique().all()
    for tags in checked.rows["tags"].drop_nulls():
        assert all(tag == tag.strip() != "" for tag in tags)


@pytest.mark.parametrize(
    "values",
    [
        [True, False, None],
        [1, 0, None],
        [1.0, 0.0, None],
        ["TRUE", " false ", ""],
        ["1", "0", None],
    ],
    ids=repr,
)
def test_accepts_several_forms_of_available(values):
    raw = pl.DataFrame({"item_id": ["a", "b", "c"], "stock": values})
    rows = check_items(raw, ItemsConfig(available="stock"), "items.csv").rows
    assert rows.schema["available"] == pl.Boolean
    assert rows["available"].to_list() == [True, False, None]


def test_rejects_other_values_of_available():
    raw = pl.DataFrame({"item_id": ["a", "b"], "stock": ["perhaps", "2"]})
    checked = check_items(raw, ItemsConfig(available="stock"), "items.csv")
    assert checked.rejects["reason"].to_list() == ["stock is neither true nor false"] * 2


def test_rejects_items_without_the_available_column():
    with pytest.raises(InputError, match=r"items\.csv.*'stock'"):
        check_items(pl.DataFrame({"item_id": ["a"]}), ItemsConfig(available="stock"), "items.csv")
