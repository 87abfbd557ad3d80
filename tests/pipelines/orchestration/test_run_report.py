"""The report of a night: its figures against naive ones, and the page, however the night ended."""

from __future__ import annotations

import json
import math
import re
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
from recsys.errors import RecsysError, RefusedError, StageError
from recsys.evaluation.baseline_search import QUERY_KINDS
from recsys.release.formats import CATALOG
from recsys.testing import world
from tests.pipelines.reports.test_data_report import Page

QUIET = Progress(quiet=True)
LENIENT = [
    "promote.tolerance=0.9",
    "promote.stratum_tolerance=0.9",
    "promote.overlap_floor=0.0",
    "promote.data_sensitivity=low",
]
WORSE = ["train.passes=1", "train.learning_rate=1e-9", "items.categorical=[]"]


class Told(NamedTuple):
    """A night that is over."""

    summary: Summary
    context: RunContext
    error: RecsysError | None

    @property
    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.context.run.folder / report_files.REPORT).read_text())
        return found

    @property
    def page(self) -> Page:
        return Page(self.context.run.folder / report_files.PAGE)

    @property
    def release(self) -> Release:
        return Release.load(self.context.config.workspace / "releases" / self.context.run.run_id)


def told(path: Path, overrides: list[str]) -> Told:
    config = load_config(path, overrides)
    summary: Summary = {}
    error = None
    try:
        run_nightly(config, QUIET, on_end=summary.update)
    except RecsysError as raised:
        error = raised
    return Told(summary, RunContext.from_config(config), error)


class Nights(NamedTuple):
    first: Told
    second: Told
    refused: Told


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Nights:
    """The first champion; another day's, with one item lost and one come, in its place; and one that is refused."""
    folder = tmp_path_factory.mktemp("nights")
    config = world.write(folder)
    first = told(config, [])
    world.write(folder, seed=1)
    items = pl.read_csv(folder / "items.csv")
    evil = {"item_id": "<i>", "title": "<script>alert('&')</script>", "genre": "genre-1"}
    items = pl.concat([items.filter(pl.col("item_id") != world.NEW_ITEM), pl.DataFrame([evil])])
    items.write_csv(folder / "items.csv")
    rows = ["release_id,shown,clicked", *(f"{first.context.run.run_id},1,{int(n % 4 == 0)}" for n in range(40))]
    (folder / "feedback.csv").write_text("\n".join([*rows, "other,200,3", "other,5,6", "other,x,1", "other,0,0"]))
    second = told(config, [*LENIENT, f"data.feedback={folder}/feedback.csv"])
    return Nights(first, second, told(config, WORSE))


# --- figures


def test_the_champion_is_asked_the_same_questions(nights: Nights) -> None:
    """NDCG@20 of each user's last item, asked for by the one before, over what the library answers."""
    champion, gained = nights.first.release, []
    log = pl.read_parquet(nights.second.context.inputs.interactions[0]).sort("timestamp")
    for _, rows in log.group_by("user_id"):
        query, target = rows["item_id"].to_list()[-2:]
        found = [neighbor.item_id for neighbor in champion.similar(query, 20).neighbors]
        gained.append(1 / math.log2(found.index(target) + 2) if target in found else 0.0)
    report = nights.second.report
    assert report["champion"] == champion.release_id
    champions = report["quality"]["last_item"]["champion"]
    assert champions["ndcg_at_20"] == pytest.approx(np.mean(gained), abs=1e-12)
    low, high = champions["intervals"]["ndcg_at_20"]
    assert low < champions["ndcg_at_20"] < high
    change = next(check for check in report["decision"]["checks"] if check["name"] == "ndcg_at_20_change")
    assert f"from {champions['ndcg_at_20']:.4f} to " in change["reason"]


def test_a_release_that_is_asked_again_has_the_figures_of_its_evaluation(nights: Nights) -> None:
    """To the last digit, for both look-ups."""
    context, release = nights.second.context, nights.second.release
    catalog = Catalog.load(context.run.path(prepare.STAGE, CATALOG))
    holdout = train.load_split(context.run).holdout("test", context.config.evaluate.users)
    evaluated = context.run.manifest(evaluate.STAGE)
    for look_up in QUERY_KINDS:
        measured = evaluated["model"] if look_up == "last_item" else evaluated["history"]["model"]
        again = evaluate_champion(release, catalog, holdout, look_up)
        assert again == {name: measured[name] for name in again}


def test_neighbors_are_those_of_both_releases(nights: Nights) -> None:
    now, before = nights.second.release, nights.first.release
    groups = nights.second.report["neighbors"]
    assert {card["item_id"] for card in groups["new"]} == {"<i>"}
    assert groups["new"][0]["before"] is None
    popularity = dict(now.catalog.frame.select("item_id", "interactions").iter_rows())
    assert [card["interactions"] for card in groups["popular"]] == sorted(
        (card["interactions"] for card in groups["popular"]), reverse=True
    )
    seen = set()
    for card in [*groups["changed"], *groups["popular"]]:
        seen.add(card["item_id"])
        ten, ten_before = (
            [neighbor.item_id for neighbor in release.similar(card["item_id"], 10).neighbors]
            for release in (now, before)
        )
        assert card["interactions"] == popularity[card["item_id"]]
        assert card["shared"] == len({*ten} & {*ten_before})
        assert [each["item_id"] for each in card["now"]] == ten[:6]
        assert [each["item_id"] for each in card["before"]] == ten_before[:6]
        assert all(each["both"] == (each["item_id"] in ten_before) for each in card["now"])
    assert len(seen) == len(groups["changed"]) + len(groups["popular"])
    least = min(
        len(
            {n.item_id for n in now.similar(item, 10).neighbors}
            & {n.item_id for n in before.similar(item, 10).neighbors}
        )
        for item in set(now.catalog.item_ids) & set(before.catalog.item_ids)
    )
    assert groups["changed"][0]["shared"] == least


def test_what_is_shown_is_told_by_popularity(nights: Nights) -> None:
    release, exposure = nights.second.release, nights.second.report["exposure"]
    for shares in exposure.values():
        assert sum(shares.values()) == pytest.approx(1)
    popularity = dict(release.catalog.frame.select("item_id", "interactions").iter_rows())
    shown = [n.item_id for item in popularity for n in release.similar(item, 10).neighbors]
    assert exposure["neighbors"]["new"] == pytest.approx(sum(not popularity[item] for item in shown) / len(shown))
    assert exposure["items"]["new"] == pytest.approx(1 / 49)
    assert exposure["interactions"]["new"] == 0


def test_the_map_lays_items_by_the_main_axes_of_their_embeddings(nights: Nights) -> None:
    """Distances on it are those of the two components with most variance, but for one scale."""
    release, drawn = nights.second.release, nights.second.report["map"]
    centerd = release.vectors - release.vectors.mean(axis=0)
    values, axes = np.linalg.eigh(centerd.T @ centerd)
    places = centerd @ axes[:, -2:]
    assert drawn["variance"] == pytest.approx(values[-2:].sum() / values.sum(), abs=1e-5)
    on_map = np.array([(item["x"], item["y"]) for item in drawn["items"]])
    far, far_on_map = (np.linalg.norm(each[:, None] - each, axis=2) for each in (places, on_map))
    assert far_on_map == pytest.approx(far * far_on_map.max() / far.max(), abs=0.05)
    assert on_map.min() >= 0
    assert on_map.max() <= 100


def test_the_overlap_is_that_of_the_gate(nights: Nights) -> None:
    report = nights.second.report
    gate = {check["name"]: check["value"] for check in report["decision"]["checks"]}
    assert report["drift"]["overlap"] == pytest.approx(gate["overlap_at_10"], abs=1e-12)
    assert sum(report["drift"]["shared"]) == report["drift"]["items"] == 48


def test_settings_that_differ_are_told(nights: Nights) -> None:
    """Of what shapes a release: the gate's own limits do not."""
    assert nights.second.report["settings"] == []
    told = {
        setting["name"]: (setting["champion"], setting["challenger"]) for setting in nights.refused.report["settings"]
    }
    assert told == {
        "items.categorical": (["genre"], []),
        "train.learning_rate": (0.003, 1e-9),
        "train.passes": (12, 1),
    }


def test_feedback_becomes_click_through_by_release(nights: Nights) -> None:
    assert nights.first.report["online"] is None
    told = nights.second
    online = told.report["online"]
    found = {each["release_id"]: (each["shown"], each["clicked"], each["click_through"]) for each in online["releases"]}
    assert found == {"other": (200, 3, 0.015), nights.first.context.run.run_id: (40, 10, 0.25)}
    assert all(each["low"] < each["click_through"] < each["high"] for each in online["releases"])
    assert online["unusable"] == 3
    assert " 25.00% " in told.page.seen
    assert " 3 rows could not be used." in told.page.seen


# --- the page


def test_the_first_night_has_no_champion_to_compare_with(nights: Nights) -> None:
    told = nights.first
    assert (told.summary["outcome"], told.summary["error"]) == ("promoted", None)
    assert told.report["champion"] is None
    assert "the first champion" in told.page.seen
    assert "in place of" not in told.page.seen


def test_the_page_of_a_promoted_night(nights: Nights) -> None:
    told = nights.second
    page, report = told.page, told.report
    assert told.summary["outcome"] == "promoted"
    assert told.summary["report"] == str(told.context.run.folder / report_files.PAGE)
    assert f"in place of {nights.first.context.run.run_id}" in page.seen
    for check in report["decision"]["checks"]:
        words = check["name"].replace("_", " ").replace("ndcg at 20", "NDCG@20").replace(" at 10", "@10")
        assert f" {words} " in page.seen
    for stage in ("prepare", "train", "evaluate", "promote"):
        assert f" {stage} " in page.seen
    for models in report["quality"].values():
        assert all(f" {figures['ndcg_at_20']:.4f} " in page.seen for figures in models.values())
    assert f" {nights.first.context.run.run_id} " in page.seen


def test_the_page_needs_nothing_else_and_text_from_outside_stays_text(nights: Nights) -> None:
    for told in nights:
        page = told.page
        assert not {"script", "link", "img", "iframe"} & set(page.tags)
        assert {link for link in page.links if not link.startswith("#")} == {"prepare/data_report.html"}
        assert (told.context.run.folder / "prepare" / "data_report.html").exists()
        text = (told.context.run.folder / report_files.PAGE).read_text()
        assert all(f'id="{link[1:]}"' in text for link in page.links if link.startswith("#"))
        assert not re.search(r"url\(|@import|https?://", text)
    assert "<script>alert('&')</script>" in nights.second.page.seen


def test_the_page_of_a_refused_night_begins_with_what_failed(nights: Nights) -> None:
    told = nights.refused
    assert isinstance(told.error, RefusedError)
    assert told.summary["outcome"] == "refused"
    assert told.summary["failed_checks"] == [
        check["name"] for check in told.report["decision"]["checks"] if check["verdict"] == "failed"
    ]
    assert "ndcg_at_20_change" in told.summary["failed_checks"]
    text = (told.context.run.folder / report_files.PAGE).read_text()
    verdicts = re.findall(r'<td class="(failed|passed|skipped)">', text)
    assert verdicts == sorted(verdicts, key=["failed", "passed", "skipped"].index)
    assert verdicts[0] == "failed"
    assert f"The champion {nights.second.context.run.run_id} has not changed" in told.page.seen


def test_a_night_that_failed_is_told_as_far_as_it_came(tmp_path: Path) -> None:
    config = world.write(tmp_path)
    told_of = told(config, ["index.n_trees=1", "index.recall_target=1.0", "index.recall_floor=1.0", "train.passes=1"])
    assert isinstance(told_of.error, StageError)
    assert (told_of.summary["outcome"], told_of.summary["stage"]) == ("failed", "index")
    page, report = told_of.page, told_of.report
    assert str(told_of.error) in page.seen
    assert "failed in stage index" in page.seen
    assert (report["quality"], report["neighbors"], report["decision"]) == (None, None, None)
    assert report["training"]["passes"]["pairs"] == 1
    assert report["data"]["interactions"] > 0


def test_a_night_without_any_stage_is_told_too(tmp_path: Path) -> None:
    """Nor does feedback that cannot be read keep anything from being told."""
    config = world.write(tmp_path)
    (tmp_path / "interactions.parquet").write_bytes(b"PAR1 no more")
    (tmp_path / "feedback.csv").write_text("release,shown,clicked\na,1,1\n")
    told_of = told(config, [f"data.feedback={tmp_path}/feedback.csv"])
    assert "column 'release_id' must exist" in told_of.page.seen
    assert told_of.summary["stage"] == "prepare"
    assert "failed in stage prepare" in told_of.page.seen


def test_a_report_never_stands_beside_the_page_of_another(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is killed while it writes them."""
    folder = nights.second.context.run.folder
    before = {path.name: path.read_bytes() for path in folder.glob("run_report.*")}
    monkeypatch.setattr(run_report, "render", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_report(nights.second.context, RunEnd("failed", "stopped", "promote"))
    assert {path.name: path.read_bytes() for path in folder.glob("run_report.*")} == before


def test_a_night_that_is_over_keeps_its_report(nights: Nights) -> None:
    folder = nights.second.context.run.folder
    files = [folder / name for name in (report_files.REPORT, report_files.PAGE)]
    before = [path.stat().st_mtime_ns for path in files]
    report = nights.second.report
    end = RunEnd("promoted", seconds={"publish": 9.0, "promote": 9.0}, decision=report["decision"])
    assert write_report(nights.second.context, end) == folder / report_files.PAGE
    assert [path.stat().st_mtime_ns for path in files] == before
