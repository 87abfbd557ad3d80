"""Finds out which releases are to be served, and tells the workers by a file.

It runs once for all workers, outside of them: what knows MLflow or an object store stays out of the processes that
answer. Whoever cannot be asked is asked again, later and later; until then what was told last holds.
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
from serving.workers import target as wanted
from serving.workers.backoff import delays
from serving.workers.target import WANTED, Wanted

logger = logging.getLogger(__name__)

LONGEST_S = 300.0
"""Between two questions to somebody who does not answer."""

Source = Callable[[], Wanted]
"""Tells the releases, by folders of this machine. Raises RecsysError where it cannot."""


def of_place(place: str) -> Source:
    """What a place says is to be served.

    Args:
        place: a release's folder or URL; a folder or a URL of releases, of which the newest is taken; or a file
            that names releases, as `serving.workers.target` reads it.
    """

    def told() -> Wanted:
        if Path(place).is_file():
            named = wanted.read(Path(place))
            folder = Path(place).parent
            challenger = None if named.challenger is None else _local(named.challenger, folder)
            return Wanted(champion=_local(named.champion, folder), challenger=challenger)
        return Wanted(champion=_local(_newest(place), Path()))

    return told


def _local(place: str, folder: Path) -> str:
    """The folder of a release on this machine; a link is followed, so that another target is another release."""
    named = place if isinstance(storage.locate(place), RemoteLocation) else str(folder / place)
    return str(remote.fetch(named).resolve())


def _newest(place: str) -> str:
    """The place itself if it is a release, else the newest below it."""
    root = storage.locate(place)
    if (root / MANIFEST).exists():
        return place
    found = []
    for name in root.list_names():
        manifest = root / name / MANIFEST
        if not name.startswith(".") and manifest.exists():
            with manifest.open() as file:
                found.append((json.load(file).get("created_at", ""), (root / name).name))
    if not found:
        raise ReleaseError(
            f"release must be a folder with a {MANIFEST}, or hold such ones. Received: {root.display_name}."
        )
    return max(found)[1]


class Watch:
    """Asks a source from time to time.

    Args:
        source: knows what is to be served.
        folder: of the service.
        poll_s: seconds between two questions.
    """

    def __init__(self, source: Source, folder: Path, poll_s: float) -> None:
        self._source = source
        self._path = folder / WANTED
        self._poll_s = poll_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Ask, and go on asking in a thread.

        Raises:
            RecsysError: the source does not tell, and nothing that was told before is on this machine.
        """
        try:
            self._tell(self._source())
        except Exception as error:  # whatever it is, what was told before is better than nothing
            if not self._known():
                raise
            self._tell_trouble(error)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a question that waits for an answer is left to itself."""
        self._stop.set()

    def _run(self) -> None:
        waits = delays(self._poll_s, LONGEST_S)
        wait_s = self._poll_s
        while not self._stop.wait(wait_s):
            try:
                self._tell(self._source())
                waits, wait_s = delays(self._poll_s, LONGEST_S), self._poll_s
            except Exception as error:  # noqa: BLE001 - as above
                wait_s = next(waits)
                self._tell_trouble(error)

    def _known(self) -> bool:
        try:
            return (Path(wanted.read(self._path).champion) / MANIFEST).exists()
        except ReleaseError:
            return False

    def _tell(self, told: Wanted) -> None:
        try:
            if wanted.read(self._path) == told:
                return
        except ReleaseError:
            pass
        wanted.write(self._path, told)

    def _tell_trouble(self, error: Exception) -> None:
        if not isinstance(error, RecsysError):
            logger.error("nobody foresaw this", exc_info=error)
        told = str(error) if isinstance(error, RecsysError) else type(error).__name__  # its text may hold anything
        try:
            self._tell(wanted.read(self._path).model_copy(update={"trouble": told}))
        except (ReleaseError, OSError) as second:
            logger.error("%s", second)  # noqa: TRY400 - its message is all there is to say
