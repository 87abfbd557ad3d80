"""The account of every row: what was read is used, filtered by a rule, or a dead letter with its reason."""

from __future__ import annotations

from typing import Any

import polars as pl

from pipelines.context.input_units import Unit
from pipelines.context.raw_rows import RawRows
from recsys.data.validation import as_json
from recsys.errors import InputError, StageError

LETTER = {"source": pl.String, "row": pl.UInt32, "reason": pl.String, "content": pl.String}
"""A dead letter: the file, the row in it from 0 (a CSV's header not counted), why, and the row as JSON."""

EXAMPLE_CHARACTERS = 300
NAMED = 5
"""Files that a message names, of more."""


def letters_of(rejects: pl.DataFrame, raw: RawRows, source: str) -> pl.DataFrame:
    """Dead letters of a part of a file: rows that were rejected, and what was no row."""
    rejected = rejects.with_columns(row=raw.row_numbers.gather(rejects["row"]))
    both = [frame.with_columns(source=pl.lit(source)).select(*LETTER) for frame in (rejected, raw.malformed)]
    return pl.concat(both)


def letters_for(rows: pl.DataFrame, reason: str) -> pl.DataFrame:
    """Dead letters for rows that were good by themselves, with `source` and `row`."""
    return rows.select("source", "row", reason=pl.lit(reason), content=as_json(rows.drop("source", "row")))


def settle(
    units: list[Unit], letters: pl.LazyFrame, max_ratio: float, *, read: int, used: int, filtered: dict[str, int]
) -> dict[str, Any]:
    """The account of some files: it must add up and hold rows, few enough of them dead.

    Raises:
        InputError: the files hold no rows.
        StageError: the account does not add up, or more than `max_ratio` of the rows are dead letters.
    """
    files = _named(units)
    reasons = letters.group_by("reason").agg(rows=pl.len()).sort("rows", "reason", descending=[True, False]).collect()
    by_reason = dict(reasons.iter_rows())
    dead = sum(by_reason.values())
    account = {
        "read": read,
        "used": used,
        "filtered": {rule: rows for rule, rows in filtered.items() if rows},
        "dead_letters": by_reason,
    }
    if read != used + sum(filtered.values()) + dead:
        raise StageError(f"every row of {files} must be accounted for. Received: {account}.")
    if read == 0:
        raise InputError(f"{files} must hold rows. Received: none.")
    if dead > max_ratio * read:
        told = "; ".join(f"{rows:,} {reason}" for reason, rows in by_reason.items())
        example = letters.head(1).collect().row(0, named=True)
        raise StageError(
            f"at most {max_ratio:.2%} of the rows of {files} may be unusable. "
            f"Received: {dead:,} of {read:,} ({told}), such as row {example['row']} of "
            f"{example['source']}: {example['content'][:EXAMPLE_CHARACTERS]}. "
            "Mend the input, or raise prepare.max_dead_letter_ratio."
        )
    return account


def _named(units: list[Unit]) -> str:
    """The files of a message: of many the first ones."""
    sources = sorted({unit.source for unit in units})
    named = ", ".join(sources[:NAMED])
    return named if len(sources) <= NAMED else f"{named} and {len(sources) - NAMED} more files"
