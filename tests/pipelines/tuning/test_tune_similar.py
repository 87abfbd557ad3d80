"""Tuning of the sense `similar`: its ranges, pairs and value. A function of the settings replaces training."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipelines.context.overrides import with_settings
from pipelines.context.run_context import RunContext
from pipelines.orchestration.stage_table import STAGES
from pipelines.tuning import objectives
from pipelines.tuning import tune as tuning
from pipelines.tuning.search_space import SearchSpace
from recsys.config.loading import load_config
from recsys.config.sections import Config
from recsys.errors import ConfigError, StageError
from recsys.evaluation import likeness
from recsys.evaluation.likeness import AGREEMENT, Evidence
from recsys.release.runs import Run
from recsys.testing import world
from tests.pipelines.stages.test_train import WITHIN, write_labeled_world
from tests.pipelines.tuning.conftest import Time
from tests.pipelines.tuning.test_tune import children, folder_of

RANGES = {"similar.penalty": [20.0, 90.0], "similar.temperature": [0.15], "train.temperature": [0.3]}
TRIALS = 3 * 2
"""Combinations of the ranges of `similar` with the values of the config; those of `next` are not tried."""
PASSES = 4


def agreement(config: Config) -> float:
    """The value of settings: a small penalty and a high temperature are the best."""
    return 0.5 - config.similar.penalty / 1_000 + config.similar.temperature


class Candidates:
    """Replaces the training of candidates; a pass takes ten seconds."""

    def __init__(self, clock: Time) -> None:
        self.clock = clock
        self.trained: list[Config] = []
        self.folders: list[Path] = []
        self.pair_weights: list[float] = []

    def measure(self, config: Config, run: Run, name: str, evidence: Evidence, on_pass: Any) -> dict[str, Any]:
        assert (name, run.sense) == ("similar_features", "similar")  # the log is sparse
        assert len(evidence.judged) == run.manifest("prepare")["num_items"]
        self.trained.append(config)
        self.folders.append(run.folder)
        weights = pl.read_parquet(run.path("prepare", "similar_pairs")).get_column("weight").explode()
        self.pair_weights.append((weights**2).sum())  # the sum is the same for each penalty
        for number in range(1, PASSES + 1):
            self.clock.seconds += 10.0
            on_pass("pairs", number, {"loss": 1.0, f"validation_{AGREEMENT}": 0.1, "validation_score": 0.1})
        likeness = {AGREEMENT: agreement(config), "group_recall_at_10": np.nan, "intervals": {AGREEMENT: [0.0, 1.0]}}
        return {"passes": PASSES, "likeness": likeness, "curve": []}


@pytest.fixture
def candidates(monkeypatch: pytest.MonkeyPatch, clock: Time) -> Candidates:
    """The log has too few users to judge any item."""
    stand_in = Candidates(clock)
    monkeypatch.setattr(objectives, "measure_candidate", stand_in.measure)
    monkeypatch.setattr(likeness, "MIN_ITEMS", 0)
    return stand_in


@pytest.fixture
def config(tmp_path: Path, empty_mlflow: Path) -> Config:
    """Histories of random items, and a window of one."""
    (tmp_path / "workspace").mkdir()
    shutil.copy(empty_mlflow, tmp_path / "workspace")
    items = np.random.default_rng(0).integers(0, 11, 60)
    rows = ["user_id,item_id,timestamp", *(f"u{n % 5},i{item},{n}" for n, item in enumerate(items))]
    (tmp_path / "log.csv").write_text("\n".join(rows))
    (tmp_path / "recsys.toml").write_text('[data]\ninteractions = "log.csv"\n[prepare]\nwindow = 1\n')
    return with_settings(load_config(tmp_path / "recsys.toml"), {"tune.ranges": RANGES, "tune.trials": 50})


def tune(config: Config, **options: Any) -> dict[str, Any]:
    context = RunContext.from_config(config)
    tracker = context.tracking.tracker
    return tuning.tune(config, context.run.of("similar"), context.inputs, context.progress, tracker, **options)


@pytest.mark.slow
def test_best_settings_of_similar_are_found_by_agreement(config: Config, candidates: Candidates, clock: Time) -> None:
    result = tune(config, clock=clock)
    assert candidates.trained[0] == config
    tried = {(each.similar.penalty, each.similar.temperature) for each in candidates.trained}
    assert tried == {(penalty, temperature) for penalty in (20, 90, 200) for temperature in (0.1, 0.15)}
    assert result["trials"] == len(candidates.trained) == TRIALS
    assert result["sense"] == "similar"
    assert (result["base_value"], result["best_value"]) == pytest.approx((0.4, 0.63))
    assert result["seconds"] == TRIALS * PASSES * 10
    text = Path(result["path"]).read_text()
    assert tomllib.loads(text) == {"similar": {"penalty": 20.0, "temperature": 0.15}}
    assert "agreement 0.4000 before, 0.6300 after (NDCG@10, with users held out" in text
    assert all(each.train == config.train for each in candidates.trained)


@pytest.mark.slow
def test_trials_have_the_pairs_of_their_penalty(config: Config, candidates: Candidates, clock: Time) -> None:
    """Trials that differ in the temperature share them."""
    tune(config, clock=clock)
    prepared = {
        each.similar.penalty: (folder, weights)
        for each, folder, weights in zip(candidates.trained, candidates.folders, candidates.pair_weights, strict=True)
    }
    assert len(set(candidates.folders)) == len(set(candidates.pair_weights)) == 3
    for each, folder in zip(candidates.trained, candidates.folders, strict=True):
        assert prepared[each.similar.penalty][0] == folder


@pytest.mark.slow
def test_trials_are_mlflow_runs_with_the_agreement_of_each_pass(
    config: Config, candidates: Candidates, clock: Time
) -> None:
    context = RunContext.from_config(config)
    parent, trials = children(context, tune(config, clock=clock)["id"])
    assert parent.data.tags["recsys.sense"] == "similar"
    for run, tried in zip(trials, candidates.trained, strict=True):
        assert run.data.params.keys() == {"similar.penalty", "similar.temperature"}
        assert {"value", f"validation_{AGREEMENT}"} <= run.data.metrics.keys()
        assert run.data.metrics["value"] == pytest.approx(agreement(tried))
    curve = context.tracking.tracker.client.get_metric_history(trials[0].info.run_id, f"train_validation_{AGREEMENT}")
    assert [point.step for point in curve] == [1, 2, 3, 4]


def test_ranges_of_similar_do_not_change_a_search_for_next(config: Config) -> None:
    without = with_settings(config, {"tune.ranges": {"train.temperature": [0.3]}})
    run = RunContext.from_config(config).run
    assert SearchSpace.from_config(config, "next") == SearchSpace.from_config(without, "next")
    assert tuning.tuning_run(config, run).run_id == tuning.tuning_run(without, run).run_id
    assert tuning.tuning_run(config, run.of("similar")).run_id != tuning.tuning_run(config, run).run_id


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"similar.enabled": False}, ConfigError, "needs similar.enabled = true. Received: false."),
        ({"tune.ranges": {"train.margin": [1]}}, ConfigError, "settings of [similar]. Received: train.margin."),
        ({"prepare.window": 10}, StageError, "within prepare.window = 10. Received: 100%."),
    ],
    ids=["off", "ranges of next", "short histories"],
)
def test_rejects_a_config_without_pairs_of_similar(
    config: Config, candidates: Candidates, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        tune(with_settings(config, settings))
    assert message in str(caught.value)
    assert candidates.trained == []


def test_rejects_labeled_pairs(tmp_path: Path, candidates: Candidates) -> None:
    write_labeled_world(tmp_path, WITHIN)
    with pytest.raises(ConfigError, match=r"needs pairs from interactions. Received: data.labeled_pairs"):
        tune(load_config(tmp_path / "recsys.toml"))
    assert candidates.trained == []


def test_rejects_data_with_too_few_judged_items(
    config: Config, candidates: Candidates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likeness, "MIN_ITEMS", 100)
    with pytest.raises(StageError, match=r"at least 100 items that the users held out associate. Received: 0\."):
        tune(config)
    assert candidates.trained == []


@pytest.mark.slow
def test_value_is_the_agreement_that_the_train_stage_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two trials on the world, without any replacement."""
    monkeypatch.setattr(likeness, "MIN_ITEMS", 10)
    overrides = [*world.QUICK, "prepare.window=1", "similar.passes=2", "tune.trials=2"]
    config = load_config(world.write(tmp_path), overrides)
    result = tune(config)
    context = RunContext.from_config(config)
    for stage in ("prepare", "train"):
        STAGES[stage](context)
    _, measured = STAGES["train-similar"](context)["candidates"].values()
    assert result["trials"] == 2
    assert result["base_value"] == measured["likeness"][AGREEMENT]
    assert 0 < result["base_value"] <= result["best_value"] <= 1
    assert {name.split(".")[0] for name in result["settings"]} <= {"similar"}
    _, trials = children(context, result["id"])
    assert [run.info.status for run in trials] == ["FINISHED", "FINISHED"]
    assert trials[0].data.metrics[f"validation_{AGREEMENT}"] == pytest.approx(result["base_value"])
    assert not list(folder_of(config).glob("prepared-*"))
