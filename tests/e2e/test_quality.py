"""The figures that are promised, on real data, through the program: leave-one-out, look-up from the last item."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from recsys.testing import program

pytestmark = pytest.mark.e2e

NIGHT_TIMEOUT_S = 3_600
"""A night of real data takes minutes, and a busy machine several times as long."""

DATASETS = os.environ.get("RECSYS_DATASETS")
"""Folder of data sets outside the repository that are not downloaded."""


@pytest.fixture(autouse=True)
def xla(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train with XLA, as users do."""
    monkeypatch.setenv("RECSYS_XLA", "1")


def night(config: Path, workspace: Path) -> dict[str, Any]:
    """The evaluation of a whole night."""
    setting = f"data.workspace={workspace}"
    done = program.run("nightly", "--config", config, "--set", setting, "--json", timeout_s=NIGHT_TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    evaluation: dict[str, Any] = json.loads(done.stdout)["evaluation"]
    return evaluation


BASELINES = {"popularity", "co_occurrence", "item_knn", "windowed_item_knn", "ease", "content", "content_popularity"}


def check(evaluation: dict[str, Any], floor: float, below: set[str]) -> None:
    """At least the floor, and above these baselines of the same run, each tuned on the validation target."""
    ours = evaluation["model"]["ndcg_at_20"]
    assert ours >= floor
    assert set(evaluation["baselines"]) | {"ease"} == BASELINES
    reached = {name: evaluation["baselines"][name]["ndcg_at_20"] for name in below}
    assert {name: score for name, score in reached.items() if score >= ours} == {}


def test_movielens_100k(movielens: Path, tmp_path: Path) -> None:
    evaluation = night(movielens / "recsys.toml", tmp_path)
    assert evaluation["queries"] == 943
    check(evaluation, floor=0.080, below={"popularity", "co_occurrence", "item_knn"})


def test_beauty(tmp_path: Path) -> None:
    if not DATASETS:
        pytest.skip("needs the environment variable RECSYS_DATASETS: a folder with beauty.sequences.txt")
    sequences, attributes = (Path(DATASETS) / f"beauty.{name}" for name in ("sequences.txt", "item_attributes.json"))
    made = program.run("data", "sequences", sequences, "--attributes", attributes, "--output", tmp_path)
    assert made.returncode == 0, made.stderr
    evaluation = night(tmp_path / "recsys.toml", tmp_path / "workspace")
    assert evaluation["queries"] == 20_000
    check(evaluation, floor=0.050, below=set(evaluation["baselines"]))
