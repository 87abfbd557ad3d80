"""The promised metrics on real data, through the command line: leave-one-out, queries by the last item."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from recsys.testing import program

pytestmark = pytest.mark.e2e

NIGHTLY_TIMEOUT_S = 3_600
"""A nightly run on real data takes minutes, and several times as long on a busy machine."""

DATASETS = os.environ.get("RECSYS_DATASETS")
"""Folder of data sets outside the repository, which are not downloaded."""


def nightly(config: Path, workspace: Path) -> dict[str, Any]:
    """Return the evaluation of a nightly run."""
    setting = f"data.workspace={workspace}"
    done = program.run("nightly", "--config", config, "--set", setting, "--json", timeout_s=NIGHTLY_TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    evaluation: dict[str, Any] = json.loads(done.stdout)["evaluation"]
    return evaluation


BASELINES = {"popularity", "co_occurrence", "item_knn", "windowed_item_knn", "ease", "content"}


def check(evaluation: dict[str, Any], floor: float, below: set[str]) -> None:
    """Require a minimum NDCG@20, and a higher one than these baselines, each tuned on the validation target."""
    ndcg = evaluation["model"]["ndcg_at_20"]
    assert ndcg >= floor
    assert set(evaluation["baselines"]) | {"ease"} == BASELINES
    baselines = {name: evaluation["baselines"][name]["ndcg_at_20"] for name in below}
    assert {name: score for name, score in baselines.items() if score >= ndcg} == {}


def test_movielens_100k(movielens: Path, tmp_path: Path) -> None:
    evaluation = nightly(movielens / "recsys.toml", tmp_path)
    assert evaluation["queries"] == 943
    check(evaluation, floor=0.080, below={"popularity", "co_occurrence", "item_knn"})


def test_lastfm(tmp_path: Path) -> None:
    if not DATASETS:
        pytest.skip("needs the environment variable RECSYS_DATASETS: a folder with lastfm.sequences.txt")
    sequences, attributes = (Path(DATASETS) / f"lastfm.{name}" for name in ("sequences.txt", "item_attributes.json"))
    converted = program.run("data", "sequences", sequences, "--attributes", attributes, "--output", tmp_path)
    assert converted.returncode == 0, converted.stderr
    evaluation = nightly(tmp_path / "recsys.toml", tmp_path / "workspace")
    assert evaluation["queries"] == 1_090
    check(evaluation, floor=0.040, below=set(evaluation["baselines"]))
