"""What an export answers for each item: the columns of its rows, and its name in databases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from recsys.config.sections import ExportedAnswer
from recsys.retrieval import bulk, together


@dataclass(frozen=True)
class Answer:
    """The rows of an export. Exports of different answers can be in one database."""

    name: str
    """Part of the names of tables and keys."""
    schema: Mapping[str, Any]
    """Column -> Polars type."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(self.schema)


ANSWERS: Final[Mapping[ExportedAnswer, Answer]] = {
    "similar": Answer("neighbors", bulk.SCHEMA),
    "next": Answer("next", bulk.SCHEMA),
    "together": Answer("together", together.SCHEMA),
}
