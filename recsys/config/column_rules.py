"""Rules for the values of input columns, and which rules a kind of column may have."""

from __future__ import annotations

import difflib
from datetime import datetime, time
from typing import Annotated, Literal

from pydantic import Field, model_validator

from recsys.config.table import Table, instant


class ColumnRules(Table):
    """Rules for the values of one column. A rule that is not set allows all values."""

    type: Literal["integer", "number"] | None = None
    """`integer`: numbers without a fraction; `number`: any number. Implied if another rule requires numbers."""
    min: float | None = None
    """Smallest number."""
    max: float | None = None
    """Largest number."""
    allowed: Annotated[tuple[str | float, ...], Field(strict=False, min_length=1)] | None = None
    """All allowed values: strings or numbers."""
    earliest: Annotated[datetime, instant(time.min)] | None = None
    """Earliest timestamp. A date means midnight UTC."""
    latest: Annotated[datetime, instant(time.max)] | None = None
    """Latest timestamp. A date means the end of that day, UTC."""
    missing: bool = True
    """Whether values may be missing: null, empty or blank."""

    @property
    def needs_numbers(self) -> bool:
        """Whether a rule applies to numbers only."""
        numbers = self.allowed is not None and not isinstance(self.allowed[0], str)
        return numbers or any(rule is not None for rule in (self.type, self.min, self.max))

    @property
    def stated(self) -> set[str]:
        """Names of the rules that are set."""
        return set(self.model_dump(exclude_defaults=True))

    @model_validator(mode="after")
    def _check_consistency(self) -> ColumnRules:
        if not self.stated:
            raise ValueError(f"must state a rule: {', '.join(ColumnRules.model_fields)}")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("min must not be above max")
        if self.earliest is not None and self.latest is not None and self.earliest > self.latest:
            raise ValueError("earliest must not be after latest")
        if self.allowed is not None and len({isinstance(value, str) for value in self.allowed}) > 1:
            raise ValueError("allowed must list strings or numbers, not both")
        if self.allowed is not None and self.stated & {"type", "min", "max"}:
            raise ValueError("allowed lists all values: type, min and max must be omitted")
        return self


RULES = {
    "text": {"type", "min", "max", "allowed", "missing"},
    "numbers": {"type", "min", "max", "allowed", "missing"},
    "lists of text": {"allowed", "missing"},
    "timestamps": {"earliest", "latest", "missing"},
}
"""Kind of a column -> the rules that it may have."""
INTERACTION_KINDS = {
    "user_id": "text",
    "item_id": "text",
    "timestamp": "timestamps",
    "weight": "numbers",
    "event": "text",
    "rating": "numbers",
}
"""Columns of the interactions -> their kind."""


class ColumnRulesConfig(Table):
    """Rules for the columns of the input. A row that breaks a rule becomes a dead letter."""

    interactions: dict[str, ColumnRules] = {}
    """Rules by column: `user_id`, `item_id`, `timestamp`, `weight`, `event` or `rating`."""
    items: dict[str, ColumnRules] = {}
    """Rules by column: `item_id`, or a column named in [items]."""


def check_column_rules(table: str, column_rules: dict[str, ColumnRules], kinds: dict[str, str]) -> None:
    """Reject rules of columns that are not read, and rules that a column's kind does not allow.

    Raises:
        ValueError: which column, and what is allowed.
    """
    for column, rules in column_rules.items():
        if column not in kinds:
            close = difflib.get_close_matches(column, kinds, n=1)
            known = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(kinds)}"
            raise ValueError(f"{table}.{column} must be a column that is read ({known})")
        kind = kinds[column]
        wrong = rules.stated - RULES[kind]
        if wrong:
            takes = ", ".join(sorted(RULES[kind]))
            raise ValueError(f"{table}.{column} holds {kind}, which takes {takes}: not {', '.join(sorted(wrong))}")
        if rules.allowed is not None and kind != "text" and rules.needs_numbers != (kind == "numbers"):
            raise ValueError(f"{table}.{column} holds {kind}: allowed must list such values")
