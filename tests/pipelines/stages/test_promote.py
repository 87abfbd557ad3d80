"""The promote stage: recorded checks, repeated decisions, and champions of other formats and shapes."""

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
from recsys.errors import RejectedError, StageError
from recsys.evaluation.metrics import CUTS, ranking_metrics
from recsys.release import promotion, quality_gate
from recsys.release.bundle import Release
from recsys.release.formats import MANIFEST
from recsys.release.mlflow_registry import Tracker
from recsys.testing import regressions, world
from tests import GOLDEN_RELEASES

pytestmark = pytest.mark.slow  # the fixture runs all stages twice

QUICK = ["train.passes=3", "train.history_passes=0", "promote.tolerance=0.3"]
GOLDEN = GOLDEN_RELEASES / "v1"


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a workspace with a champion, of seed 1, and a published challenger, of seed 2."""
    quiet_libraries()
    folder = world.write(tmp_path_factory.mktemp("world")).parent
    assert regressions.judge(settings(folder), regressions.run_all_stages).promoted
    regressions.publish(context(folder, "train.seed=2"))
    return folder


@pytest.fixture
def folder(shared_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(shared_folder, tmp_path / "copy")
    return tmp_path / "copy"


def settings(folder: Path, *overrides: str) -> Any:
    return load_config(folder / "recsys.toml", [*QUICK, *overrides])


def context(folder: Path, *overrides: str) -> RunContext:
    return RunContext.from_config(settings(folder, *overrides))


def promote_challenger(folder: Path, *overrides: str) -> dict[str, Any]:
    """Return the decision of the gate about the challenger, with its checks by name."""
    decision = STAGES["promote"](context(folder, "train.seed=2", *overrides))
    return {**decision, "checks": {check["name"]: check for check in decision["checks"]}}


def test_all_checks_are_recorded_in_mlflow(folder: Path) -> None:
    challenger = context(folder, "train.seed=2")
    result = STAGES["promote"](challenger)
    client = MlflowClient(challenger.tracking.tracker.uri)
    version = client.get_model_version_by_alias("item-tower", "champion")
    assert version.tags["recsys.release_id"] == challenger.run.run_id
    assert json.loads(version.tags["recsys.gate"])["checks"] == result["checks"]
    metrics = client.get_run(version.run_id).data.metrics
    for check in result["checks"]:
        assert metrics.get(f"gate_{check['name']}") == check["value"]
    artifact = json.loads(challenger.tracking.tracker.read_artifact(version.run_id, "gate/gate.json") or "")
    assert artifact["checks"] == result["checks"]
    (_, event) = promotion.events(challenger.tracking.tracker)
    assert event.after == challenger.run.run_id
    assert event.checks == result["checks"]


def test_gate_measures_exactly_the_metrics_of_the_champions_own_evaluation(folder: Path) -> None:
    """The gate queries the champion by item ids, and the evaluation by item numbers."""
    from pipelines.prepare import stage as prepare
    from recsys.data.catalog import Catalog
    from recsys.release.formats import CATALOG

    challenger = context(folder, "train.seed=2")
    catalog = Catalog.load(challenger.run.path(prepare.STAGE, CATALOG))
    champion = Release.load(challenger.config.workspace / "releases" / context(folder).run.run_id)
    metrics = ranking_metrics(
        quality_gate.held_out_ranks(
            champion.space("next"), promote._held_out_queries(challenger.config, challenger.run, catalog)
        )
    )
    measured = champion.evaluation["model"]
    assert metrics == {name: measured[name] for name in metrics}
    assert len(metrics) == 3 * len(CUTS)


def test_repeated_promotion_has_the_same_result_and_adds_no_event(folder: Path) -> None:
    first = promote_challenger(folder)
    assert promote_challenger(folder) == first
    assert len(promotion.events(Tracker(settings(folder)))) == 2


def test_changed_limits_are_checked_again(folder: Path) -> None:
    strict = ["promote.overlap_floor=1.0", "promote.quality_floor=1.0"]
    for _ in range(2):
        with pytest.raises(RejectedError, match=r"2 of \d+ checks failed: ndcg_at_20 .*overlap_at_10"):
            promote_challenger(folder, *strict)
    assert promote_challenger(folder)["promoted"]


def test_rolled_back_release_is_not_promoted_again_by_its_run(folder: Path) -> None:
    tracker = Tracker(settings(folder))
    first = tracker.champion()
    assert promote_challenger(folder)["promoted"]
    second = tracker.champion()
    assert first is not None
    promotion.change_champion(tracker, first, second, action="rollback", reason="a test", checks=[])
    decision = promote_challenger(folder)
    assert decision["passed"]
    assert not decision["promoted"]
    assert tracker.champion() == first


def test_interrupted_promotion_is_completed_by_the_next_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(promotion, "change_champion", interrupt)
        with pytest.raises(KeyboardInterrupt):
            promote_challenger(folder)
    assert promote_challenger(folder)["promoted"]


def test_second_promotion_is_rejected_while_one_runs(folder: Path) -> None:
    with (
        promotion.locked(folder / "workspace"),
        pytest.raises(StageError, match="Another process is already promoting"),
    ):
        promote_challenger(folder)


@pytest.mark.parametrize("shape", ["tower.dimension=8", 'tower.distance="euclidean"'])
def test_champion_with_another_dimension_or_distance_is_compared_by_item_id(folder: Path, shape: str) -> None:
    verdict = regressions.judge(
        settings(folder, shape, "promote.overlap_floor=0.01", "promote.tolerance=1.0"), regressions.run_all_stages
    )
    checks = {check["name"]: check for check in verdict.checks}
    assert verdict.promoted, verdict.error
    assert checks["champion_loads"]["value"] == 1
    assert checks["ndcg_at_20_change"]["verdict"] == checks["overlap_at_10"]["verdict"] == "passed"


def test_champion_of_release_format_1_is_compared(folder: Path) -> None:
    """It has no data report, but its catalog is compared."""
    tracker = Tracker(settings(folder))
    golden = Release.load(GOLDEN)
    old = tracker.register(tracker.start_run("golden", "snapshot"), golden)
    tracker.promote(old, tracker.champion())
    decision = promote_challenger(folder)
    checks = decision["checks"]
    compared = ("champion_loads", "data_lost_items", "data_items_shift", "ndcg_at_20_change", "overlap_at_10")
    assert {checks[name]["verdict"] for name in compared} == {"passed"}
    assert checks["data_lost_volume"]["reason"] == "the champion has no data report of this version"
    assert decision["champion"] == old.release_id == golden.release_id
    assert decision["promoted"]


def test_unreadable_champion_fails_the_check_champion_loads(folder: Path) -> None:
    champion = folder / "workspace" / "releases" / context(folder).run.run_id
    manifest = json.loads((champion / MANIFEST).read_text()) | {"format_version": 99}
    (champion / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(RejectedError, match=r"champion_loads 0\.0000.*format version"):
        promote_challenger(folder)


def test_data_report_of_the_champion_is_read_from_mlflow_if_its_run_was_deleted(folder: Path) -> None:
    shutil.rmtree(context(folder).run.folder)
    checks = promote_challenger(folder)["checks"]
    assert checks["data_lost_volume"]["verdict"] == "passed"
    assert checks["data_lost_volume"]["value"] == 0


def test_data_report_of_another_version_is_not_compared(folder: Path) -> None:
    report = context(folder).run.folder / "prepare" / "data_report.json"
    report.write_text(json.dumps({"format": 1, "touched_items": 3}))
    checks = promote_challenger(folder)["checks"]
    assert checks["data_lost_volume"]["reason"] == "the champion has no data report of this version"
    assert checks["data_lost_items"]["verdict"] == "passed"
