"""Rules for the columns of the input (`ColumnRules` in the config), as masks over validated rows.

A rule applies to the values that exist; only the rule `missing` applies to missing values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import polars as pl

from recsys.config.column_rules import ColumnRules


def violations(rows: pl.DataFrame, column_rules: Mapping[str, ColumnRules], table: str) -> dict[str, pl.Expr]:
    """Return reason -> mask of the rows that violate a rule; the mask is null where there is no value.

    Args:
        rows: the columns with rules: text, float64, float32 or lists of text; timestamps in seconds.
        column_rules: the rules by column.
        table: `interactions` or `items`, for the reasons.
    """
    return {
        f"{column} is {reason} (column_rules.{table}.{column}.{rule})": mask
        for column, rules in column_rules.items()
        for rule, reason, mask in _rules(column, rows.schema[column], rules)
    }


def _rules(column: str, dtype: pl.DataType, rules: ColumnRules) -> Iterator[tuple[str, str, pl.Expr]]:
    """Yield the name of each rule, the description of an invalid value, and the mask of violations."""
    values = pl.col(column)
    has_value = _has_value(values, dtype)
    if not rules.missing:
        yield "missing", "missing", ~has_value
    if rules.needs_numbers and isinstance(dtype, pl.String):
        numbers = values.str.strip_chars().cast(pl.Float64, strict=False)
        values, dtype = pl.when(numbers.is_finite()).then(numbers), pl.Float64()
        yield "type", "not a number", has_value & values.is_null()
    if rules.type == "integer":
        yield "type", "not an integer", values != values.floor()
    # in the precision of the column: 0.1 as float32 is greater than 0.1 as float64
    if rules.min is not None:
        yield "min", f"below {rules.min:.15g}", values < pl.lit(rules.min, dtype)
    if rules.max is not None:
        yield "max", f"above {rules.max:.15g}", values > pl.lit(rules.max, dtype)
    if rules.earliest is not None:
        yield "earliest", f"before {rules.earliest.isoformat()}", values < rules.earliest.timestamp()
    if rules.latest is not None:
        yield "latest", f"after {rules.latest.isoformat()}", values > rules.latest.timestamp()
    if rules.allowed is not None and isinstance(dtype, pl.List):
        other_values = values.list.set_difference(pl.lit(pl.Series([list(rules.allowed)])))
        yield "allowed", "not of the allowed values", other_values.list.len() > 0
    elif rules.allowed is not None:
        allowed = pl.Series(rules.allowed, dtype=dtype)
        yield "allowed", "not of the allowed values", has_value & ~values.is_in(allowed.implode())


def _has_value(values: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    if isinstance(dtype, pl.String):
        return values.str.strip_chars().fill_null("") != ""
    if isinstance(dtype, pl.List):
        return values.list.len().fill_null(0) > 0
    return values.is_not_null()
