"""Realistic regressions injected into nightly runs: the gate rejects each by the expected check, and no retrains."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pytest

from pipelines.context.libraries import quiet_libraries
from pipelines.context.run_context import RunContext
from recsys.config.loading import load_config
from recsys.config.sections import Config
from recsys.evaluation import likeness
from recsys.release.mlflow_registry import Tracker
from recsys.testing import regressions, world
from recsys.testing.regressions import REGRESSIONS, Regression

pytestmark = pytest.mark.e2e

DAYS, DAY_S = 30, 86_400

UNTRAINED = ("train.passes=1", "train.history_passes=0", "train.batch_size=256", "items.categorical=[]")
"""Stopped after one pass: one pass must have few steps, and no genre may distinguish the blocks."""


class Configs(NamedTuple):
    """The configs of the champion's run, and of a run that is published but not promoted."""

    champion: Config
    challenger: Config


@pytest.fixture(scope="module", autouse=True)
def _evidence_of_few_items() -> Iterator[None]:
    """The world has fewer items than evidence of likeness usually needs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(likeness, "MIN_ITEMS", 10)
        yield


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Configs:
    """Synthetic data over a month, with one promoted and one published run."""
    quiet_libraries()
    path = world.write(tmp_path_factory.mktemp("world"))
    interactions = path.parent / "interactions.parquet"
    rows = pl.read_parquet(interactions)
    day = pl.col("user_id").str.strip_prefix("user-").cast(pl.Int64) % DAYS
    rows.with_columns(pl.col("timestamp") + day * DAY_S).write_parquet(interactions)
    champion = load_config(path)
    challenger = load_config(path, ["train.seed=2"])
    assert regressions.judge(champion, regressions.run_all_stages).promoted
    regressions.publish(RunContext.from_config(challenger))
    return Configs(champion, challenger)


@pytest.mark.parametrize("regression", REGRESSIONS, ids=lambda regression: regression.name)
def test_regression_is_rejected_by_the_expected_check(configs: Configs, tmp_path: Path, regression: Regression) -> None:
    if regression.settings:
        regression = regression._replace(settings=UNTRAINED)
    verdict = regressions.inject(regression, *configs, tmp_path)
    assert not verdict.promoted
    assert verdict.rejected_by(regression.expected), (verdict.failed, verdict.error)
    assert regression.expected in verdict.error, "the error must name the check"
    tracker = Tracker(configs.champion)
    champion = tracker.champion()
    assert champion is not None
    assert champion.release_id == RunContext.from_config(configs.champion).run.run_id
    for check in verdict.checks:
        assert check["verdict"] in {"passed", "failed", "skipped"}
        assert (
            (check["verdict"] == "skipped")
            == (check["limit"] is None)
            == ("reason" in check and check["value"] is None)
        )


@pytest.mark.parametrize("seed", [2, 3, 4])
def test_retrain_with_another_seed_is_promoted(configs: Configs, tmp_path: Path, seed: int) -> None:
    retrain = Regression("retrain", "", settings=(f"train.seed={seed}",))
    verdict = regressions.inject(retrain, *configs, tmp_path)
    assert verdict.promoted, verdict.error
