"""The stage on the made-up world: what it keeps, when it asks again, and champions of another kind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipelines.context.libraries import quiet_libraries
from pipelines.context.run_context import RunContext
from pipelines.orchestration.stage_table import STAGES
from pipelines.stages import promote
from recsys.config.loading import load_config
from recsys.errors import RefusedError, StageError
from recsys.evaluation.metrics import CUTS, ranking_metrics
from recsys.release import promotion, quality_gate
from recsys.release.bundle import Release
from recsys.release.formats import MANIFEST
from recsys.release.mlflow_registry import Tracker
from recsys.testing import regressions, world
from tests import GOLDEN_RELEASES

QUICK = ["train.passes=3", "train.history_passes=0", "promote.tolerance=0.3"]
GOLDEN = GOLDEN_RELEASES / "v1"


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a champion, of seed 1, and a release of seed 2 that is published only."""
    quiet_libraries()
    folder = world.write(tmp_path_factory.mktemp("world")).parent
    assert regressions.judge(settings(folder), regressions.night_of).promoted
    regressions.publish(context(folder, "train.seed=2"))
    return folder


@pytest.fixture
def copied(made_up: Path, tmp_path: Path) -> Path:
    shutil.copytree(made_up, tmp_path / "copy")
    return tmp_path / "copy"


def settings(folder: Path, *overrides: str) -> Any:
    return load_config(folder / "recsys.toml", [*QUICK, *overrides])


def context(folder: Path, *overrides: str) -> RunContext:
    return RunContext.from_config(settings(folder, *overrides))


def decided(folder: Path, *overrides: str) -> dict[str, Any]:
    """What the gate says of the challenger, by check."""
    made = STAGES["promote"](context(folder, "train.seed=2", *overrides))
    return {**made, "checks": {check["name"]: check for check in made["checks"]}}


def test_every_check_is_kept_in_mlflow_and_in_the_result(copied: Path) -> None:
    challenger = context(copied, "train.seed=2")
    result = STAGES["promote"](challenger)
    client = MlflowClient(challenger.tracking.tracker.uri)
    version = client.get_model_version_by_alias("item-tower", "champion")
    assert version.tags["recsys.release_id"] == challenger.run.run_id
    assert json.loads(version.tags["recsys.gate"])["checks"] == result["checks"]
    metrics = client.get_run(version.run_id).data.metrics
    for check in result["checks"]:
        assert metrics.get(f"gate_{check['name']}") == check["value"]
    kept = json.loads(challenger.tracking.tracker.read_artifact(version.run_id, "gate/gate.json") or "")
    assert kept["checks"] == result["checks"]
    (_, event) = promotion.events(challenger.tracking.tracker)
    assert event.after == challenger.run.run_id
    assert event.checks == result["checks"]


def test_the_champion_is_asked_what_its_own_evaluation_was_to_the_last_digit(copied: Path) -> None:
    """The same questions, by way of item ids."""
    from pipelines.prepare import stage as prepare
    from recsys.data.catalog import Catalog
    from recsys.release.formats import CATALOG

    challenger = context(copied, "train.seed=2")
    catalog = Catalog.load(challenger.run.path(prepare.STAGE, CATALOG))
    champion = Release.load(challenger.config.workspace / "releases" / context(copied).run.run_id)
    again = ranking_metrics(
        quality_gate.held_out_ranks(champion, promote._held_out_queries(challenger.config, challenger.run, catalog))
    )
    measured = champion.evaluation["model"]
    assert again == {name: measured[name] for name in again}
    assert len(again) == 3 * len(CUTS)


def test_asked_again_it_says_the_same_and_moves_nothing(copied: Path) -> None:
    first = decided(copied)
    assert decided(copied) == first
    assert len(promotion.events(Tracker(settings(copied)))) == 2


def test_other_limits_are_asked_anew(copied: Path) -> None:
    strict = ["promote.overlap_floor=1.0", "promote.quality_floor=1.0"]
    for _ in range(2):
        with pytest.raises(RefusedError, match=r"2 of \d+ checks failed: ndcg_at_20 .*overlap_at_10"):
            decided(copied, *strict)
    assert decided(copied)["promoted"]


def test_a_release_that_was_rolled_back_is_not_put_back_by_its_night(copied: Path) -> None:
    tracker = Tracker(settings(copied))
    first = tracker.champion()
    assert decided(copied)["promoted"]
    second = tracker.champion()
    assert first is not None
    promotion.change_champion(tracker, first, second, action="rollback", reason="a test", checks=[])
    again = decided(copied)
    assert again["passed"]
    assert not again["promoted"]
    assert tracker.champion() == first


def test_a_night_killed_before_the_move_is_completed_by_the_next(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(promotion, "change_champion", killed)
        with pytest.raises(KeyboardInterrupt):
            decided(copied)
    assert decided(copied)["promoted"]


def test_second_promotion_is_rejected_while_one_runs(copied: Path) -> None:
    with (
        promotion.locked(copied / "workspace"),
        pytest.raises(StageError, match="Another process is already promoting"),
    ):
        decided(copied)


@pytest.mark.parametrize("shape", ["tower.dimension=8", 'tower.distance="euclidean"'])
def test_a_champion_of_another_shape_is_compared_by_item_id(copied: Path, shape: str) -> None:
    verdict = regressions.judge(
        settings(copied, shape, "promote.overlap_floor=0.01", "promote.tolerance=1.0"), regressions.night_of
    )
    checks = {check["name"]: check for check in verdict.checks}
    assert verdict.promoted, verdict.error
    assert checks["champion_loads"]["value"] == 1
    assert checks["ndcg_at_20_change"]["verdict"] == checks["overlap_at_10"]["verdict"] == "passed"


def test_a_champion_of_format_1_is_read_and_compared(copied: Path) -> None:
    """Its night's data report is nowhere, but its catalog, of the same world, still tells."""
    tracker = Tracker(settings(copied))
    golden = Release.load(GOLDEN)
    old = tracker.register(tracker.start_run("golden", "snapshot"), golden)
    tracker.promote(old, tracker.champion())
    decision = decided(copied)
    checks = decision["checks"]
    compared = ("champion_loads", "data_lost_items", "data_items_shift", "ndcg_at_20_change", "overlap_at_10")
    assert {checks[name]["verdict"] for name in compared} == {"passed"}
    assert checks["data_lost_volume"]["reason"] == "the champion's data report is lost"
    assert decision["champion"] == old.release_id == golden.release_id
    assert decision["promoted"]


def test_a_champion_that_cannot_be_read_stays_and_is_told(copied: Path) -> None:
    champion = copied / "workspace" / "releases" / context(copied).run.run_id
    manifest = json.loads((champion / MANIFEST).read_text()) | {"format_version": 99}
    (champion / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(RefusedError, match=r"champion_loads 0\.0000.*format version"):
        decided(copied)


def test_the_champions_data_report_comes_from_mlflow_where_its_run_is_gone(copied: Path) -> None:
    shutil.rmtree(context(copied).run.folder)
    checks = decided(copied)["checks"]
    assert checks["data_lost_volume"]["verdict"] == "passed"
    assert checks["data_lost_volume"]["value"] == 0
