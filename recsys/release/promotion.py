"""The one way that the champion changes: under a lock, only from what it is known to be, and written down."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from recsys.errors import ReleaseError, StageError
from recsys.release import history
from recsys.release import smoke_test as elsewhere
from recsys.release.bundle import Release
from recsys.release.check import Check, at_least
from recsys.release.history import Action, Event
from recsys.release.mlflow_registry import VERDICT_TAG, Tracker, Version

LOCK = ".promotion.lock"
ASKED, K = 20, 10
"""Items that a release is asked about in another process, and their neighbors."""
FOUND = "found in service: put there by hand, or by a process that was stopped before it wrote that down"


@contextmanager
def locked(workspace: Path) -> Iterator[None]:
    """Hold the right to change the champion: the lock goes with the process, however it ends.

    Raises:
        StageError: another process holds it.
    """
    workspace.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(workspace / LOCK).acquire(timeout=0)
    except Timeout:
        raise StageError(
            f"the champion of {workspace} must be changed by one process at a time. Received: another one is at it. "
            "Run this again when it is done."
        ) from None
    with held:
        yield


def move(
    tracker: Tracker,
    version: Version,
    expected: Version | None,
    *,
    action: Action,
    why: str,
    checks: Sequence[Mapping[str, Any]],
) -> Event:
    """Put a version into service if the champion is still the expected one, and write it down.

    MLflow sets an alias whatever it was. So it is read before and after: what another machine does in between is
    told, not overwritten in silence.

    Raises:
        StageError: the champion changed meanwhile.
    """
    _require(tracker, expected)
    tracker.promote(version, expected)
    _require(tracker, version)
    event = Event(action, expected.release_id if expected else None, version.release_id, why, checks)
    history.append(tracker.workspace, event)
    tracker.record(event)
    return event


def complete(tracker: Tracker) -> None:
    """Write down what is missing of the last move: whoever did it was stopped, or MLflow was away at that moment."""
    champion = tracker.champion()
    if champion is None:
        return
    there = tracker.events()
    known = history.merged(history.read(tracker.workspace), there)
    if not known or known[-1].after != champion.release_id:
        previous = tracker.previous()
        before = previous.release_id if previous and previous != champion else None
        verdict = json.loads(tracker.version_tags(champion).get(VERDICT_TAG, "{}"))
        found = Event("promote", before, champion.release_id, FOUND, verdict.get("checks", []))
        history.append(tracker.workspace, found)
        known.append(found)
    if known[-1].event_id not in {event.event_id for event in there}:
        tracker.record(known[-1])


def events(tracker: Tracker) -> list[Event]:
    """All that is known of the champion's moves, oldest first: what this workspace saw, and what MLflow tells."""
    return history.merged(history.read(tracker.workspace), tracker.events())


def answers_check(release: Release) -> Check:
    """Whether another process loads the release, and answers to the last digit what this one does."""
    ids = release.catalog.item_ids
    asked = [ids[turn * len(ids) // ASKED] for turn in range(ASKED)]
    try:
        found = elsewhere.ask(release.path, asked, K)
    except ReleaseError as error:
        return at_least("answers_elsewhere", 0, 1, str(error))
    same = [one == other for one, other in zip(found, elsewhere.answers(release, asked, K), strict=True)]
    return at_least("answers_elsewhere", sum(same) / len(same), 1)


def require_answers(release: Release) -> None:
    """Refuse what a service could not take over.

    Raises:
        ReleaseError: it does not load and answer in another process.
    """
    check = answers_check(release)
    if not check.passed:
        raise ReleaseError(f"release {release.release_id} must answer before it takes over. Received: {check}.")


def _require(tracker: Tracker, expected: Version | None) -> None:
    found = tracker.champion()
    if found != expected:
        names = [version.release_id if version else "nobody" for version in (expected, found)]
        raise StageError(
            f"the champion of {tracker.model} must be {names[0]} here. Received: {names[1]}, so it was changed "
            "meanwhile, by another machine or by hand. See `recsys releases history`, and run this again."
        )
