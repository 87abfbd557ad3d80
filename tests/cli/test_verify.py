"""`recsys verify`: whether two items are the same, with the threshold and its errors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recsys import Release
from tests import GOLDEN_RELEASES

ITEMS = [f"item {number}" for number in range(8)]


@pytest.fixture
def release(write_release: Callable[..., Path]) -> Path:
    return write_release(ITEMS)


def test_text_output_shows_the_verdict_and_the_threshold(program: Any) -> None:
    outcome = program("verify", "item-1-1", "item-1-2", "--release", GOLDEN_RELEASES / "v2")
    assert (outcome.exit_code, outcome.err) == (0, "")
    first, *lines = outcome.out.splitlines()
    assert first == "The same: Title of item-1-1 (item-1-1) and Title of item-1-2 (item-1-2)"
    assert [line.split()[0] for line in lines] == ["similarity", "probability", "threshold", "measured"]
    assert "for probability 0.5" in lines[2]


def test_different_items_are_not_an_error(program: Any) -> None:
    outcome = program("verify", "item-1-1", "item-4-1", "--release", GOLDEN_RELEASES / "v2")
    assert (outcome.exit_code, outcome.err) == (0, "")
    assert outcome.out.startswith("Not the same: ")


def test_json_output_has_verdict_threshold_and_measured_rates(program: Any, release: Path) -> None:
    loaded = Release.load(release)
    for second in ITEMS:
        output = json.loads(program("verify", ITEMS[0], second, "--release", release, "--json").out)
        verdict = loaded.verify(ITEMS[0], second)
        assert output == {
            "release_id": "0123456789ab",
            "items": [
                {"item_id": ITEMS[0], "title": f"Title of {ITEMS[0]}"},
                {"item_id": second, "title": f"Title of {second}"},
            ],
            "similarity": verdict.similarity,
            "probability": verdict.probability,
            "same": verdict.similarity >= 0.1,
            "threshold": {
                "rule": "probability",
                "target": 0.5,
                "similarity": 0.1,
                "measured": output["threshold"]["measured"],
            },
        }
        assert output["threshold"]["measured"]["precision"] == {"value": 0.75, "low": 0.5, "high": 0.875}


@pytest.mark.parametrize(
    ("options", "rule", "similarity"),
    [
        (["--precision", 0.9], "precision", 0.5),
        (["--precision", "0.90"], "precision", 0.5),
        (["--false-positive-rate", 0.05], "false_positive_rate", 0.625),
    ],
)
def test_target_selects_the_threshold(
    program: Any, release: Path, options: list[Any], rule: str, similarity: float
) -> None:
    output = json.loads(program("verify", *ITEMS[:2], "--release", release, "--json", *options).out)
    assert (output["threshold"]["rule"], output["threshold"]["similarity"]) == (rule, similarity)
    assert output["same"] == (output["similarity"] >= similarity)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["item 0", "no such"], "item_id must be in the catalog. Received: 'no such'."),
        (["item 0", "item 1", "--precision", 0.8], "calibrated for: 0.9. Received: 0.8."),
        (["item 0", "item 1", "--precision", 0.95], "calibrated for: 0.9. Received: 0.95, which no similarity reaches"),
        (["item 0", "item 1", "--false-positive-rate", 0.9], "calibrated for: 0.05. Received: 0.9."),
        (["item 0", "item 1", "--precision", 0.9, "--false-positive-rate", 0.05], "Received: both, 0.9 and 0.05."),
    ],
)
def test_invalid_queries_are_rejected(program: Any, release: Path, arguments: list[Any], message: str) -> None:
    outcome = program("verify", *arguments, "--release", release)
    assert outcome[:2] == (2, "")
    assert outcome.err.startswith("error: ")
    assert message in outcome.err


def test_release_without_calibration_is_rejected(program: Any) -> None:
    outcome = program("verify", "item-1-1", "item-1-2", "--release", GOLDEN_RELEASES / "v1")
    assert outcome[:2] == (2, "")
    assert "release must have a calibration" in outcome.err


@pytest.mark.parametrize("arguments", [["one"], ["one", "two", "three"], ["one", "two", "--precision", "high"]])
def test_invalid_command_line_exits_with_2(program: Any, arguments: list[str]) -> None:
    outcome = program("verify", *arguments)
    assert outcome[:2] == (2, "")
    assert "Usage:" in outcome.err


def test_help_distinguishes_verify_from_releases_check(program: Any) -> None:
    assert "recsys releases check" in program("verify", "--help").out
    assert "undamaged" in program("releases", "--help").out
