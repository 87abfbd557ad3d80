"""Promotion changes the champion under a lock, only if it is the expected one, and records the change."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from recsys import Release
from recsys.config.loading import parse_config
from recsys.errors import ReleaseError, StageError
from recsys.release import history, promotion, smoke_test
from recsys.release.check import at_least, at_most
from recsys.release.history import Event
from recsys.release.mlflow_registry import Tracker
from recsys.release.versions import VERDICT_TAG, Version

CHECKS = [at_least("ndcg_at_20", 0.1, 0.05).to_dict(), at_most("latency_ms", 30, 20).to_dict()]


@pytest.fixture
def tracker(tmp_path: Path) -> Tracker:
    return Tracker(parse_config({"data": {"interactions": "log.csv", "workspace": str(tmp_path / "workspace")}}))


@pytest.fixture
def versions(tracker: Tracker, register_releases: Any) -> list[Version]:
    """Three registered releases, none of them the champion."""
    registered: list[Version] = register_releases(tracker, 3)
    return registered


def change_champion(tracker: Tracker, version: Version, expected: Version | None, reason: str = "a test") -> Event:
    return promotion.change_champion(tracker, version, expected, action="promote", reason=reason, checks=CHECKS)


def test_change_sets_both_aliases_and_is_recorded_twice(tracker: Tracker, versions: list[Version]) -> None:
    first, second, _ = versions
    events = [change_champion(tracker, first, None), change_champion(tracker, second, first, "better")]
    assert tracker.champion() == second
    assert tracker.previous() == first
    assert [(event.before, event.after, event.reason) for event in events] == [
        (None, "release-0", "a test"),
        ("release-0", "release-1", "better"),
    ]
    assert history.read(tracker.workspace) == tracker.events() == promotion.events(tracker) == events
    assert events[1].failed == ["latency_ms"]
    assert "@" in events[1].user


def test_rejects_change_if_the_champion_is_not_the_expected_one(tracker: Tracker, versions: list[Version]) -> None:
    first, second, third = versions
    change_champion(tracker, first, None)
    change_champion(tracker, second, first)  # another process was faster
    with pytest.raises(StageError, match=r"must be release-0. Received: release-1; .*has changed it"):
        change_champion(tracker, third, first)
    assert tracker.champion() == second
    assert len(promotion.events(tracker)) == 2


def test_concurrent_change_of_the_champion_is_an_error(
    tracker: Tracker, versions: list[Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process sets the alias last: our release is not the champion, and the history has no entry."""
    first, second, _ = versions

    def promote_and_overwrite(version: Version, champion: Version | None) -> None:
        Tracker.promote(tracker, version, champion)
        tracker.client.set_registered_model_alias(tracker.model, "champion", second.number)

    monkeypatch.setattr(tracker, "promote", promote_and_overwrite)
    with pytest.raises(StageError, match=r"must be release-0. Received: release-1"):
        change_champion(tracker, first, None)
    assert promotion.events(tracker) == []


def test_history_survives_deleted_versions_and_a_lost_workspace_file(tracker: Tracker, versions: list[Version]) -> None:
    event = change_champion(tracker, versions[0], None)
    client = MlflowClient(tracker.uri)
    client.delete_model_version(tracker.model, versions[0].number)
    assert tracker.champion() is None
    assert promotion.events(tracker) == [event]
    (tracker.workspace / history.FILE).unlink()
    assert promotion.events(tracker) == [event]


def test_unrecorded_change_is_recorded_once(tracker: Tracker, versions: list[Version]) -> None:
    """The process was stopped between change and record, or only the MLflow record is missing."""
    promotion.complete_history(tracker)
    assert promotion.events(tracker) == []
    change_champion(tracker, versions[0], None)
    tracker.tag_version(versions[1], {VERDICT_TAG: json.dumps({"passed": False, "checks": CHECKS})})
    tracker.promote(versions[1], versions[0])
    for _ in range(2):
        promotion.complete_history(tracker)
        recorded = tracker.events()
        assert history.read(tracker.workspace) == recorded
        assert [(event.before, event.after) for event in recorded] == [(None, "release-0"), ("release-0", "release-1")]
        assert recorded[1].failed == ["latency_ms"]
    event = Event("rollback", "release-1", "release-0", "only here", CHECKS)
    tracker.promote(versions[0], versions[1])
    history.append(tracker.workspace, event)
    promotion.complete_history(tracker)
    assert tracker.events()[2:] == [event]


def test_incomplete_line_of_a_killed_process_is_ignored(tmp_path: Path) -> None:
    events = [Event("promote", None, f"release-{number}", "a test", []) for number in range(2)]
    history.append(tmp_path, events[0])
    with (tmp_path / history.FILE).open("a") as file:
        file.write('{"action": "promo')
    history.append(tmp_path, events[1])
    assert history.read(tmp_path) == events


def test_merges_events_of_two_sources_by_time() -> None:
    older, newer = (Event("promote", None, "x", "", [], time=f"2024-01-0{day}T00:00:00+00:00") for day in (1, 2))
    assert history.merge([newer, older], [older]) == [older, newer]


def test_records_only_failed_checks_in_mlflow_if_all_are_too_long(tracker: Tracker, versions: list[Version]) -> None:
    checks = [at_least(f"check_{number}", 1, 0, "x" * 100).to_dict() for number in range(100)] + CHECKS
    promotion.change_champion(tracker, versions[0], None, action="promote", reason="", checks=checks)
    (recorded,) = tracker.events()
    assert [check["name"] for check in recorded.checks] == ["latency_ms"]
    (event,) = history.read(tracker.workspace)
    assert len(event.checks) == 102


HOLD_LOCK = """
import sys
from pathlib import Path
from recsys.release import promotion
with promotion.locked(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_lock_excludes_other_processes_and_is_released_when_its_process_is_killed(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    with pytest.raises(StageError, match="Another process is already promoting"), promotion.locked(tmp_path):
        pytest.fail("two processes have the lock")
    holder.kill()
    holder.communicate()
    with promotion.locked(tmp_path):
        pass


# --- in another process


def test_new_process_returns_equal_results(write_release: Any) -> None:
    release = Release.load(write_release(['quote " and newline \n', "-k", "NUL \0", *(f"item {n}" for n in range(9))]))
    check = smoke_test.answers_check(release)
    assert (check.value, check.passed) == (1.0, True)
    smoke_test.require_answers(release)


def test_release_that_fails_to_load_in_a_new_process_fails_with_the_reason(write_release: Any) -> None:
    """The release is damaged after this process has loaded it."""
    release = Release.load(write_release([f"item {n}" for n in range(9)]))
    (release.path / "catalog.parquet").unlink()
    check = smoke_test.answers_check(release)
    assert not check.passed
    assert "catalog.parquet" in str(check)
    with pytest.raises(ReleaseError, match=r"must pass the smoke test.*catalog\.parquet"):
        smoke_test.require_answers(release)


def test_different_results_of_a_new_process_fail(write_release: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    release = Release.load(write_release([f"item {n}" for n in range(9)]))
    wrong_results = smoke_test.search(release, release.catalog.item_ids[:1] * smoke_test.QUERIES, smoke_test.K)
    monkeypatch.setattr(smoke_test, "search_in_new_process", lambda *_: wrong_results)
    assert not smoke_test.answers_check(release).passed


def test_different_results_in_one_sense_fail(write_release: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process answers every query in the sense `similar`."""
    release = Release.load(write_release([f"item {n}" for n in range(9)], spaces=("similar", "next")))

    def search(_: Path, item_ids: list[str], k: int) -> list[Any]:
        return [release.similar(item_id, k).to_dict() for _ in ("similar", "next") for item_id in item_ids]

    monkeypatch.setattr(smoke_test, "search_in_new_process", search)
    check = smoke_test.answers_check(release)
    assert (check.value, check.passed) == (0.5, False)
