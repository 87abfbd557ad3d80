"""Data gate: each injected fault fails the expected check; data that is similar to the champion's passes."""

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
    """Return random interactions with the columns `user`, `item` and `time`; items have different popularity."""
    rng = np.random.default_rng(seed)
    n = users * 20
    popular = (items * rng.random(n) ** 2).astype(int)
    times = rng.integers(0, days * DAY_S, n)
    return pl.DataFrame({"user": rng.integers(0, users, n), "item": popular, "time": times})


def catalog(rows, items=60):
    counts = np.bincount(rows["item"].to_numpy(), minlength=items)
    frame = pl.DataFrame(
        {
            "item_id": [f"i{number:02d}" for number in range(items)],
            "title": [f"Title {number}" for number in range(items)],
            "genre": [f"genre {number % 4}" for number in range(items)],
            "tags": [[f"tag {number % 5}", f"tag {number % 3}"] for number in range(items)],
            "year": [1990 + number for number in range(items)],
            "interactions": counts[:items],
        }
    )
    return Catalog(frame)


@pytest.fixture
def data_report(tmp_path):
    """Factory of data reports of interactions, as `prepare` writes them."""

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


def compare(data_report, rows, champion_rows, items=None, champion_items=None):
    """Return the checks of interactions against those of the champion, by name."""
    items, champion_items = items or catalog(rows), champion_items or catalog(champion_rows)
    checks = data_gate.champion_checks(
        data_report(rows, items),
        items,
        data_report(champion_rows, champion_items),
        champion_items,
        ITEMS,
        limits=LIMITS,
    )
    return {check.name: check for check in checks}


def failed(checks):
    return {name for name, check in checks.items() if not check.passed}


def test_another_sample_of_the_same_distribution_passes(data_report):
    checks = compare(data_report, log(1), log(0))
    assert not failed(checks)
    assert all(check.verdict != "skipped" for check in checks.values())


def test_equal_data_has_no_shift(data_report):
    for check in compare(data_report, log(), log()).values():
        assert check.value == 0
        assert check.passed


def test_reports_the_share_of_lost_items(data_report):
    rows = log()
    half = rows.filter(pl.col("item") < 30)
    all_items, frame = catalog(rows), catalog(half).frame.head(30)
    checks = compare(data_report, half, rows, Catalog(frame), all_items)
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
    ids=["lost users", "tripled rows", "ten days missing", "duplicated day", "reversed popularity", "lost hours"],
)
def test_faults_fail_the_expected_checks(data_report, change, expected):
    failures = failed(compare(data_report, change(log()), log()))
    assert expected <= failures


@pytest.mark.parametrize("column", ["genre", "tags"])
def test_one_category_for_all_items_fails_with_and_without_a_champion(data_report, column):
    rows = log()
    frame = catalog(rows).frame.with_columns(pl.col(column).first())
    checks = compare(data_report, rows, rows, Catalog(frame), catalog(rows))
    assert failed(checks) == {"data_items_shift"}
    (without_champion,) = data_gate.column_checks(Catalog(frame), ITEMS, LIMITS)
    assert (without_champion.name, without_champion.value, without_champion.passed) == ("data_one_category", 1.0, False)
    (sound,) = data_gate.column_checks(catalog(rows), ITEMS, LIMITS)
    assert sound.passed
    (none,) = data_gate.column_checks(catalog(rows), ItemsConfig(), LIMITS)
    assert none.verdict == "skipped"


def test_missing_values_of_a_column_fail(data_report):
    rows = log()
    frame = catalog(rows).frame.with_columns(year=pl.when(pl.col("year") < 2020).then(pl.col("year")))
    checks = compare(data_report, rows, rows, Catalog(frame), catalog(rows))
    assert checks["data_missing"].value == pytest.approx(0.5)
    assert failed(checks) == {"data_missing"}


def test_skips_shifts_of_weekdays_and_hours_of_few_days(data_report):
    checks = compare(data_report, log(days=20), log(days=20))
    assert checks["data_weekdays_shift"].verdict == checks["data_hours_shift"].verdict == "skipped"
    assert "20 days" in checks["data_weekdays_shift"].reason


def test_skips_all_checks_without_a_champion(data_report):
    rows = log()
    checks = data_gate.champion_checks(data_report(rows), catalog(rows), None, None, ITEMS, limits=LIMITS)
    assert {check.reason for check in checks} == {"no champion"}
    names = {check.name for check in checks}
    assert names == set(compare(data_report, rows, rows))


def test_compares_catalogs_without_a_data_report_of_the_champion(data_report):
    rows = log()
    checks = data_gate.champion_checks(data_report(rows), catalog(rows), None, catalog(rows), ITEMS, limits=LIMITS)
    assert {check.name for check in checks if check.verdict == "passed"} == {
        "data_lost_items",
        "data_items_shift",
        "data_popularity_shift",
        "data_missing",
    }


@pytest.mark.parametrize(("hours", "passed"), [(1, True), (23, True), (30, False)])
def test_rejects_interactions_in_the_future(data_report, hours, passed):
    report = data_report(log())
    now = datetime.fromtimestamp(datetime.fromisoformat(report["last"]).timestamp() - hours * 3_600, UTC)
    (ahead, _) = data_gate.day_checks(report, {}, now, LIMITS)
    assert ahead.value == pytest.approx(hours / 24)
    assert ahead.passed is passed


def test_a_duplicated_day_fails_although_every_day_has_some_copies(data_report):
    """Copies are a tenth of the rows of each day, and half of the rows of one day."""
    report = data_report(log())
    usual = {day: {"rows": rows, "copies": rows // 10} for day, rows in report["interactions_per_day"].items()}
    now = datetime.fromisoformat(report["last"])

    def copies_check(days):
        return data_gate.day_checks(report, days, now, LIMITS)[1]

    assert copies_check({}).value == 0
    assert copies_check(usual).passed
    day, rows = next(iter(report["interactions_per_day"].items()))
    duplicated = copies_check({**usual, day: {"rows": 2 * rows, "copies": rows}})
    assert duplicated.value == pytest.approx(0.4, abs=0.02)
    assert not duplicated.passed
    tiny = copies_check({"2024-02-29": {"rows": 2, "copies": 1}})
    assert tiny.passed, "a copy in a day of two rows is not significant"


def test_row_account_must_add_up():
    rows = {"read": 100, "used": 80, "filtered": {"repeats": 15}, "dead_letters": {"no time": 5}}
    report = {"account": {"interactions": rows, "items": {**rows, "used": 79}}}
    checks = {check.name: check for check in data_gate.account_checks(report, 0.04)}
    assert checks["interactions_unaccounted_rows"].passed
    assert checks["items_unaccounted_rows"].value == 1
    assert not checks["items_unaccounted_rows"].passed
    assert checks["interactions_dead_letter_ratio"].value == pytest.approx(0.05)
    assert not checks["interactions_dead_letter_ratio"].passed


def test_higher_sensitivity_has_lower_limits():
    low, normal, high = (astuple(data_gate.LIMITS[level]) for level in ("low", "normal", "high"))
    assert all(a >= b >= c for a, b, c in zip(low, normal, high, strict=True))
    assert low != normal != high
