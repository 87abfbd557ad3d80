"""A log of many files and formats in which every twentieth row is broken, through the program."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pytest
from mlflow import MlflowClient

from recsys.testing import program

FILES, ROWS, BROKEN = 100, 1_000, 50
"""Files; rows of each, and how many of those are broken."""
USERS, ITEMS = 500, 80
COLUMNS = ("user_id", "item_id", "timestamp", "weight")

Row = tuple[str, ...]
BREAKS: dict[str, Callable[[Row], Row]] = {
    "user_id is missing": lambda row: ("", *row[1:]),
    "item_id is missing": lambda row: (row[0], "", *row[2:]),
    "item_id is not in the catalog": lambda row: (row[0], f"no-{row[1]}", *row[2:]),
    "timestamp is missing": lambda row: (*row[:2], " ", row[3]),
    "timestamp is neither a number of seconds nor ISO 8601": lambda row: (*row[:2], "yesterday", row[3]),
    "timestamp is not a finite number": lambda row: (*row[:2], "NaN", row[3]),
    "timestamp is outside 1970 to 2100 (seconds are expected, not milliseconds)": lambda row: (
        (*row[:2], f"{row[2]}000", row[3])
    ),
    "weight is not a number": lambda row: (*row[:3], "heavy"),
    "weight is not finite and above 0": lambda row: (*row[:3], "-1"),
}
"""Reason -> how a row is broken so that it is given."""
TOO_MANY = "line has 5 fields where the header has 4"
NO_OBJECT = "line is no JSON object"


class CorruptedLog(NamedTuple):
    """A log on disk."""

    config: Path
    rows: int
    broken: list[tuple[str, int, str]]
    """File, row in it, and reason, of every broken row."""


def plant(folder: Path, rows: int = ROWS, broken: int = BROKEN) -> CorruptedLog:
    """Write the log, its items and a config."""
    log = folder / "log"
    log.mkdir(parents=True)
    expected = []
    for number in range(FILES):
        suffix, write, line_reason = FORMATS[number % len(FORMATS)]
        path = log / f"part-{number:03d}{suffix}"
        reasons = [*BREAKS, *([line_reason] if line_reason else [])]
        marked = {row: random.choice(reasons) for row in random.sample(range(rows), broken)}  # noqa: S311
        lines = [good(number * rows + row) for row in range(rows)]
        for row, reason in marked.items():
            lines[row] = BREAKS[reason](lines[row]) if reason in BREAKS else (*lines[row], "torn")
        path.write_bytes(write(lines))
        expected += [(str(path), row, reason) for row, reason in marked.items()]
    (folder / "items.csv").write_text("\n".join(["item_id", *(f"item-{number}" for number in range(ITEMS))]))
    config = folder / "recsys.toml"
    config.write_text('[data]\ninteractions = "log/*"\nitems = "items.csv"\n')
    return CorruptedLog(config, FILES * rows, sorted(expected))


def good(number: int) -> Row:
    """A row of the log; no user touches an item twice in a row."""
    return f"user-{number % USERS}", f"item-{number // USERS % ITEMS}", str(1_600_000_000 + number), "1.5"


def as_csv(rows: list[Row]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows([COLUMNS, *rows])
    return text.getvalue().encode()


def as_json_lines(rows: list[Row]) -> bytes:
    """A row with a fifth field is a line that was cut off."""
    lines = (json.dumps(dict(zip(COLUMNS, row, strict=False))) for row in rows)
    torn = (line if len(row) == len(COLUMNS) else line[:-1] for line, row in zip(lines, rows, strict=True))
    return "\n".join(torn).encode()


def as_parquet(rows: list[Row]) -> bytes:
    file = io.BytesIO()
    pl.DataFrame(rows, schema=dict.fromkeys(COLUMNS, pl.String), orient="row").write_parquet(file)
    return file.getvalue()


FORMATS: list[tuple[str, Callable[[list[Row]], bytes], str | None]] = [
    (".parquet", as_parquet, None),
    (".csv", as_csv, TOO_MANY),
    (".csv.gz", lambda rows: gzip.compress(as_csv(rows)), TOO_MANY),
    (".jsonl", as_json_lines, NO_OBJECT),
]
"""Suffix, writer, and the reason of what is no row; every row of a Parquet file is one."""


@pytest.fixture
def corrupted(tmp_path: Path) -> CorruptedLog:
    return plant(tmp_path)


@pytest.mark.slow
def test_every_invalid_row_becomes_one_dead_letter(corrupted: CorruptedLog) -> None:
    """Compares file, row and reason; all other rows are used."""
    done = program.run("prepare", "--config", corrupted.config, "--set", "prepare.max_dead_letter_ratio=0.06", "--json")
    assert done.returncode == 0, done.stderr
    (letters,) = corrupted.config.parent.glob("workspace/runs/*/prepare/dead_letters.parquet")
    assert sorted(pl.read_parquet(letters).select("source", "row", "reason").rows()) == corrupted.broken
    assert json.loads(done.stdout)["account"]["interactions"] == {
        "read": corrupted.rows,
        "used": corrupted.rows - len(corrupted.broken),
        "filtered": {},
        "dead_letters": Counter(reason for _, _, reason in corrupted.broken),
    }


@pytest.mark.slow
def test_too_many_invalid_rows_stop_the_run_and_leave_only_its_report(corrupted: CorruptedLog) -> None:
    """The message names the reasons with their counts."""
    done = program.run("nightly", "--config", corrupted.config)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    message = " ".join(done.stderr.split())
    assert f"Received: {len(corrupted.broken):,} of {corrupted.rows:,}" in message
    for reason, rows in Counter(reason for _, _, reason in corrupted.broken).items():
        assert f"{rows:,} {reason}" in message
    workspace = corrupted.config.parent / "workspace"
    (run,) = (workspace / "runs").iterdir()
    assert {path.name for path in run.rglob("*")} == {".lock", "run_report.html", "run_report.json"}
    assert {path.name for path in workspace.glob("[!.]*")} <= {"runs", "mlflow.db", "mlartifacts"}
    assert not [*workspace.rglob(".tmp-*")]
    assert not MlflowClient(f"sqlite:///{workspace}/mlflow.db").search_model_versions()
