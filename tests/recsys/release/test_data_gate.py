"""Limits on data: each planted fault is told by its own check, and data like the champion's passes."""

from dataclasses import astuple
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest

from recsys.config.sections import ItemsConfig
from recsys.data.catalog import Catalog
from recsys.data.profile import describe
from recsys.data.snapshot import Snapshot
from recsys.release import data_gate

LIMITS = data_gate.LIMITS["normal"]
ITEMS = ItemsConfig(title="title", categorical=("genre",), multi_categorical=("tags",), numeric=("year",))
DAY_S = 86_400


def log(seed=0, *, users=300, items=60, days=40):
    """Interactions: `user`, `item` and `time`, popular items more often."""
    rng = np.random.default_rng(seed)
    n = users * 20
    popular = (items * rng.random(n) ** 2).astype(int)
    times = rng.integers(0, days * DAY_S, n)
    return pl.DataFrame({"user": rng.integers(0, users, n), "item": popular, "time": times})


def catalog(rows, items=60):
    touched = np.bincount(rows["item"].to_numpy(), minlength=items)
    frame = pl.DataFrame(
        {
            "item_id": [f"i{number:02d}" for number in range(items)],
            "title": [f"Title {number}" for number in range(items)],
            "genre": [f"genre {number % 4}" for number in range(items)],
            "tags": [[f"tag {number % 5}", f"tag {number % 3}"] for number in range(items)],
            "year": [1990 + number for number in range(items)],
            "interactions": touched[:items],
        }
    )
    return Catalog(frame)


@pytest.fixture
def told(tmp_path):
    """The data report of a log, as `prepare` writes it."""

    def report(rows, items=None):
        items = items or catalog(rows)
        items.save(tmp_path / "catalog.parquet")
        sequences = rows.sort("user", "time").group_by("user", maintain_order=True)
        frame = sequences.agg(items=pl.col("item").cast(pl.Int32), times=pl.col("time").cast(pl.Float64))
        frame.select(user_id=pl.col("user").cast(pl.String), items="items", times="times").write_parquet(
            tmp_path / "part.parquet"
        )
        snapshot = Snapshot.from_files(tmp_path / "catalog.parquet", [tmp_path / "part.parquet"], ITEMS)
        used = {"read": rows.height, "used": rows.height, "filtered": {}, "dead_letters": {}}
        return {"account": {"interactions": used}, **describe(snapshot)}

    return report


def compared(told, now, before, items=None, earlier=None):
    """Checks of tonight's log against the champion's, by name."""
    items, earlier = items or catalog(now), earlier or catalog(before)
    checks = data_gate.champion_checks(told(now, items), items, told(before, earlier), earlier, ITEMS, limits=LIMITS)
    return {check.name: check for check in checks}


def failed(checks):
    return {name for name, check in checks.items() if not check.passed}


def test_another_month_of_the_same_world_passes(told):
    checks = compared(told, log(1), log(0))
    assert not failed(checks)
    assert all(check.verdict != "skipped" for check in checks.values())


def test_the_same_data_has_not_moved(told):
    for check in compared(told, log(), log()).values():
        assert check.value == 0
        assert check.passed


def test_half_the_catalog_is_half_of_the_items(told):
    rows = log()
    half = rows.filter(pl.col("item") < 30)
    everything, frame = catalog(rows), catalog(half).frame.head(30)
    checks = compared(told, half, rows, Catalog(frame), everything)
    assert checks["data_lost_items"].value == pytest.approx(0.5)
    assert "data_lost_items" in failed(checks)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda rows: rows.filter(pl.col("user") < 100), {"data_lost_volume", "data_lost_users"}),
        (lambda rows: pl.concat([rows] * 3), {"data_grown_volume", "data_grown_day"}),
        (lambda rows: rows.filter(pl.col("time") < 30 * DAY_S), {"data_days_back"}),
        (lambda rows: pl.concat([rows, rows.filter(pl.col("time") // DAY_S == 7)]), {"data_grown_day"}),
        (lambda rows: rows.with_columns(item=59 - pl.col("item")), {"data_popularity_shift"}),
        (lambda rows: rows.with_columns(time=pl.col("time") // DAY_S * DAY_S), {"data_hours_shift"}),
    ],
    ids=["users lost", "three times", "ten days old", "a day twice", "popularity turned", "hours lost"],
)
def test_what_has_gone_wrong_is_told_by_its_check(told, change, expected):
    found = failed(compared(told, change(log()), log()))
    assert expected <= found


@pytest.mark.parametrize("column", ["genre", "tags"])
def test_one_category_for_all_items_is_told_with_a_champion_and_without(told, column):
    rows = log()
    frame = catalog(rows).frame.with_columns(pl.col(column).first())
    checks = compared(told, rows, rows, Catalog(frame), catalog(rows))
    assert failed(checks) == {"data_items_shift"}
    (alone,) = data_gate.column_checks(Catalog(frame), ITEMS, LIMITS)
    assert (alone.name, alone.value, alone.passed) == ("data_one_category", 1.0, False)
    (sound,) = data_gate.column_checks(catalog(rows), ITEMS, LIMITS)
    assert sound.passed
    (none,) = data_gate.column_checks(catalog(rows), ItemsConfig(), LIMITS)
    assert none.verdict == "skipped"


def test_a_column_that_lost_its_values_is_told(told):
    rows = log()
    frame = catalog(rows).frame.with_columns(year=pl.when(pl.col("year") < 2020).then(pl.col("year")))
    checks = compared(told, rows, rows, Catalog(frame), catalog(rows))
    assert checks["data_missing"].value == pytest.approx(0.5)
    assert failed(checks) == {"data_missing"}


def test_a_short_log_has_no_shift_of_weekdays(told):
    checks = compared(told, log(days=20), log(days=20))
    assert checks["data_weekdays_shift"].verdict == checks["data_hours_shift"].verdict == "skipped"
    assert "20 days" in checks["data_weekdays_shift"].reason


def test_without_a_champion_all_is_skipped(told):
    rows = log()
    checks = data_gate.champion_checks(told(rows), catalog(rows), None, None, ITEMS, limits=LIMITS)
    assert {check.reason for check in checks} == {"no champion"}
    names = {check.name for check in checks}
    assert names == set(compared(told, rows, rows))


def test_without_the_champions_report_its_catalog_still_compares(told):
    rows = log()
    checks = data_gate.champion_checks(told(rows), catalog(rows), None, catalog(rows), ITEMS, limits=LIMITS)
    assert {check.name for check in checks if check.verdict == "passed"} == {
        "data_lost_items",
        "data_items_shift",
        "data_popularity_shift",
        "data_missing",
    }


@pytest.mark.parametrize(("hours", "passed"), [(1, True), (23, True), (30, False)])
def test_the_future_is_refused(told, hours, passed):
    report = told(log())
    now = datetime.fromtimestamp(datetime.fromisoformat(report["last"]).timestamp() - hours * 3_600, UTC)
    (ahead, _) = data_gate.day_checks(report, {}, now, LIMITS)
    assert ahead.value == pytest.approx(hours / 24)
    assert ahead.passed is passed


def test_a_day_that_came_twice_is_told_beside_days_that_always_repeat(told):
    """Every day has a tenth of copies; one of them has half."""
    report = told(log())
    usual = {day: {"rows": rows, "copies": rows // 10} for day, rows in report["interactions_a_day"].items()}
    now = datetime.fromisoformat(report["last"])

    def copied(days):
        return data_gate.day_checks(report, days, now, LIMITS)[1]

    assert copied({}).value == 0
    assert copied(usual).passed
    day, rows = next(iter(report["interactions_a_day"].items()))
    twice = copied({**usual, day: {"rows": 2 * rows, "copies": rows}})
    assert twice.value == pytest.approx(0.4, abs=0.02)
    assert not twice.passed
    tiny = copied({"2024-02-29": {"rows": 2, "copies": 1}})
    assert tiny.passed, "one row of a day with hardly any says nothing"


def test_the_account_must_add_up():
    rows = {"read": 100, "used": 80, "filtered": {"repeats": 15}, "dead_letters": {"no time": 5}}
    report = {"account": {"interactions": rows, "items": {**rows, "used": 79}}}
    checks = {check.name: check for check in data_gate.account_checks(report, 0.04)}
    assert checks["interactions_unaccounted_rows"].passed
    assert checks["items_unaccounted_rows"].value == 1
    assert not checks["items_unaccounted_rows"].passed
    assert checks["interactions_dead_letter_ratio"].value == pytest.approx(0.05)
    assert not checks["interactions_dead_letter_ratio"].passed


def test_a_higher_sensitivity_never_allows_more():
    low, normal, high = (astuple(data_gate.LIMITS[level]) for level in ("low", "normal", "high"))
    assert all(a >= b >= c for a, b, c in zip(low, normal, high, strict=True))
    assert low != normal != high
