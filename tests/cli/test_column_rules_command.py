"""Column rules on the command line: each violation is a dead letter with its origin; too many fail the stage."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests import memory_mb

CONFIG = """
[data]
interactions = "log.csv"
items = "items.jsonl"

[items]
title = "name"
categorical = ["brand"]
multi_categorical = ["tags"]
numeric = ["price"]

[column_rules.interactions]
user_id = { type = "integer" }
timestamp = { earliest = 2015-01-01, latest = 2024-12-31 }
weight = { min = 0.1, max = 5, missing = false }
event = { allowed = ["view", "buy"] }

[column_rules.items]
name = { missing = false }
brand = { allowed = ["Acme", "Umbrella"] }
tags = { allowed = ["new", "old"] }
price = { min = 0, max = 100, type = "integer" }

[prepare]
max_dead_letter_ratio = 0.5
"""

NOON = 1_700_000_000
INVALID_ROWS = {
    "u7,i1,1700000000,1,view": "user_id is not a number (column_rules.interactions.user_id.type)",
    "7.5,i1,1700000000,1,view": "user_id is not an integer (column_rules.interactions.user_id.type)",
    "7,i1,2014-12-31T23:59:59,1,view": "timestamp is before 2015-01-01T00:00:00+00:00 "
    "(column_rules.interactions.timestamp.earliest)",
    "7,i1,2025-01-01,1,view": "timestamp is after 2024-12-31T23:59:59.999999+00:00 "
    "(column_rules.interactions.timestamp.latest)",
    "7,i1,1700000000,,view": "weight is missing (column_rules.interactions.weight.missing)",
    "7,i1,1700000000,0.05,view": "weight is below 0.1 (column_rules.interactions.weight.min)",
    "7,i1,1700000000,5.5,view": "weight is above 5 (column_rules.interactions.weight.max)",
    "7,i1,1700000000,1,scroll": "event is not of the allowed values (column_rules.interactions.event.allowed)",
}
INVALID_ITEMS = {
    "name": ("", "name is missing (column_rules.items.name.missing)"),
    "brand": ("Initech", "brand is not of the allowed values (column_rules.items.brand.allowed)"),
    "tags": (["new", "used"], "tags is not of the allowed values (column_rules.items.tags.allowed)"),
    "price": (101, "price is above 100 (column_rules.items.price.max)"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """24 valid and 8 invalid interactions, interleaved; 7 valid items followed by 4 invalid ones."""
    valid = [f"{n % 5},i{n % 7},{NOON + n},0.1,{['view', 'buy', ''][n % 3]}" for n in range(24)]
    invalid = list(INVALID_ROWS)
    lines = [line for n in range(24) for line in ([valid[n], invalid[n // 3]] if n % 3 == 0 else [valid[n]])]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,timestamp,weight,event", *lines]) + "\n")
    items = [
        {"item_id": f"i{n}", "name": f"Item {n}", "brand": "Acme", "tags": ["new"], "price": n} for n in range(7 + 4)
    ]
    for item, (column, (value, _)) in zip(items[7:], INVALID_ITEMS.items(), strict=True):
        item[column] = value
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, items)) + "\n")
    (tmp_path / "recsys.toml").write_text(CONFIG)
    return tmp_path


@pytest.mark.parametrize("rows_per_unit", [500_000, 5])
def test_each_violation_is_a_dead_letter_and_the_account_adds_up(
    folder: Path, program: Any, rows_per_unit: int
) -> None:
    memory = f"resources.memory_mb={memory_mb(rows=rows_per_unit)}"
    outcome = program("prepare", "--config", folder / "recsys.toml", "--set", memory, "--json")
    assert outcome.exit_code == 0, outcome.err
    account = json.loads(outcome.out)["account"]
    assert account["interactions"] == {
        "read": 32,
        "used": 24,
        "filtered": {},
        "dead_letters": dict.fromkeys(INVALID_ROWS.values(), 1),
    }
    item_reasons = [reason for _, reason in INVALID_ITEMS.values()]
    assert account["items"] == {"read": 11, "used": 7, "filtered": {}, "dead_letters": dict.fromkeys(item_reasons, 1)}

    (stage,) = folder.glob("workspace/runs/*/prepare")
    dead_letters = pl.read_parquet(stage / "dead_letters.parquet")
    expected = {
        (str(folder / "log.csv"), 4 * n + 1): (reason, line.split(",")[2])
        for n, (line, reason) in enumerate(INVALID_ROWS.items())
    }
    expected |= {(str(folder / "items.jsonl"), 7 + n): (reason, f"i{7 + n}") for n, reason in enumerate(item_reasons)}
    letters_by_origin = {
        (letter["source"], letter["row"]): (letter["reason"], json.loads(letter["content"]))
        for letter in dead_letters.iter_rows(named=True)
    }
    assert {origin: reason for origin, (reason, _) in letters_by_origin.items()} == {
        origin: reason for origin, (reason, _) in expected.items()
    }
    assert all(value in letters_by_origin[origin][1].values() for origin, (_, value) in expected.items())
    report = json.loads((stage / "data_report.json").read_text())
    assert report["account"] == account


def test_too_many_violations_fail_the_stage(folder: Path, program: Any) -> None:
    """8 of 32 rows exceed a limit of 24%."""
    limit = "prepare.max_dead_letter_ratio=0.24"
    outcome = program("prepare", "--config", folder / "recsys.toml", "--set", limit, "--set", "column_rules.items={}")
    assert outcome.exit_code == 1
    assert "at most 24.00% of the rows" in outcome.err
    assert "Received: 8 of 32" in outcome.err
    assert all(reason in outcome.err for reason in INVALID_ROWS.values())
    assert not list(folder.glob("workspace/runs/*/*/_MANIFEST.json"))


def test_rule_for_an_unknown_column_is_rejected_before_reading(folder: Path, program: Any) -> None:
    (folder / "recsys.toml").write_text(CONFIG + "[column_rules.items.prize]\nmin = 1\n")
    outcome = program("prepare", "--config", folder / "recsys.toml")
    assert outcome.exit_code == 2
    assert "items.prize must be a column that is read (did you mean 'price'?)" in outcome.err
    assert not (folder / "workspace").exists()
