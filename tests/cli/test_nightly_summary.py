"""The last lines of `recsys nightly`: both senses at a glance, and the baselines that beat the tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.commands.nightly import COLUMNS, _print_summary

AGREEMENT, GROUPS, TEXTS = "agreement_at_10", "group_recall_at_10", "column_agreement_at_10"


def printed(capsys: pytest.CaptureFixture[str], likeness: dict[str, Any], sentences: list[str]) -> list[str]:
    summary = {
        "evaluation": {"queries": 3, "model": dict.fromkeys(COLUMNS, 0.5), "baselines": {}, "likeness": likeness},
        "better_baselines": sentences,
        "tracking_uri": "http://mlflow.example",
        "path": "workspace/releases/r",
        "version": 7,
        "model": "item-tower",
        "promoted": True,
    }
    _print_summary(summary, Path("recsys.toml"))
    return capsys.readouterr().out.splitlines()


def test_both_spaces_and_the_baselines_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    likeness = {
        "space": "similar",
        "reason": "own space, agreement 0.6890, 0.6556 by next",
        "model": {"next": {AGREEMENT: 0.6556, GROUPS: 0.5}, "similar": {AGREEMENT: 0.689, GROUPS: 0.62}},
        "baselines": {"ease": {AGREEMENT: 0.66, GROUPS: 0.71}},
    }
    lines = printed(capsys, likeness, ["EASE (0.7100) is better than the tower (0.6200)."])
    table = [line.strip("┃│ ").replace("┃", "│").split("│") for line in lines if "│" in line or "┃" in line]
    assert [[cell.strip() for cell in row] for row in table[-4:]] == [
        ["AGREEMENT@10", "GROUPS@10"],
        ["tower, similar", "0.6890", "0.6200"],
        ["tower, next", "0.6556", "0.5000"],
        ["EASE", "0.6600", "0.7100"],
    ]
    sense = lines.index("Sense similar: answered by the space similar (own space, agreement 0.6890, 0.6556 by next).")
    assert lines[sense + 1 : sense + 3] == [
        "EASE (0.7100) is better than the tower (0.6200).",
        "Release   workspace/releases/r",
    ]


def test_only_evidence_of_the_run_has_a_column(capsys: pytest.CaptureFixture[str]) -> None:
    likeness = {"space": "next", "reason": "a reason", "model": {"next": {TEXTS: 0.3}}, "baselines": {"ease": {}}}
    lines = printed(capsys, likeness, [])
    assert any("COLUMNS@10" in line for line in lines)
    assert not any("AGREEMENT" in line or "GROUPS" in line or "EASE" in line for line in lines)


def test_without_evidence_only_the_reason_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    likeness = {"space": "next", "reason": "train.similar is off", "model": {"next": {}}, "baselines": {"ease": {}}}
    lines = printed(capsys, likeness, [])
    assert "Sense similar: answered by the space next (train.similar is off)." in lines
    assert not any("Likeness" in line for line in lines)
