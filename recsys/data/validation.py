"""Validation of the interaction table and the item table, row by row.

The checks take a chunk of raw rows with any column types. They return the usable rows, converted to fixed types, and
the rejected rows with a reason each. No row is altered to make it valid, and none is lost: usable + rejected =
received.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import polars as pl

from recsys.config.column_rules import ColumnRules
from recsys.config.sections import ItemsConfig
from recsys.data.column_rules import violations
from recsys.errors import InputError

REQUIRED = ("user_id", "item_id", "timestamp")

NOT_IN_JSON = ("Binary", "Object")
"""Types without a JSON representation, also inside lists and structs."""

EARLIEST, LATEST = 0.0, 4_102_444_800.0  # 1970-01-01 to 2100-01-01, in seconds
ISO_FORMATS = (
    "%+",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M%#z",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d",
)
"""Tried in this order; a time without a zone is UTC."""

FLAGS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
"""Text -> boolean, for the column `available`."""

REASON = "reason"
DUPLICATE_ITEM = "item_id is a duplicate"
SCHEMA = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Float64, "weight": pl.Float32}

NO_COLUMN_RULES: Mapping[str, ColumnRules] = {}


class CheckedRows(NamedTuple):
    """The result of a check."""

    rows: pl.DataFrame
    """Usable rows in fixed types, with `row`, the position in the chunk (uint32)."""
    rejects: pl.DataFrame
    """`row` (uint32), `reason` (text) and `content` (the raw row as JSON)."""


def check_interactions(
    raw: pl.DataFrame,
    origin: str,
    *,
    events: bool = False,
    ratings: bool = False,
    column_rules: Mapping[str, ColumnRules] = NO_COLUMN_RULES,
) -> CheckedRows:
    """Split a chunk of interactions into usable rows (`SCHEMA` and `row`) and rejects.

    Args:
        raw: `user_id`, `item_id` (text or integers), `timestamp` (seconds, or ISO 8601 text, or a
            datetime; one without a zone is UTC), optional `weight` (> 0, 1 where empty); other columns are
            ignored.
        origin: the file, for messages.
        events: whether to return `event` (text, may be null) too.
        ratings: whether to return `rating` (float32, null where empty or without the column) too.
        column_rules: further rules by column.

    Raises:
        InputError: a column is missing, or its type cannot be converted.
    """
    require_columns(raw, (*REQUIRED, *_required_by(column_rules)), origin)
    if events and "event" not in raw.columns:
        raise InputError(
            f"{origin}: column 'event' must exist if prepare.event_weights is set. "
            f"Received columns: {', '.join(raw.columns)}."
        )
    has_weight, has_event = "weight" in raw.columns, "event" in raw.columns and (events or "event" in column_rules)
    has_rating = "rating" in raw.columns and (ratings or "rating" in column_rules)
    typed = raw.select(
        user_id=as_id(raw, "user_id", origin),
        item_id=as_id(raw, "item_id", origin),
        timestamp=_seconds(raw, origin),
        has_timestamp=~_is_blank(raw, "timestamp"),
        weight=as_number(raw, "weight", origin).cast(pl.Float32) if has_weight else pl.lit(None, pl.Float32),
        has_weight_value=~_is_blank(raw, "weight") if has_weight else pl.lit(False),
        event=_text(raw, "event", origin) if has_event else pl.lit(None, pl.String),
        rating=as_number(raw, "rating", origin).cast(pl.Float32) if has_rating else pl.lit(None, pl.Float32),
        has_rating_value=~_is_blank(raw, "rating") if has_rating else pl.lit(False),
    )
    seconds, weight, has_weight_value = pl.col("timestamp"), pl.col("weight"), pl.col("has_weight_value")
    reason = first_reason(
        {
            "user_id is missing": pl.col("user_id").fill_null("") == "",
            "item_id is missing": pl.col("item_id").fill_null("") == "",
            "timestamp is missing": ~pl.col("has_timestamp"),
            "timestamp is neither a number of seconds nor ISO 8601": seconds.is_null(),
            "timestamp is not a finite number": ~seconds.is_finite(),
            "timestamp is outside 1970 to 2100 (seconds are expected, not milliseconds)": ~seconds.is_between(
                EARLIEST, LATEST
            ),
            "weight is not a number": has_weight_value & weight.is_null(),
            "weight is not finite and above 0": has_weight_value & ~(weight.is_finite() & (weight > 0)),
            "rating is not a number": pl.col("has_rating_value") & pl.col("rating").is_null(),
            "rating is not a finite number": ~pl.col("rating").is_finite(),
            **violations(typed, column_rules, "interactions"),
        }
    )
    checked = typed.with_columns(reason=reason, weight=weight.fill_null(1.0))
    return split_rows(raw, checked, [*SCHEMA, *["event"] * events, *["rating"] * ratings])


def check_items(
    raw: pl.DataFrame, items: ItemsConfig, origin: str, column_rules: Mapping[str, ColumnRules] = NO_COLUMN_RULES
) -> CheckedRows:
    """Split items into usable rows and rejects.

    Usable rows have `item_id`, `title` (text, may be null) and the feature columns: categorical as text,
    multi-categorical as lists of unique text, numeric as float64, text and evidence as text (also if it is the title),
    and `available` as a boolean; each may be null. Of several usable rows with the same id, the first is used and the
    others are rejects.

    Args:
        raw: columns of any type; the config says which are used.
        items: the roles of the columns.
        origin: the file, for messages.
        column_rules: further rules by column of the file.

    Raises:
        InputError: a column that the config names is missing, or its type cannot be converted.
    """
    texts = (*items.categorical, *items.text, *items.evidence)
    named = [column for column in (items.title, items.available, *texts) if column is not None]
    require_columns(raw, ("item_id", *named, *items.multi_categorical, *items.numeric), origin)  # all that has rules
    columns = {"item_id": as_id(raw, "item_id", origin)}
    columns["title"] = _text(raw, items.title, origin) if items.title else pl.lit(None, pl.String)
    columns |= {column: _text(raw, column, origin) for column in texts}
    columns |= {column: _tokens(raw, column, items.separator, origin) for column in items.multi_categorical}
    columns |= {column: as_number(raw, column, origin) for column in items.numeric}
    if items.available is not None:
        columns["available"] = _flag(raw, items.available, origin)
    # `alias` accepts any column name, keyword arguments do not
    titled = {items.title: columns["title"]} if items.title is not None and items.title in column_rules else {}
    typed = raw.select(expression.alias(column) for column, expression in (titled | columns).items())
    nullable = [*items.numeric, *filter(None, [items.available])]
    has_value = raw.select((~_is_blank(raw, column)).alias(column) for column in nullable)

    reasons = {"item_id is missing": pl.col("item_id").fill_null("") == ""}
    for column in items.numeric:
        reasons[f"{column} is not a number"] = pl.col(column).is_null() & pl.lit(has_value[column])
        reasons[f"{column} is not a finite number"] = ~pl.col(column).is_finite()
    if items.available is not None:
        reasons[f"{items.available} is neither true nor false"] = pl.col("available").is_null() & pl.lit(
            has_value[items.available]
        )
    reasons |= violations(typed, column_rules, "items")
    checked = typed.with_columns(first_reason(reasons).alias(REASON))
    is_duplicate = ~pl.struct("item_id", pl.col(REASON).is_null()).is_first_distinct()
    duplicate = pl.when(is_duplicate).then(pl.lit(DUPLICATE_ITEM))
    return split_rows(raw, checked.with_columns(pl.coalesce(REASON, duplicate).alias(REASON)), [*columns])


def _required_by(column_rules: Mapping[str, ColumnRules]) -> tuple[str, ...]:
    """Return the columns that must exist because of their rules."""
    return tuple(column for column, rules in column_rules.items() if not rules.missing)


def require_columns(raw: pl.DataFrame, columns: tuple[str, ...], origin: str) -> None:
    """Check that columns exist.

    Raises:
        InputError: a column is missing.
    """
    missing = [column for column in columns if column not in raw.columns]
    if missing:
        raise InputError(
            f"{origin}: column {', '.join(map(repr, missing))} must exist. "
            f"Received columns: {', '.join(raw.columns) or 'none'}."
        )


def as_id(raw: pl.DataFrame, column: str, origin: str) -> pl.Expr:
    """Convert a column of ids to text.

    Raises:
        InputError: the column is neither text nor integers.
    """
    dtype = raw.schema[column]
    if not (dtype.is_integer() or isinstance(dtype, pl.String | pl.Categorical | pl.Enum | pl.Null)):
        raise InputError(f"{origin}: {column} must be text or integers. Received: {dtype}.")
    return pl.col(column).cast(pl.String)


def as_number(raw: pl.DataFrame, column: str, origin: str) -> pl.Expr:
    """Convert a column to float64; null where a value is not a number.

    Raises:
        InputError: the column is neither numeric nor text.
    """
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
    seconds = as_number(raw, "timestamp", origin)
    if not isinstance(dtype, pl.String):
        return seconds
    text = column.str.strip_chars()
    moments = [
        text.str.to_datetime(form, time_unit="us", time_zone="UTC", strict=False, ambiguous="earliest")
        for form in ISO_FORMATS
    ]
    return pl.coalesce(seconds, *(moment.dt.timestamp("us") / 1e6 for moment in moments))


def _text(raw: pl.DataFrame, column: str, origin: str) -> pl.Expr:
    dtype = raw.schema[column]
    if dtype.is_nested() or isinstance(dtype, pl.Binary | pl.Object):
        raise InputError(f"{origin}: {column} must have one value per row. Received: {dtype}.")
    return pl.col(column).cast(pl.String)


def _flag(raw: pl.DataFrame, column: str, origin: str) -> pl.Expr:
    """Convert a column to booleans; null where a value is neither true nor false."""
    words = _text(raw, column, origin).str.strip_chars().str.to_lowercase()
    return words.replace_strict(FLAGS, default=None, return_dtype=pl.Boolean)


def _tokens(raw: pl.DataFrame, column: str, separator: str, origin: str) -> pl.Expr:
    dtype = raw.schema[column]
    if isinstance(dtype, pl.List | pl.Array):
        tokens = pl.col(column).cast(pl.List(pl.String))
    else:
        tokens = _text(raw, column, origin).str.split(separator)
    stripped = tokens.list.eval(pl.element().str.strip_chars())
    return stripped.list.eval(pl.element().filter(pl.element().fill_null("") != "")).list.unique(maintain_order=True)


def _is_blank(raw: pl.DataFrame, column: str) -> pl.Expr:
    if isinstance(raw.schema[column], pl.String):
        return pl.col(column).str.strip_chars().fill_null("") == ""
    return pl.col(column).is_null()


def first_reason(reasons: dict[str, pl.Expr]) -> pl.Expr:
    """Return the reason of the first rule that a row violates; null if it violates none."""
    return pl.coalesce(*(pl.when(mask.fill_null(False)).then(pl.lit(reason)) for reason, mask in reasons.items()))


def rows_as_json(rows: pl.DataFrame) -> pl.Series:
    """Convert each row to JSON for dead letters; floats are written as text, because JSON has no NaN."""
    columns = [name for name, dtype in rows.schema.items() if not any(kind in str(dtype) for kind in NOT_IN_JSON)]
    printable = rows.select(columns).with_columns(pl.selectors.float().cast(pl.String))
    return printable.select(pl.struct(pl.all()).struct.json_encode().alias("content"))["content"]


def split_rows(raw: pl.DataFrame, checked: pl.DataFrame, columns: list[str]) -> CheckedRows:
    """Return the rows without a reason, with the given columns, and those with a reason, as raw JSON."""
    rejected = checked[REASON].is_not_null()
    position = pl.Series("row", np.arange(raw.height, dtype=np.uint32))
    return CheckedRows(
        checked.filter(~rejected).select(columns).insert_column(0, position.filter(~rejected)),
        pl.DataFrame([position.filter(rejected), checked[REASON].filter(rejected), rows_as_json(raw.filter(rejected))]),
    )
