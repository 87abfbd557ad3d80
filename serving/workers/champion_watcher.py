"""Watcher that polls the source of the releases to serve, and writes them to the target file of the workers.

It runs in the supervisor, because workers do not access MLflow or object stores. If the source fails, it is polled
again with increasing delays, and the last target remains in effect.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path

from recsys.data import storage
from recsys.data.storage import RemoteLocation
from recsys.errors import RecsysError, ReleaseError
from recsys.release import remote
from recsys.release.formats import MANIFEST
from serving.workers.backoff import backoff_delays
from serving.workers.target import TARGET_FILE, Target, read_target, write_target

logger = logging.getLogger(__name__)

MAX_DELAY_S = 300.0
"""Maximum seconds between two attempts after a failure."""

Source = Callable[[], Target]
"""Function that returns the releases to serve, as folders on this machine, or raises RecsysError."""


def source_from_location(location: str) -> Source:
    """Return a source that reads the releases from a location.

    Args:
        location: folder or URL of a release; folder or URL that contains releases, of which the newest is served; or
            a file that names releases (see `serving.workers.target`).
    """

    def load_target() -> Target:
        if Path(location).is_file():
            target = read_target(Path(location))
            folder = Path(location).parent
            challenger = None if target.challenger is None else _local_folder(target.challenger, folder)
            return Target(champion=_local_folder(target.champion, folder), challenger=challenger)
        return Target(champion=_local_folder(_newest_release(location), Path()))

    return load_target


def _local_folder(location: str, folder: Path) -> str:
    """Return the folder of a release on this machine, with links resolved, so that a changed link is detected."""
    absolute = location if isinstance(storage.locate(location), RemoteLocation) else str(folder / location)
    return str(remote.fetch(absolute).resolve())


def _newest_release(location: str) -> str:
    """Return the location if it is a release, otherwise the newest release in it."""
    root = storage.locate(location)
    if (root / MANIFEST).exists():
        return location
    releases = []
    for name in root.list_names():
        manifest = root / name / MANIFEST
        if not name.startswith(".") and manifest.exists():
            with manifest.open() as file:
                releases.append((json.load(file).get("created_at", ""), (root / name).name))
    if not releases:
        raise ReleaseError(
            f"release must be a folder with a {MANIFEST}, or a folder of such folders. Received: {root.display_name}."
        )
    return max(releases)[1]


class ChampionWatcher:
    """Polls a source and writes the target file.

    Args:
        source: returns the releases to serve.
        folder: folder of the service, which contains the target file.
        poll_interval_s: seconds between two polls.
    """

    def __init__(self, source: Source, folder: Path, poll_interval_s: float) -> None:
        self._source = source
        self._path = folder / TARGET_FILE
        self._poll_interval_s = poll_interval_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="champion_watcher", daemon=True)

    def start(self) -> None:
        """Poll once, then continue in a thread.

        Raises:
            RecsysError: the source fails, and the champion of the last target is not on this machine.
        """
        try:
            self._write(self._source())
        except Exception as error:  # after any error, an earlier target can still be served
            if not self._has_target():
                raise
            self._write_error(error)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread without waiting for a poll in progress."""
        self._stopped.set()

    def _run(self) -> None:
        delays = backoff_delays(self._poll_interval_s, MAX_DELAY_S)
        delay_s = self._poll_interval_s
        while not self._stopped.wait(delay_s):
            try:
                self._write(self._source())
                delays, delay_s = backoff_delays(self._poll_interval_s, MAX_DELAY_S), self._poll_interval_s
            except Exception as error:  # noqa: BLE001 - as above
                delay_s = next(delays)
                self._write_error(error)

    def _has_target(self) -> bool:
        try:
            return (Path(read_target(self._path).champion) / MANIFEST).exists()
        except ReleaseError:
            return False

    def _write(self, target: Target) -> None:
        try:
            if read_target(self._path) == target:
                return
        except ReleaseError:
            pass
        write_target(self._path, target)

    def _write_error(self, error: Exception) -> None:
        if not isinstance(error, RecsysError):
            logger.error("unexpected error while polling the champion", exc_info=error)
        # the message of an unexpected error may contain secrets
        message = str(error) if isinstance(error, RecsysError) else type(error).__name__
        try:
            self._write(read_target(self._path).model_copy(update={"error": message}))
        except (ReleaseError, OSError) as write_error:
            logger.error("%s", write_error)  # noqa: TRY400 - the traceback adds nothing
