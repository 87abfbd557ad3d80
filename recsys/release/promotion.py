"""Changes of the champion: under a lock, only from the expected champion, and recorded in the history."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from recsys.errors import StageError
from recsys.release import history
from recsys.release.history import Action, Event
from recsys.release.versions import VERDICT_TAG, Version

if TYPE_CHECKING:
    from recsys.release.mlflow_registry import Tracker

LOCK = ".promotion.lock"
RECOVERED_REASON = "champion without a history entry: set by hand, or by a process that stopped before recording it"


@contextmanager
def locked(workspace: Path) -> Iterator[None]:
    """Hold the lock for changes of the champion. The lock is released when the process ends, however it ends.

    Raises:
        StageError: another process holds the lock.
    """
    workspace.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(workspace / LOCK).acquire(timeout=0)
    except Timeout:
        raise StageError(
            f"Another process is already promoting a release in {workspace}. Retry when it has finished."
        ) from None
    with lock:
        yield


def change_champion(
    tracker: Tracker,
    version: Version,
    expected: Version | None,
    *,
    action: Action,
    reason: str,
    checks: Sequence[Mapping[str, Any]],
) -> Event:
    """Make a version the champion if the champion is still the expected one, and record the change.

    MLflow overwrites an alias without comparing it. The alias is read before and after, so that a concurrent change
    by another machine raises an error instead of being lost.

    Raises:
        StageError: the champion changed meanwhile.
    """
    _require_champion(tracker, expected)
    tracker.promote(version, expected)
    _require_champion(tracker, version)
    event = Event(action, expected.release_id if expected else None, version.release_id, reason, checks)
    history.append(tracker.workspace, event)
    tracker.record(event)
    return event


def complete_history(tracker: Tracker) -> None:
    """Record the last change of the champion if the process that made it stopped before it was recorded."""
    champion = tracker.champion()
    if champion is None:
        return
    tracked = tracker.events()
    recorded = history.merge(history.read(tracker.workspace), tracked)
    if not recorded or recorded[-1].after != champion.release_id:
        previous = tracker.previous()
        before = previous.release_id if previous and previous != champion else None
        verdict = json.loads(tracker.version_tags(champion).get(VERDICT_TAG, "{}"))
        event = Event("promote", before, champion.release_id, RECOVERED_REASON, verdict.get("checks", []))
        history.append(tracker.workspace, event)
        recorded.append(event)
    if recorded[-1].event_id not in {event.event_id for event in tracked}:
        tracker.record(recorded[-1])


def events(tracker: Tracker) -> list[Event]:
    """Return all changes of the champion, oldest first, from the workspace and from MLflow."""
    return history.merge(history.read(tracker.workspace), tracker.events())


def _require_champion(tracker: Tracker, expected: Version | None) -> None:
    champion = tracker.champion()
    if champion != expected:
        names = [version.release_id if version else "no release" for version in (expected, champion)]
        raise StageError(
            f"the champion of {tracker.model} must be {names[0]}. Received: {names[1]}; another process or user has "
            "changed it. See `recsys releases history`, and run the command again."
        )
