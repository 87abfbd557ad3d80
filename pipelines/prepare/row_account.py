"""Row accounts: each row that was read must be used, filtered by a rule, or a dead letter with a reason."""

from __future__ import annotations

from typing import Any

import polars as pl

from pipelines.context.input_units import Unit
from pipelines.context.raw_rows import RawRows
from recsys.data.validation import rows_as_json
from recsys.errors import InputError, StageError

DEAD_LETTER_SCHEMA = {"source": pl.String, "row": pl.UInt32, "reason": pl.String, "content": pl.String}
"""File, row number (from 0, not counting a CSV header), reason, and content of the row as JSON."""

EXAMPLE_CHARACTERS = 300
"""Maximum length of the dead letter in a message."""
MAX_NAMED_FILES = 5
"""Maximum number of file names in a message."""


def dead_letters_of_chunk(rejects: pl.DataFrame, raw: RawRows, source: str) -> pl.DataFrame:
    """Return the dead letters of a chunk of a file: rejected rows, and lines that could not be parsed."""
    rejected = rejects.with_columns(row=raw.row_numbers.gather(rejects["row"]))
    letters = [
        frame.with_columns(source=pl.lit(source)).select(*DEAD_LETTER_SCHEMA) for frame in (rejected, raw.malformed)
    ]
    return pl.concat(letters)


def dead_letters_of_rows(rows: pl.DataFrame, reason: str) -> pl.DataFrame:
    """Return valid rows, which have `source` and `row`, as dead letters with the given reason."""
    return rows.select("source", "row", reason=pl.lit(reason), content=rows_as_json(rows.drop("source", "row")))


def close_account(
    units: list[Unit], letters: pl.LazyFrame, max_ratio: float, *, read: int, used: int, filtered: dict[str, int]
) -> dict[str, Any]:
    """Check the row account of a table and return it.

    Args:
        units: all units of the table.
        letters: all dead letters of the table.
        max_ratio: largest allowed share of dead letters.
        read: number of rows read.
        used: number of rows used.
        filtered: rule -> number of rows that it filtered out.

    Raises:
        InputError: the files contain no rows.
        StageError: the account does not add up, or the share of dead letters is too large.
    """
    files = file_names(units)
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
        raise InputError(f"{files} must contain rows. Received: none.")
    if dead > max_ratio * read:
        counts = "; ".join(f"{rows:,} {reason}" for reason, rows in by_reason.items())
        example = letters.head(1).collect().row(0, named=True)
        raise StageError(
            f"at most {max_ratio:.2%} of the rows of {files} may be unusable. "
            f"Received: {dead:,} of {read:,} ({counts}), such as row {example['row']} of "
            f"{example['source']}: {example['content'][:EXAMPLE_CHARACTERS]}. "
            "Correct the input, or raise prepare.max_dead_letter_ratio."
        )
    return account


def file_names(units: list[Unit]) -> str:
    """Return the first file names and the number of further files, for a message."""
    sources = sorted({unit.source for unit in units})
    names = ", ".join(sources[:MAX_NAMED_FILES])
    return names if len(sources) <= MAX_NAMED_FILES else f"{names} and {len(sources) - MAX_NAMED_FILES} more files"
