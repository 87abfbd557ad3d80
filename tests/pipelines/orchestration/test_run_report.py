"""The run report: its metrics against naive computations, and the page for every outcome."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import Mock

import numpy as np
import polars as pl
import pytest

from pipelines.context.progress import Progress
from pipelines.context.run_context import RunContext
from pipelines.orchestration import report_files, run_report
from pipelines.orchestration.nightly import Summary, run_nightly
from pipelines.orchestration.report_data import evaluate_champion
from pipelines.orchestration.run_report import RunEnd, write_report
from pipelines.prepare import stage as prepare
from pipelines.stages import evaluate, train
from recsys import Release
from recsys.config.loading import load_config
from recsys.data.catalog import Catalog
from recsys.errors import RecsysError, RejectedError, StageError
from recsys.evaluation import likeness
from recsys.evaluation.baseline_search import QUERY_KINDS
from recsys.index.recall import tune_search_k
from recsys.release.formats import CATALOG
from recsys.testing import world
from tests.pipelines.reports.test_data_report import Page

pytestmark = pytest.mark.slow

QUIET = Progress(quiet=True)
LENIENT = [
    "promote.tolerance=0.9",
    "promote.stratum_tolerance=0.9",
    "promote.overlap_floor=0.0",
    "promote.data_sensitivity=low",
]
WORSE = ["train.passes=1", "train.learning_rate=1e-9", "items.categorical=[]"]


class FinishedRun(NamedTuple):
    """A finished run."""

    summary: Summary
    context: RunContext
    error: RecsysError | None

    @property
    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads((self.context.run.folder / report_files.REPORT).read_text())
        return report

    @property
    def page(self) -> Page:
        return Page(self.context.run.folder / report_files.PAGE)

    @property
    def release(self) -> Release:
        return Release.load(self.context.config.workspace / "releases" / self.context.run.run_id)


def execute(path: Path, overrides: list[str]) -> FinishedRun:
    config = load_config(path, overrides)
    summary: Summary = {}
    error = None
    try:
        run_nightly(config, QUIET, on_end=summary.update)
    except RecsysError as raised:
        error = raised
    return FinishedRun(summary, RunContext.from_config(config), error)


class Runs(NamedTuple):
    first: FinishedRun
    second: FinishedRun
    rejected: FinishedRun


@pytest.fixture(scope="module", autouse=True)
def _evidence_of_few_items() -> Iterator[None]:
    """The world has fewer items than evidence of likeness usually needs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(likeness, "MIN_ITEMS", 10)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The first champion; its successor, with one item removed and one added; and a rejected challenger."""
    folder = tmp_path_factory.mktemp("runs")
    config = world.write(folder)
    first = execute(config, [])
    world.write(folder, seed=1)
    items = pl.read_csv(folder / "items.csv")
    html_item = {"item_id": "<i>", "title": "<script>alert('&')</script>", "genre": "genre-1"}
    items = pl.concat([items.filter(pl.col("item_id") != world.NEW_ITEM), pl.DataFrame([html_item])])
    items.write_csv(folder / "items.csv")
    rows = ["release_id,shown,clicked", *(f"{first.context.run.run_id},1,{int(n % 4 == 0)}" for n in range(40))]
    (folder / "feedback.csv").write_text("\n".join([*rows, "other,200,3", "other,5,6", "other,x,1", "other,0,0"]))
    second = execute(config, [*LENIENT, f"data.feedback={folder}/feedback.csv"])
    return Runs(first, second, execute(config, WORSE))


# --- metrics


def test_champion_is_evaluated_on_the_same_queries(runs: Runs) -> None:
    """Its NDCG@20 is the mean over users, with the last item as target and the item before it as query."""
    champion, ndcgs = runs.first.release, []
    log = pl.read_parquet(runs.second.context.inputs.interactions[0]).sort("timestamp")
    for _, rows in log.group_by("user_id"):
        query, target = rows["item_id"].to_list()[-2:]
        neighbors = [neighbor.item_id for neighbor in champion.similar(query, 20).neighbors]
        ndcgs.append(1 / math.log2(neighbors.index(target) + 2) if target in neighbors else 0.0)
    report = runs.second.report
    assert report["champion"] == champion.release_id
    champion_metrics = report["quality"]["last_item"]["champion"]
    assert champion_metrics["ndcg_at_20"] == pytest.approx(np.mean(ndcgs), abs=1e-12)
    low, high = champion_metrics["intervals"]["ndcg_at_20"]
    assert low < champion_metrics["ndcg_at_20"] < high
    change = next(check for check in report["decision"]["checks"] if check["name"] == "ndcg_at_20_change")
    assert f"from {champion_metrics['ndcg_at_20']:.4f} to " in change["reason"]


def test_evaluating_a_release_again_gives_the_same_metrics(runs: Runs) -> None:
    """The metrics are exactly equal, for both kinds of queries."""
    context, release = runs.second.context, runs.second.release
    catalog = Catalog.load(context.run.path(prepare.STAGE, CATALOG))
    holdout = train.load_split(context.run).holdout("test", context.config.evaluate.users)
    evaluated = context.run.manifest(evaluate.STAGE)
    for query_kind in QUERY_KINDS:
        measured = evaluated["model"] if query_kind == "last_item" else evaluated["history"]["model"]
        repeated = evaluate_champion(release, catalog, holdout, query_kind)
        assert repeated == {name: measured[name] for name in repeated}


def test_likeness_is_in_the_report_on_the_page_in_the_summary_and_in_mlflow(runs: Runs) -> None:
    run = runs.second
    measured = run.context.run.manifest(evaluate.STAGE)["likeness"]
    trained = run.context.run.of("similar").manifest(train.STAGE)
    tower, popularity = measured["model"][measured["space"]], measured["baselines"]["popularity"]
    likeness = run.report["likeness"]
    assert (likeness["space"], likeness["reason"]) == (trained["space"], trained["reason"])
    assert likeness["models"] == {**measured["model"], **measured["baselines"]}
    assert tower["agreement_at_10"] > popularity["agreement_at_10"]
    for shown in (trained["reason"], f"{tower['agreement_at_10']:.4f}", f"{popularity['agreement_at_10']:.4f}"):
        assert shown in run.page.seen
    tracking = run.context.tracking
    logged = tracking.tracker.client.get_run(tracking.mlflow_run).data
    assert logged.metrics["popularity_agreement_at_10"] == popularity["agreement_at_10"]
    assert logged.metrics[f"{measured['space']}_agreement_at_10"] == tower["agreement_at_10"]
    assert logged.tags["recsys.similar_space"] == run.summary["similar_space"] == measured["space"]
    checks = {check["name"]: check for check in run.report["decision"]["checks"]}
    assert checks["agreement_at_10"]["limit"] == popularity["agreement_at_10"]
    assert checks["agreement_at_10_change"]["verdict"] == "passed"


def test_baselines_that_beat_the_tower_are_named_before_the_parts(runs: Runs) -> None:
    """The tower of one pass predicts worse than the baselines."""
    run = runs.rejected
    sentences = run.report["better_baselines"]
    assert sentences == run.summary["better_baselines"]
    tower = run.report["quality"]["last_item"]["challenger"]["ndcg_at_20"]
    assert any(
        f"better than the tower ({tower:.4f}) at predicting the next item from the last." in s for s in sentences
    )
    assert all(run.page.seen.index(sentence) < run.page.seen.index("Gate checks") for sentence in sentences)


def test_neighbors_come_from_both_releases(runs: Runs) -> None:
    challenger, champion = runs.second.release, runs.first.release
    groups = runs.second.report["neighbors"]
    assert {card["item_id"] for card in groups["new"]} == {"<i>"}
    assert groups["new"][0]["before"] is None
    popularity = dict(challenger.catalog.frame.select("item_id", "interactions").iter_rows())
    assert [card["interactions"] for card in groups["popular"]] == sorted(
        (card["interactions"] for card in groups["popular"]), reverse=True
    )
    item_ids = set()
    for card in [*groups["changed"], *groups["popular"]]:
        item_ids.add(card["item_id"])
        neighbors, champion_neighbors = (
            [neighbor.item_id for neighbor in release.similar(card["item_id"], 10).neighbors]
            for release in (challenger, champion)
        )
        assert card["interactions"] == popularity[card["item_id"]]
        assert card["shared"] == len({*neighbors} & {*champion_neighbors})
        assert [neighbor["item_id"] for neighbor in card["now"]] == neighbors[:6]
        assert [neighbor["item_id"] for neighbor in card["before"]] == champion_neighbors[:6]
        assert all(neighbor["both"] == (neighbor["item_id"] in champion_neighbors) for neighbor in card["now"])
    assert len(item_ids) == len(groups["changed"]) + len(groups["popular"])
    min_shared = min(
        len(
            {n.item_id for n in challenger.similar(item, 10).neighbors}
            & {n.item_id for n in champion.similar(item, 10).neighbors}
        )
        for item in set(challenger.catalog.item_ids) & set(champion.catalog.item_ids)
    )
    assert groups["changed"][0]["shared"] == min_shared


def test_exposure_is_grouped_by_popularity(runs: Runs) -> None:
    release, exposure = runs.second.release, runs.second.report["exposure"]
    for shares in exposure.values():
        assert sum(shares.values()) == pytest.approx(1)
    popularity = dict(release.catalog.frame.select("item_id", "interactions").iter_rows())
    neighbors = [n.item_id for item in popularity for n in release.similar(item, 10).neighbors]
    new_neighbors = sum(not popularity[item_id] for item_id in neighbors)
    assert exposure["neighbors"]["new"] == pytest.approx(new_neighbors / len(neighbors))
    assert exposure["items"]["new"] == pytest.approx(1 / 49)
    assert exposure["interactions"]["new"] == 0


def test_map_shows_the_first_two_principal_components(runs: Runs) -> None:
    """Distances on the map are proportional to distances in these components."""
    release, item_map = runs.second.release, runs.second.report["map"]
    vectors = release.space("similar").vectors
    centered = vectors - vectors.mean(axis=0)
    values, axes = np.linalg.eigh(centered.T @ centered)
    projected = centered @ axes[:, -2:]
    assert item_map["variance"] == pytest.approx(values[-2:].sum() / values.sum(), abs=1e-5)
    map_points = np.array([(item["x"], item["y"]) for item in item_map["items"]])
    distances, map_distances = (np.linalg.norm(p[:, None] - p, axis=2) for p in (projected, map_points))
    assert map_distances == pytest.approx(distances * map_distances.max() / distances.max(), abs=0.05)
    assert map_points.min() >= 0
    assert map_points.max() <= 100


def test_overlap_equals_the_overlap_of_the_gate(runs: Runs) -> None:
    report = runs.second.report
    gate = {check["name"]: check["value"] for check in report["decision"]["checks"]}
    assert report["drift"]["overlap"] == pytest.approx(gate["overlap_at_10"], abs=1e-12)
    assert sum(report["drift"]["shared"]) == report["drift"]["items"] == 48


def test_different_settings_are_listed(runs: Runs) -> None:
    """Settings that do not affect a release, such as the limits of the gate, are not listed."""
    assert runs.second.report["settings"] == []
    settings = {
        setting["name"]: (setting["champion"], setting["challenger"]) for setting in runs.rejected.report["settings"]
    }
    assert settings == {
        "items.categorical": (["genre"], []),
        "train.learning_rate": (0.003, 1e-9),
        "train.passes": (12, 1),
    }


def test_feedback_gives_click_through_by_release(runs: Runs) -> None:
    assert runs.first.report["online"] is None
    run = runs.second
    online = run.report["online"]
    releases = {row["release_id"]: (row["shown"], row["clicked"], row["click_through"]) for row in online["releases"]}
    assert releases == {"other": (200, 3, 0.015), runs.first.context.run.run_id: (40, 10, 0.25)}
    assert all(row["low"] < row["click_through"] < row["high"] for row in online["releases"])
    assert online["unusable"] == 3
    assert " 25.00% " in run.page.seen
    assert " 3 rows could not be used." in run.page.seen


# --- the page


def test_first_run_has_no_champion_to_compare_with(runs: Runs) -> None:
    run = runs.first
    assert (run.summary["outcome"], run.summary["error"]) == ("promoted", None)
    assert run.report["champion"] is None
    assert "the first champion" in run.page.seen
    assert "in place of" not in run.page.seen


def test_page_of_a_promoted_run_shows_checks_stages_and_metrics(runs: Runs) -> None:
    run = runs.second
    page, report = run.page, run.report
    assert run.summary["outcome"] == "promoted"
    assert run.summary["report"] == str(run.context.run.folder / report_files.PAGE)
    assert f"in place of {runs.first.context.run.run_id}" in page.seen
    for check in report["decision"]["checks"]:
        label = check["name"].replace("_", " ").replace("ndcg at 20", "NDCG@20").replace(" at 10", "@10")
        assert f" {label} " in page.seen
    for stage in ("prepare", "train", "evaluate", "promote"):
        assert f" {stage} " in page.seen
    for models in report["quality"].values():
        assert all(f" {figures['ndcg_at_20']:.4f} " in page.seen for figures in models.values())
    assert f" {runs.first.context.run.run_id} " in page.seen


def test_page_is_self_contained_and_escapes_catalog_text(runs: Runs) -> None:
    for run in runs:
        page = run.page
        assert not {"script", "link", "img", "iframe"} & set(page.tags)
        assert {link for link in page.links if not link.startswith("#")} == {"prepare/data_report.html"}
        assert (run.context.run.folder / "prepare" / "data_report.html").exists()
        text = (run.context.run.folder / report_files.PAGE).read_text()
        assert all(f'id="{link[1:]}"' in text for link in page.links if link.startswith("#"))
        assert not re.search(r"url\(|@import|https?://", text)
    assert "<script>alert('&')</script>" in runs.second.page.seen


def test_page_of_a_rejected_run_lists_failed_checks_first(runs: Runs) -> None:
    run = runs.rejected
    assert isinstance(run.error, RejectedError)
    assert run.summary["outcome"] == "rejected"
    assert run.summary["failed_checks"] == [
        check["name"] for check in run.report["decision"]["checks"] if check["verdict"] == "failed"
    ]
    assert "ndcg_at_20_change" in run.summary["failed_checks"]
    text = (run.context.run.folder / report_files.PAGE).read_text()
    verdicts = re.findall(r'<td class="(failed|passed|skipped)">', text)
    assert verdicts == sorted(verdicts, key=["failed", "passed", "skipped"].index)
    assert verdicts[0] == "failed"
    assert f"The champion {runs.second.context.run.run_id} has not changed" in run.page.seen


def test_report_of_a_failed_run_covers_its_finished_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.stages.index.tune_search_k", partial(tune_search_k, max_search_k=3))
    config = world.write(tmp_path)
    run = execute(config, ["index.n_trees=1", "index.recall_target=1.0", "index.recall_floor=1.0", "train.passes=1"])
    assert isinstance(run.error, StageError)
    assert (run.summary["outcome"], run.summary["stage"]) == ("failed", "index")
    page, report = run.page, run.report
    assert str(run.error) in page.seen
    assert "failed in stage index" in page.seen
    assert (report["quality"], report["neighbors"], report["decision"]) == (None, None, None)
    assert report["training"]["passes"]["pairs"] == 1
    assert report["data"]["interactions"] > 0


def test_report_of_a_run_without_finished_stages_names_both_errors(tmp_path: Path) -> None:
    """Unreadable feedback does not prevent the report."""
    config = world.write(tmp_path)
    (tmp_path / "interactions.parquet").write_bytes(b"PAR1 truncated")
    (tmp_path / "feedback.csv").write_text("release,shown,clicked\na,1,1\n")
    run = execute(config, [f"data.feedback={tmp_path}/feedback.csv"])
    assert "column 'release_id' must exist" in run.page.seen
    assert run.summary["stage"] == "prepare"
    assert "failed in stage prepare" in run.page.seen


def test_interrupted_rendering_changes_neither_report_nor_page(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = runs.second.context.run.folder
    before = {path.name: path.read_bytes() for path in folder.glob("run_report.*")}
    monkeypatch.setattr(run_report, "render", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_report(runs.second.context, RunEnd("failed", "stopped", "promote"))
    assert {path.name: path.read_bytes() for path in folder.glob("run_report.*")} == before


def test_finished_run_keeps_its_report(runs: Runs) -> None:
    folder = runs.second.context.run.folder
    files = [folder / name for name in (report_files.REPORT, report_files.PAGE)]
    before = [path.stat().st_mtime_ns for path in files]
    report = runs.second.report
    end = RunEnd("promoted", seconds={"publish": 9.0, "promote": 9.0}, decision=report["decision"])
    assert write_report(runs.second.context, end) == folder / report_files.PAGE
    assert [path.stat().st_mtime_ns for path in files] == before
