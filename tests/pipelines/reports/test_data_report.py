"""The data report that `prepare` leaves: which snapshot it compares with, its figures, and the page."""

import html.parser
import json
import os
import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipelines.context.run_context import RunContext
from pipelines.prepare import stage as prepare
from pipelines.reports import data_report as data_page
from recsys.config.loading import parse_config
from tests import memory_mb

Row = tuple[str, str, int]


def made_up(seed: int, rows: int, items: int = 9) -> list[Row]:
    """User, item and time, over 40 days."""
    rng = random.Random(seed)  # noqa: S311 - made-up data
    return [
        (f"u{rng.randrange(13)}", f"i{rng.randrange(items)}", rng.randrange(10**9, 10**9 + 40 * 86_400))
        for _ in range(rows)
    ]


def prepared(
    folder: Path, log: list[Row], items: list[dict[str, Any]], **tables: Any
) -> tuple[RunContext, dict[str, Any]]:
    """A finished prepare stage in the workspace of the folder, and its data report."""
    name = f"{len(list(folder.glob('log-*')))}"
    schema = ["user_id", "item_id", "timestamp"]
    pl.DataFrame(log, schema=schema, orient="row").write_parquet(folder / f"log-{name}.parquet", row_group_size=17)
    pl.DataFrame(items).write_parquet(folder / f"items-{name}.parquet")
    data = {"interactions": f"log-{name}.parquet", "items": f"items-{name}.parquet", "workspace": "workspace"}
    roles = {"title": "title", "categorical": ["brand"]}
    context = RunContext.from_config(
        parse_config({"data": {key: str(folder / path) for key, path in data.items()}, "items": roles, **tables})
    )
    prepare.prepare(context.config, context.run, context.inputs, context.progress)
    stage = context.run.folder / "prepare"
    # in the order of the runs, whatever the clock's resolution
    os.utime(stage / data_page.REPORT, ns=(int(name) * 10**9, int(name) * 10**9))
    return context, json.loads((stage / data_page.REPORT).read_text())


def goods(items: int, **last: Any) -> list[dict[str, Any]]:
    result = [{"item_id": f"i{n}", "title": f"Item {n}", "brand": f"b{n % 2}"} for n in range(items)]
    return [*result[:-1], {**result[-1], **last}]


class Page(html.parser.HTMLParser):
    """Tags, and the text that a reader sees."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.seen = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.seen += " " + " ".join(data.split())


def page_of(context: RunContext) -> Page:
    return Page(context.run.folder / "prepare" / data_page.PAGE)


# --- what it compares with


def test_report_of_the_first_run_has_no_comparison(tmp_path: Path) -> None:
    log = made_up(1, 90)
    context, report = prepared(tmp_path, log, goods(10))
    manifest = context.run.manifest("prepare")
    assert (report["run_id"], report["data_snapshot"]) == (context.run.run_id, context.run.data_snapshot)
    assert report["previous"] is None
    assert report["account"] == manifest["account"]
    assert report["interactions"] == manifest["account"]["interactions"]["used"]
    assert (report["users"], report["items"]) == (13, 10)
    assert sum(report["interactions_per_day"].values()) == sum(report["interactions_by_hour"]) == report["interactions"]
    assert "This is the first snapshot" in page_of(context).seen


def test_report_compares_with_the_previous_run(tmp_path: Path) -> None:
    log = made_up(1, 90)
    first, before = prepared(tmp_path, log[:70], goods(9))
    _, report = prepared(tmp_path, [*log, ("new user", "i9", 10**9)], goods(12))
    previous = report["previous"]
    assert (previous["run_id"], previous["account"]) == (first.run.run_id, before["account"])
    for figure in ("interactions", "users", "items", "last"):
        assert previous[figure] == before[figure]
    assert (previous["new_items"], previous["lost_items"], previous["new_users"]) == (3, 0, 1)
    assert previous["share_of_new_items"] == round(1 / report["interactions"], 6)


@pytest.mark.slow
def test_previous_run_is_the_last_finished_run(tmp_path: Path) -> None:
    runs = [prepared(tmp_path, made_up(seed, 60), goods(9))[0] for seed in (1, 2)]
    _, report = prepared(tmp_path, made_up(3, 60), goods(9))
    assert report["previous"]["run_id"] == runs[1].run.run_id
    os.utime(runs[0].run.folder / "prepare" / data_page.REPORT, ns=(10**13, 10**13))
    _, report = prepared(tmp_path, made_up(4, 60), goods(9))
    assert report["previous"]["run_id"] == runs[0].run.run_id


@pytest.mark.slow
def test_run_with_other_settings_is_compared_with_the_previous_data(tmp_path: Path) -> None:
    """Not with each other: that would say nothing."""
    first, _ = prepared(tmp_path, made_up(1, 60), goods(9))
    log = made_up(2, 60)
    second, _ = prepared(tmp_path, log, goods(9))
    third, report = prepared(tmp_path, log, goods(9), prepare={"window": 3})
    assert second.run.data_snapshot == third.run.data_snapshot
    assert second.run.run_id != third.run.run_id
    assert report["previous"]["run_id"] == first.run.run_id


@pytest.mark.slow
def test_unreadable_snapshot_does_not_fail_the_run(tmp_path: Path) -> None:
    first, _ = prepared(tmp_path, made_up(1, 60), goods(9))
    second, _ = prepared(tmp_path, made_up(2, 60), goods(9))
    next((second.run.folder / "prepare" / "sequences").iterdir()).unlink()
    context, report = prepared(tmp_path, made_up(3, 60), goods(9))
    assert report["unreadable"] == [second.run.run_id]
    assert report["previous"]["run_id"] == first.run.run_id
    assert f"cannot be read: {second.run.run_id}" in page_of(context).seen


# --- the same input, the same bytes


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant", [{}, {"resources": {"memory_mb": memory_mb(rows=20)}}, {"beam": {"profile": "local-threads"}}]
)
def test_report_does_not_depend_on_units_or_profile(tmp_path: Path, variant: dict[str, Any]) -> None:
    """However the work is cut; only the run's id tells of the settings."""
    texts = []
    for name, tables in (("one", {}), ("other", variant)):
        folder = tmp_path / name
        folder.mkdir()
        prepared(folder, made_up(1, 70), goods(9), **tables)
        context, _ = prepared(folder, made_up(2, 90), goods(11), **tables)
        stage = context.run.folder / "prepare"
        ids = [path.name for path in (folder / "workspace" / "runs").iterdir()]
        both = [(stage / file).read_text() for file in (data_page.REPORT, data_page.PAGE)]
        for run_id in ids:
            role = "now" if run_id == context.run.run_id else "before"
            both = [text.replace(run_id, role) for text in both]
        texts.append(both)
    assert texts[0] == texts[1]


# --- the page


def test_page_is_self_contained_and_shows_the_figures(tmp_path: Path) -> None:
    prepared(tmp_path, made_up(1, 1_900), goods(9))
    context, report = prepared(tmp_path, [*made_up(2, 2_400), ("u1", "unknown", 10**9)], goods(12))
    page = page_of(context)
    account = report["account"]["interactions"]
    for figure in ("interactions", "users", "items"):
        assert f" {report[figure]:,} " in page.seen
    for reason, rows in (account["filtered"] | account["dead_letters"]).items():
        assert f" {reason} " in page.seen
        assert f" {rows:,} " in page.seen
    assert "item_id is not in the catalog" in account["dead_letters"]
    for shift in report["previous"]["shift"]:
        assert f" {shift['name']} " in page.seen
        assert f" {shift['psi']:.3f} " in page.seen
    assert all(item["title"] in page.seen for item in report["top_items"])
    assert page.tags.count("svg") == len(report["previous"]["shift"]) + 2
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert page.links == []


def test_page_escapes_input_text(tmp_path: Path) -> None:
    evil = "<script>alert('&')</script>"
    log = [*made_up(1, 60), *[("u1", "i8", 10**9 + 7), ("u2", "i8", 10**9)] * 20]
    prepared(tmp_path, log[:-9], goods(9))
    context, report = prepared(tmp_path, log, goods(9, title=evil, brand=evil))
    page = page_of(context)
    assert report["top_items"][0]["title"] == evil or evil in {item["title"] for item in report["top_items"]}
    assert evil in page.seen
    assert "script" not in page.tags


def test_bars_combine_days_of_a_long_log(tmp_path: Path) -> None:
    """365 days are more than the bars that a chart may have."""
    log = [(f"u{day % 7}", f"i{day % 9}", 10**9 + day * 86_400) for day in range(365)]
    context, _ = prepared(tmp_path, log, goods(9))
    assert "4 days per bar" in page_of(context).seen
    assert data_page._bars({"2024-02-28": 2, "2024-03-01": 5}) == (
        {"2024-02-28": 2, "2024-02-29": 0, "2024-03-01": 5},
        1,
    )
    bars, width = data_page._bars({"2024-01-01": 1, "2024-01-02": 2, "2024-05-31": 7})
    assert (width, bars["2024-01-01"], bars["2024-05-30"], sum(bars.values())) == (2, 3, 7, 10)
    assert len(bars) == 76


def test_page_without_items_has_no_titles_and_columns(tmp_path: Path) -> None:
    pl.DataFrame(made_up(1, 50), schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(
        tmp_path / "log.csv"
    )
    data = {"interactions": str(tmp_path / "log.csv"), "workspace": str(tmp_path / "workspace")}
    context = RunContext.from_config(parse_config({"data": data}))
    prepare.prepare(context.config, context.run, context.inputs, context.progress)
    report = json.loads((context.run.folder / "prepare" / data_page.REPORT).read_text())
    assert report["missing"] == {}
    assert report["top_items"][0]["title"] is None
    assert f" {report['top_items'][0]['item_id']} " in page_of(context).seen
