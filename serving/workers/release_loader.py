"""Keeps a worker's shelf as the file of what is wanted says.

What is wanted is loaded beside what is served: every file is verified, index and exact search are asked known
questions, and some questions are asked through the whole look-up. Then one reference is replaced. Where any of that
fails, the worker goes on with what it has, says so, and tries again later and later.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from recsys import Release
from recsys.errors import RecsysError, ReleaseError, StageError
from serving.live.live_release import Edition
from serving.live.state import State
from serving.workers import target as wanted
from serving.workers.backoff import delays
from serving.workers.target import SERVED, WANTED, Wanted

logger = logging.getLogger(__name__)

LONGEST_S = 60.0
"""Between two tries to load the same release."""


class Follower:
    """Follows one folder.

    Args:
        state: whose shelf.
        folder: where `wanted.json` lies.
        look_s: seconds between two looks at it.
    """

    def __init__(self, state: State, folder: Path, look_s: float) -> None:
        self._state = state
        self._folder = folder
        self._look_s = look_s
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self._failures: dict[str, tuple[float, Iterator[float]]] = {}
        """Place of a release -> when to try it again, and how long to wait after that."""

    def start(self) -> None:
        """Load what is wanted, or what was served last, and follow in a thread until the process ends."""
        self.look()
        if self._state.shelf.standing.champion is None:
            self._serve_last()
        self._thread.start()

    def look(self) -> None:
        """Load what is wanted and not loaded, and let go of what is not wanted any more."""
        state = self._state
        before = state.shelf.standing
        try:
            asked = wanted.read(self._folder / WANTED)
        except ReleaseError as error:
            self._trouble("watch", str(error))
            return
        self._trouble("watch", asked.trouble)
        places = (asked.champion, asked.challenger)
        self._failures = {place: failure for place, failure in self._failures.items() if place in places}
        champion = self._edition(asked.champion, "champion")
        challenger = None
        if asked.challenger is not None and state.config.challenger != "none" and asked.challenger != asked.champion:
            challenger = self._edition(asked.challenger, "challenger")
        else:
            self._trouble("challenger", None)
        champion = champion or before.champion
        if champion is not None and (champion is not before.champion or challenger is not before.challenger):
            self._swap(champion, challenger)
        state.shelf.clear()
        if state.shelf.standing is not before:
            self._settle()

    def _run(self) -> None:
        while True:
            time.sleep(self._look_s)
            try:
                self.look()
            except Exception:  # whatever it is, what is served goes on
                logger.exception("following failed")

    def _edition(self, place: str, role: str) -> Edition | None:
        """What is loaded from a place, or is loaded now; None while that fails."""
        found = next((e for e in self._state.shelf.standing.editions if str(e.release.path) == place), None)
        if found is not None:
            self._trouble(role, None)
            return found
        due, waits = self._failures.get(place, (0.0, None))
        if time.monotonic() < due:
            return None
        try:
            edition = self._load(place)
        except (RecsysError, OSError, MemoryError) as error:
            waits = waits or delays(self._look_s, LONGEST_S)
            self._failures[place] = time.monotonic() + next(waits), waits
            self._trouble(role, f"{place} cannot be served: {error}")
            self._state.telemetry.loaded("failed")
            return None
        self._failures.pop(place, None)
        self._trouble(role, None)
        self._state.telemetry.loaded("done")
        return edition

    def _load(self, place: str) -> Edition:
        edition = Edition(Release.load(place), self._state.embed, self._state.config.night_h)
        edition.warm()
        if self._state.journal is not None:
            edition.follow(self._state.journal)
        return edition

    def _swap(self, champion: Edition, challenger: Edition | None) -> None:
        shelf = self._state.shelf
        new = champion is not shelf.standing.champion
        editions = [*shelf.standing.editions, champion, *([challenger] if challenger else [])]
        self._reading(editions)
        shelf.put(champion, challenger)
        if new:
            logger.info("release %s is the champion", champion.release_id)
            self._remember(champion)

    def _serve_last(self) -> None:
        """What is wanted cannot be loaded, and there is nothing yet: go on with what was served before."""
        try:
            champion = self._load(wanted.read(self._folder / SERVED).champion)
        except (RecsysError, OSError) as error:
            logger.error("nothing can be served yet: %s", error)  # noqa: TRY400 - its message is all there is to say
            return
        self._swap(champion, None)

    def _remember(self, champion: Edition) -> None:
        try:
            wanted.write(self._folder / SERVED, Wanted(champion=str(champion.release.path)))
        except OSError as error:
            logger.warning("what is served cannot be remembered: %s", error)

    def _reading(self, editions: list[Edition]) -> None:
        """Say which changes are still needed."""
        if self._state.journal is None:
            return
        try:
            self._state.journal.reading(sorted({edition.release_id for edition in editions}))
        except StageError as error:
            logger.warning("%s", error)

    def _settle(self) -> None:
        """Drop changes that all releases contain that anybody still serves."""
        journal, editions = self._state.journal, self._state.shelf.standing.editions
        if journal is None or not editions:
            return
        self._reading(editions)
        try:
            dropped = journal.settle(
                [edition.release_id for edition in editions],
                lambda entry: all(edition.contains(entry) for edition in editions),
            )
        except StageError as error:
            logger.warning("%s", error)
            return
        if dropped:
            logger.info("%d changes are in the releases now", dropped)

    def _trouble(self, doing: str, what: str | None) -> None:
        """Say what is wrong, in the log when it begins and when it ends."""
        troubles = self._state.troubles
        self._state.telemetry.troubled(doing, now=what is not None)
        if what == troubles.get(doing):
            return
        if what is None:
            logger.info("%s is well again", doing)
            self._state.troubles = {name: told for name, told in troubles.items() if name != doing}
        else:
            logger.warning("%s: %s", doing, what)
            self._state.troubles = {**troubles, doing: what}
