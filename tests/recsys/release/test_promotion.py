"""The champion changes in one way: under a lock, from what it is known to be, and it is written down."""

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
from recsys.release import history, promotion
from recsys.release import smoke_test as elsewhere
from recsys.release.check import at_least, at_most
from recsys.release.history import Event
from recsys.release.mlflow_registry import VERDICT_TAG, Tracker, Version

CHECKS = [at_least("ndcg_at_20", 0.1, 0.05).as_data(), at_most("latency_ms", 30, 20).as_data()]


@pytest.fixture
def tracker(tmp_path: Path) -> Tracker:
    return Tracker(parse_config({"data": {"interactions": "log.csv", "workspace": str(tmp_path / "workspace")}}))


@pytest.fixture
def versions(tracker: Tracker, register_releases: Any) -> list[Version]:
    """Three registered releases, none of them in service."""
    made: list[Version] = register_releases(tracker, 3)
    return made


def move(tracker: Tracker, version: Version, expected: Version | None, why: str = "a test") -> Event:
    return promotion.move(tracker, version, expected, action="promote", why=why, checks=CHECKS)


def test_a_move_sets_both_aliases_and_is_told_by_both_places(tracker: Tracker, versions: list[Version]) -> None:
    first, second, _ = versions
    events = [move(tracker, first, None), move(tracker, second, first, "better")]
    assert tracker.champion() == second
    assert tracker.previous() == first
    assert [(event.before, event.after, event.why) for event in events] == [
        (None, "release-0", "a test"),
        ("release-0", "release-1", "better"),
    ]
    assert history.read(tracker.workspace) == tracker.events() == promotion.events(tracker) == events
    assert events[1].failed == ["latency_ms"]
    assert "@" in events[1].who


def test_a_champion_that_changed_meanwhile_is_not_overwritten(tracker: Tracker, versions: list[Version]) -> None:
    first, second, third = versions
    move(tracker, first, None)
    move(tracker, second, first)  # another machine was faster
    with pytest.raises(StageError, match=r"must be release-0 here. Received: release-1, .*changed meanwhile"):
        move(tracker, third, first)
    assert tracker.champion() == second
    assert len(promotion.events(tracker)) == 2


def test_a_champion_that_changes_at_the_same_moment_is_told(
    tracker: Tracker, versions: list[Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one's alias lands after ours: ours is not in service, and the history does not say so."""
    first, second, _ = versions

    def promote_and_lose(version: Version, champion: Version | None) -> None:
        Tracker.promote(tracker, version, champion)
        tracker.client.set_registered_model_alias(tracker.model, "champion", second.number)

    monkeypatch.setattr(tracker, "promote", promote_and_lose)
    with pytest.raises(StageError, match=r"must be release-0 here. Received: release-1"):
        move(tracker, first, None)
    assert promotion.events(tracker) == []


def test_the_history_outlives_the_versions_and_the_workspace(tracker: Tracker, versions: list[Version]) -> None:
    event = move(tracker, versions[0], None)
    client = MlflowClient(tracker.uri)
    client.delete_model_version(tracker.model, versions[0].number)
    assert tracker.champion() is None
    assert promotion.events(tracker) == [event]
    (tracker.workspace / history.FILE).unlink()
    assert promotion.events(tracker) == [event]


def test_a_move_that_nobody_wrote_down_is_written_down_once(tracker: Tracker, versions: list[Version]) -> None:
    """Whoever did it was stopped in between; also where only MLflow was not told."""
    promotion.complete(tracker)
    assert promotion.events(tracker) == []
    move(tracker, versions[0], None)
    tracker.tag_version(versions[1], {VERDICT_TAG: json.dumps({"passed": False, "checks": CHECKS})})
    tracker.promote(versions[1], versions[0])
    for _ in range(2):
        promotion.complete(tracker)
        told = tracker.events()
        assert history.read(tracker.workspace) == told
        assert [(event.before, event.after) for event in told] == [(None, "release-0"), ("release-0", "release-1")]
        assert told[1].failed == ["latency_ms"]
    event = Event("rollback", "release-1", "release-0", "only here", CHECKS)
    tracker.promote(versions[0], versions[1])
    history.append(tracker.workspace, event)
    promotion.complete(tracker)
    assert tracker.events()[2:] == [event]


def test_half_a_line_of_a_killed_process_is_no_event(tmp_path: Path) -> None:
    events = [Event("promote", None, f"release-{number}", "a test", []) for number in range(2)]
    history.append(tmp_path, events[0])
    with (tmp_path / history.FILE).open("a") as file:
        file.write('{"action": "promo')
    history.append(tmp_path, events[1])
    assert history.read(tmp_path) == events


def test_events_of_two_places_are_told_once_in_their_order() -> None:
    older, newer = (Event("promote", None, "x", "", [], when=f"2024-01-0{day}T00:00:00+00:00") for day in (1, 2))
    assert history.merged([newer, older], [older]) == [older, newer]


def test_checks_that_are_too_long_for_mlflow_keep_what_failed(tracker: Tracker, versions: list[Version]) -> None:
    checks = [at_least(f"check_{number}", 1, 0, "x" * 100).as_data() for number in range(100)] + CHECKS
    promotion.move(tracker, versions[0], None, action="promote", why="", checks=checks)
    (told,) = tracker.events()
    assert [check["name"] for check in told.checks] == ["latency_ms"]
    (kept,) = history.read(tracker.workspace)
    assert len(kept.checks) == 102


HOLD = """
import sys
from pathlib import Path
from recsys.release import promotion
with promotion.locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_at_once_are_told_apart_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(StageError, match="another one is at it"), promotion.locked(tmp_path):
        pytest.fail("two hold the lock")
    holder.kill()
    holder.communicate()
    with promotion.locked(tmp_path):
        pass


# --- in another process


def test_a_whole_release_answers_the_same_in_another_process(write_release: Any) -> None:
    release = Release.load(write_release(['quote " and newline \n', "-k", "NUL \0", *(f"item {n}" for n in range(9))]))
    check = promotion.answers_check(release)
    assert (check.value, check.passed) == (1.0, True)
    promotion.require_answers(release)


def test_a_release_that_does_not_load_elsewhere_is_told_with_its_reason(write_release: Any) -> None:
    """Damaged after this process mapped it."""
    release = Release.load(write_release([f"item {n}" for n in range(9)]))
    (release.path / "catalog.parquet").unlink()
    check = promotion.answers_check(release)
    assert not check.passed
    assert "catalog.parquet" in str(check)
    with pytest.raises(ReleaseError, match=r"must answer before it takes over.*catalog\.parquet"):
        promotion.require_answers(release)


def test_other_answers_elsewhere_are_no_answers(write_release: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    release = Release.load(write_release([f"item {n}" for n in range(9)]))
    wrong = elsewhere.answers(release, release.catalog.item_ids[:1] * promotion.ASKED, promotion.K)
    monkeypatch.setattr(elsewhere, "ask", lambda *_: wrong)
    assert not promotion.answers_check(release).passed
