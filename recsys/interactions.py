"""The interaction table and the item table, and the checks that every row has to pass.

Takes a chunk of raw rows (any column types), hands on the usable rows in our types and the others with a
reason each. No row is changed to make it fit, and none is lost: usable + rejected = received.
"""

from __future__ import annotations

from typing import NamedTuple

import polars as pl

from recsys.config import ItemsConfig
from recsys.errors import InputError

REQUIRED = ("user_id", "item_id", "timestamp")
OPTIONAL = ("weight",)

EARLIEST, LATEST = 0.0, 4_102_444_800.0  # 1970-01-01 to 2100-01-01, in seconds
ISO_FORMATS = ("%+", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d")

SCHEMA = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Float64, "weight": pl.Float32}


class Checked(NamedTuple):
    """Rows in two heaps."""

    rows: pl.DataFrame
    """Usable rows, in our types, with `row`, the position in the chunk (uint32)."""
    rejects: pl.DataFrame
    """`row` (uint32), `reason` (text) and `content` (the raw row as JSON)."""


def check_interactions(raw: pl.DataFrame, origin: str) -> Checked:
    """Split a chunk of interactions into usable rows (`SCHEMA` and `row`) and rejects.

    Args:
        raw: `user_id`, `item_id` (text or integers), `timestamp` (seconds, or ISO 8601 text, or a
            datetime; one without a zone is UTC), optional `weight` (> 0, 1 where empty); other columns are
            ignored.
        origin: the file, for messages.

    Raises:
        InputError: a column is missing, or of a type that can never fit.
    """
    _require(raw, REQUIRED, origin)
    weight = _number(raw, "weight", origin) if "weight" in raw.columns else pl.lit(1.0)
    given_weight = pl.col("weight").is_not_null() if "weight" in raw.columns else pl.lit(False)
    timestamp = _seconds(raw, origin)
    typed = raw.with_row_index("row").with_columns(
        _identifier(raw, "user_id", origin).alias("_user"),
        _identifier(raw, "item_id", origin).alias("_item"),
        timestamp.alias("_seconds"),
        weight.cast(pl.Float64).alias("_weight"),
        given_weight.alias("_weight_given"),
    )
    reason = _first_reason(
        {
            "user_id is missing": pl.col("_user").fill_null("") == "",
            "item_id is missing": pl.col("_item").fill_null("") == "",
            "timestamp is missing": _is_blank(raw, "timestamp"),
            "timestamp is neither a number of seconds nor ISO 8601": pl.col("_seconds").is_null(),
            "timestamp is not a finite number": ~pl.col("_seconds").is_finite(),
            "timestamp is outside 1970 to 2100 (seconds are expected, not milliseconds)": ~pl.col(
                "_seconds"
            ).is_between(EARLIEST, LATEST),
            "weight is not a number": pl.col("_weight_given") & pl.col("_weight").is_null(),
            "weight is not finite and above 0": pl.col("_weight_given")
            & ~(pl.col("_weight").is_finite() & (pl.col("_weight") > 0)),
        }
    )
    rows = {
        "user_id": pl.col("_user"),
        "item_id": pl.col("_item"),
        "timestamp": pl.col("_seconds"),
        "weight": pl.col("_weight").fill_null(1.0).cast(pl.Float32),
    }
    return _split(typed, reason, rows, raw.columns)


def check_items(raw: pl.DataFrame, items: ItemsConfig, origin: str) -> Checked:
    """Split items into usable rows and rejects.

    Usable rows have `item_id`, `title` (text, may be null) and the feature columns: categorical as text,
    multi-categorical as lists of text without repeats, numeric as float64; each may be null. Of several rows
    with one id the first is used, the others are rejects.

    Raises:
        InputError: a column that the config names is missing, or of a type that can never fit.
    """
    named = [column for column in (items.title, *items.categorical) if column is not None]
    _require(raw, ("item_id", *named, *items.multi_categorical, *items.numeric), origin)
    numbers = {column: f"_number_{position}" for position, column in enumerate(items.numeric)}
    typed = raw.with_row_index("row").with_columns(
        _identifier(raw, "item_id", origin).alias("_item"),
        *(_number(raw, column, origin).alias(name) for column, name in numbers.items()),
    )
    reasons = {
        "item_id is missing": pl.col("_item").fill_null("") == "",
        "item_id was seen before": ~pl.col("_item").is_first_distinct(),
    }
    for column, name in numbers.items():
        reasons[f"{column} is not a number"] = pl.col(name).is_null() & ~_is_blank(raw, column)
        reasons[f"{column} is not a finite number"] = ~pl.col(name).is_finite()
    title = pl.col(items.title).cast(pl.String) if items.title else pl.lit(None, pl.String)
    rows = {"item_id": pl.col("_item"), "title": title}
    rows |= {column: pl.col(column).cast(pl.String) for column in items.categorical}
    rows |= {column: _tokens(raw, column, items.separator) for column in items.multi_categorical}
    rows |= {column: pl.col(name) for column, name in numbers.items()}
    return _split(typed, _first_reason(reasons), rows, raw.columns)


def _require(raw: pl.DataFrame, columns: tuple[str, ...], origin: str) -> None:
    missing = [column for column in columns if column not in raw.columns]
    if missing:
        raise InputError(
            f"{origin}: column {', '.join(map(repr, missing))} must be there. "
            f"Received columns: {', '.join(raw.columns) or 'none'}."
        )


def _identifier(raw: pl.DataFrame, column: str, origin: str) -> pl.Expr:
    dtype = raw.schema[column]
    if not (dtype.is_integer() or isinstance(dtype, pl.String | pl.Categorical | pl.Enum | pl.Null)):
        raise InputError(f"{origin}: {column} must be text or integers. Received: {dtype}.")
    return pl.col(column).cast(pl.String)


def _number(raw: pl.DataFrame, column: str, origin: str) -> pl.Expr:
    dtype = raw.schema[column]
    if not (dtype.is_numeric() or isinstance(dtype, pl.String | pl.Null)):
        raise InputError(f"{origin}: {column} must be numbers. Received: {dtype}.")
    text = pl.col(column).str.strip_chars() if isinstance(dtype, pl.String) else pl.col(column)
    return text.cast(pl.Float64, strict=False)


def _seconds(raw: pl.DataFrame, origin: str) -> pl.Expr:
    dtype = raw.schema["timestamp"]
    column = pl.col("timestamp")
    if isinstance(dtype, pl.Datetime):
        return column.dt.timestamp("us") / 1e6
    if isinstance(dtype, pl.Date):
        return column.cast(pl.Datetime("us")).dt.timestamp("us") / 1e6
    seconds = _number(raw, "timestamp", origin)
    if not isinstance(dtype, pl.String):
        return seconds
    text = column.str.strip_chars()
    moments = [
        text.str.to_datetime(form, time_unit="us", time_zone="UTC", strict=False, ambiguous="earliest")
        for form in ISO_FORMATS
    ]
    return pl.coalesce(seconds, *(moment.dt.timestamp("us") / 1e6 for moment in moments))


def _tokens(raw: pl.DataFrame, column: str, separator: str) -> pl.Expr:
    if isinstance(raw.schema[column], pl.List):
        tokens = pl.col(column).cast(pl.List(pl.String))
    else:
        tokens = pl.col(column).cast(pl.String).str.split(separator)
    stripped = tokens.list.eval(pl.element().str.strip_chars())
    return stripped.list.eval(pl.element().filter(pl.element().fill_null("") != "")).list.unique(maintain_order=True)


def _is_blank(raw: pl.DataFrame, column: str) -> pl.Expr:
    if isinstance(raw.schema[column], pl.String):
        return pl.col(column).str.strip_chars().fill_null("") == ""
    return pl.col(column).is_null()


def _first_reason(reasons: dict[str, pl.Expr]) -> pl.Expr:
    """The first rule that a row breaks, null where it breaks none."""
    return pl.coalesce(*(pl.when(broken.fill_null(False)).then(pl.lit(reason)) for reason, broken in reasons.items()))


def _split(typed: pl.DataFrame, reason: pl.Expr, rows: dict[str, pl.Expr], raw_columns: list[str]) -> Checked:
    judged = typed.with_columns(reason.alias("_reason"))
    good = judged.filter(pl.col("_reason").is_null())
    bad = judged.filter(pl.col("_reason").is_not_null())
    return Checked(
        good.select(pl.col("row"), **rows),
        bad.select(
            pl.col("row"),
            pl.col("_reason").alias("reason"),
            pl.struct(pl.col(raw_columns)).struct.json_encode().alias("content"),
        ),
    )
