"""`recsys verify`: whether two items are the same, why, and what cannot be told."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recsys import Release
from tests import GOLDEN_RELEASES

GOLDEN = GOLDEN_RELEASES
ITEMS = [f"item {number}" for number in range(8)]


@pytest.fixture
def release(write_release: Callable[..., Path]) -> Path:
    return write_release(ITEMS)


def test_a_person_is_told_the_answer_and_why(program: Any) -> None:
    outcome = program("verify", "item-1-1", "item-1-2", "--release", GOLDEN / "v2")
    assert (outcome.exit_code, outcome.err) == (0, "")
    first, *lines = outcome.out.splitlines()
    assert first == "The same: Title of item-1-1 (item-1-1) and Title of item-1-2 (item-1-2)"
    assert [line.split()[0] for line in lines] == ["similarity", "probability", "threshold", "measured"]
    assert "for probability 0.5" in lines[2]


def test_not_the_same_is_an_answer_and_no_error(program: Any) -> None:
    outcome = program("verify", "item-1-1", "item-4-1", "--release", GOLDEN / "v2")
    assert (outcome.exit_code, outcome.err) == (0, "")
    assert outcome.out.startswith("Not the same: ")


def test_a_program_is_told_everything(program: Any, release: Path) -> None:
    loaded = Release.load(release)
    for second in ITEMS:
        told = json.loads(program("verify", ITEMS[0], second, "--release", release, "--json").out)
        verdict = loaded.verify(ITEMS[0], second)
        assert told == {
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
                "measured": told["threshold"]["measured"],
            },
        }
        assert told["threshold"]["measured"]["precision"] == {"value": 0.75, "low": 0.5, "high": 0.875}


@pytest.mark.parametrize(
    ("options", "rule", "similarity"),
    [
        (["--precision", 0.9], "precision", 0.5),
        (["--precision", "0.90"], "precision", 0.5),
        (["--false-positive-rate", 0.05], "false_positive_rate", 0.625),
    ],
)
def test_a_target_names_the_threshold(
    program: Any, release: Path, options: list[Any], rule: str, similarity: float
) -> None:
    told = json.loads(program("verify", *ITEMS[:2], "--release", release, "--json", *options).out)
    assert (told["threshold"]["rule"], told["threshold"]["similarity"]) == (rule, similarity)
    assert told["same"] == (told["similarity"] >= similarity)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["item 0", "no such"], "item_id must be in the catalog. Received: 'no such'."),
        (["item 0", "item 1", "--precision", 0.8], "calibrated for: 0.9. Received: 0.8."),
        (["item 0", "item 1", "--precision", 0.95], "calibrated for: 0.9. Received: 0.95, which no similarity reaches"),
        (["item 0", "item 1", "--false-positive-rate", 0.9], "calibrated for: 0.05. Received: 0.9."),
        (["item 0", "item 1", "--precision", 0.9, "--false-positive-rate", 0.05], "Received: both, 0.9 and 0.05."),
    ],
)
def test_what_cannot_be_told_is_an_error(program: Any, release: Path, arguments: list[Any], told: str) -> None:
    outcome = program("verify", *arguments, "--release", release)
    assert outcome[:2] == (2, "")
    assert outcome.err.startswith("error: ")
    assert told in outcome.err


def test_a_release_without_a_calibration_says_so(program: Any) -> None:
    outcome = program("verify", "item-1-1", "item-1-2", "--release", GOLDEN / "v1")
    assert outcome[:2] == (2, "")
    assert "release must have a calibration" in outcome.err


@pytest.mark.parametrize("arguments", [["one"], ["one", "two", "three"], ["one", "two", "--precision", "high"]])
def test_a_wrong_command_line_is_told(program: Any, arguments: list[str]) -> None:
    outcome = program("verify", *arguments)
    assert outcome[:2] == (2, "")
    assert "Usage:" in outcome.err


def test_help_tells_it_from_the_check_of_a_release(program: Any) -> None:
    assert "recsys releases check" in program("verify", "--help").out
    assert "undamaged" in program("releases", "--help").out
