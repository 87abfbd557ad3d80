"""What the team promises of its columns, as masks over rows in our types.

A contract judges what is there; only its rule `missing` judges what is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import polars as pl

from recsys.config.sections import Contract


def violations(rows: pl.DataFrame, contracts: Mapping[str, Contract], table: str) -> dict[str, pl.Expr]:
    """Reason -> the rows that break a contract for it, true or false (or null, where there is no value).

    Args:
        rows: the columns under contract: text, float64 or float32, lists of text; timestamps in seconds.
        contracts: by column.
        table: `interactions` or `items`, for the reasons.
    """
    return {
        f"{column} is {reason} (contracts.{table}.{column}.{rule})": broken
        for column, contract in contracts.items()
        for rule, reason, broken in _rules(column, rows.schema[column], contract)
    }


def _rules(column: str, dtype: pl.DataType, contract: Contract) -> Iterator[tuple[str, str, pl.Expr]]:
    """Name of each rule, what a value is that breaks it, and the mask."""
    values = pl.col(column)
    there = _is_there(values, dtype)
    if not contract.missing:
        yield "missing", "missing", ~there
    if contract.of_numbers and isinstance(dtype, pl.String):
        numbers = values.str.strip_chars().cast(pl.Float64, strict=False)
        values, dtype = pl.when(numbers.is_finite()).then(numbers), pl.Float64()
        yield "type", "not a number", there & values.is_null()
    if contract.type == "integer":
        yield "type", "not an integer", values != values.floor()
    # in the precision of the column: as float32, 0.1 is above 0.1
    if contract.min is not None:
        yield "min", f"below {contract.min:.15g}", values < pl.lit(contract.min, dtype)
    if contract.max is not None:
        yield "max", f"above {contract.max:.15g}", values > pl.lit(contract.max, dtype)
    if contract.earliest is not None:
        yield "earliest", f"before {contract.earliest.isoformat()}", values < contract.earliest.timestamp()
    if contract.latest is not None:
        yield "latest", f"after {contract.latest.isoformat()}", values > contract.latest.timestamp()
    if contract.allowed is not None and isinstance(dtype, pl.List):
        unknown = values.list.set_difference(pl.lit(pl.Series([list(contract.allowed)])))
        yield "allowed", "not of the allowed values", unknown.list.len() > 0
    elif contract.allowed is not None:
        allowed = pl.Series(contract.allowed, dtype=dtype)
        yield "allowed", "not of the allowed values", there & ~values.is_in(allowed.implode())


def _is_there(values: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    if isinstance(dtype, pl.String):
        return values.str.strip_chars().fill_null("") != ""
    if isinstance(dtype, pl.List):
        return values.list.len().fill_null(0) > 0
    return values.is_not_null()
