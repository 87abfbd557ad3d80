"""Loader of the releases in the target file into a worker.

A new release is loaded while the current one is served: all files are verified, the results of index and exact search
are compared for some queries, and some complete queries are run. Then a single reference is replaced. If any step
fails, the worker continues to serve the current release, reports the error, and retries with increasing delays.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from recsys import Release
from recsys.errors import RecsysError, ReleaseError, StageError
from serving.live.live_release import LiveRelease
from serving.live.state import State
from serving.workers.backoff import backoff_delays
from serving.workers.target import LAST_SERVED_FILE, TARGET_FILE, Target, read_target, write_target

logger = logging.getLogger(__name__)

MAX_DELAY_S = 60.0
"""Maximum seconds between two attempts to load the same release."""


class ReleaseLoader:
    """Loads and unloads the releases of a worker when the target file changes.

    Args:
        state: the state of the worker.
        folder: folder of the service, which contains the target file.
        check_interval_s: seconds between two checks of the file.
    """

    def __init__(self, state: State, folder: Path, check_interval_s: float) -> None:
        self._state = state
        self._folder = folder
        self._check_interval_s = check_interval_s
        self._thread = threading.Thread(target=self._run, name="release_loader", daemon=True)
        self._failures: dict[str, tuple[float, Iterator[float]]] = {}
        """Location of a release -> time of the next attempt to load it, and the delays of further attempts."""

    def start(self) -> None:
        """Load the target or, if that fails, the release that was served last; then continue in a thread."""
        self.update()
        if self._state.releases.roles.champion is None:
            self._load_last_served()
        self._thread.start()

    def update(self) -> None:
        """Load the releases of the target that are not loaded, and unload releases that are no longer needed."""
        state = self._state
        previous_roles = state.releases.roles
        try:
            target = read_target(self._folder / TARGET_FILE)
        except ReleaseError as error:
            self._set_error("champion_watcher", str(error))
            return
        self._set_error("champion_watcher", target.error)
        locations = (target.champion, target.challenger)
        self._failures = {location: failure for location, failure in self._failures.items() if location in locations}
        champion = self._find_or_load(target.champion, "champion")
        challenger = None
        uses_challenger = state.config.challenger != "none" and target.challenger != target.champion
        if target.challenger is not None and uses_challenger:
            challenger = self._find_or_load(target.challenger, "challenger")
        else:
            self._set_error("challenger", None)
        champion = champion or previous_roles.champion
        is_changed = champion is not previous_roles.champion or challenger is not previous_roles.challenger
        if champion is not None and is_changed:
            self._replace(champion, challenger)
        state.releases.unload_expired()
        if state.releases.roles is not previous_roles:
            self._compact_item_changes()

    def _run(self) -> None:
        while True:
            time.sleep(self._check_interval_s)
            try:
                self.update()
            except Exception:  # after any error, the worker continues to serve the loaded releases
                logger.exception("unexpected error while loading releases")

    def _find_or_load(self, location: str, role: str) -> LiveRelease | None:
        """Return the release of a location, loading it if necessary; return None if that fails."""
        releases = self._state.releases.roles.releases
        loaded = next((release for release in releases if str(release.release.path) == location), None)
        if loaded is not None:
            self._set_error(role, None)
            return loaded
        next_attempt, delays = self._failures.get(location, (0.0, None))
        if time.monotonic() < next_attempt:
            return None
        try:
            release = self._load(location)
        except (RecsysError, OSError, MemoryError) as error:
            delays = delays or backoff_delays(self._check_interval_s, MAX_DELAY_S)
            self._failures[location] = time.monotonic() + next(delays), delays
            self._set_error(role, f"{location} cannot be loaded: {error}")
            self._state.metrics.count_load("failure")
            return None
        self._failures.pop(location, None)
        self._set_error(role, None)
        self._state.metrics.count_load("success")
        return release

    def _load(self, location: str) -> LiveRelease:
        release = LiveRelease(Release.load(location), self._state.embed)
        release.warm_up()
        if self._state.item_changes is not None:
            release.apply(self._state.item_changes)
        return release

    def _replace(self, champion: LiveRelease, challenger: LiveRelease | None) -> None:
        releases = self._state.releases
        is_new = champion is not releases.roles.champion
        self._register([*releases.roles.releases, champion, *([challenger] if challenger else [])])
        releases.replace(champion, challenger)
        if is_new:
            logger.info("release %s is the champion", champion.release_id)
            self._record_last_served(champion)

    def _load_last_served(self) -> None:
        """Load the release that was served last. Called if the target cannot be loaded."""
        try:
            champion = self._load(read_target(self._folder / LAST_SERVED_FILE).champion)
        except (RecsysError, OSError) as error:
            logger.error("no release can be loaded yet: %s", error)  # noqa: TRY400 - the traceback adds nothing
            return
        self._replace(champion, None)

    def _record_last_served(self, champion: LiveRelease) -> None:
        try:
            write_target(self._folder / LAST_SERVED_FILE, Target(champion=str(champion.release.path)))
        except OSError as error:
            logger.warning("the served release cannot be recorded: %s", error)

    def _register(self, releases: list[LiveRelease]) -> None:
        """Register the releases whose item changes this process needs."""
        if self._state.item_changes is None:
            return
        try:
            self._state.item_changes.register_releases(sorted({release.release_id for release in releases}))
        except StageError as error:
            logger.warning("%s", error)

    def _compact_item_changes(self) -> None:
        """Delete the item changes that all loaded releases of all workers contain."""
        item_changes, releases = self._state.item_changes, self._state.releases.roles.releases
        if item_changes is None or not releases:
            return
        self._register(releases)
        try:
            num_deleted = item_changes.compact(
                [release.release_id for release in releases],
                lambda change: all(release.contains(change) for release in releases),
            )
        except StageError as error:
            logger.warning("%s", error)
            return
        if num_deleted:
            logger.info("deleted %d item changes that all loaded releases contain", num_deleted)

    def _set_error(self, component: str, message: str | None) -> None:
        """Record and log the error of a component, or its recovery if `message` is None."""
        errors = self._state.errors
        self._state.metrics.set_error(component, active=message is not None)
        if message == errors.get(component):
            return
        if message is None:
            logger.info("%s has recovered", component)
            self._state.errors = {name: error for name, error in errors.items() if name != component}
        else:
            logger.warning("%s: %s", component, message)
            self._state.errors = {**errors, component: message}
