"""The releases that are loaded: the champion, the one before it for a while, and a challenger.

A request takes an edition once and ends on it, whatever is put on the shelf meanwhile. Nobody counts readers: a
release is closed, its files and its memory with it, when the last answer that refers to it is done.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

from recsys.errors import ReleaseError
from serving.live.live_release import Edition


@dataclass(frozen=True)
class Standing:
    """What stands on the shelf. Replaced as a whole, never changed."""

    champion: Edition | None = None
    challenger: Edition | None = None
    previous: Edition | None = None
    previous_until: float = 0.0
    """On the clock of the shelf."""

    @property
    def editions(self) -> list[Edition]:
        """All that are loaded, the champion first."""
        return [edition for edition in (self.champion, self.challenger, self.previous) if edition is not None]


class Shelf:
    """One thread puts, any number read.

    Args:
        keep_s: seconds that the champion before the present one stays.
        clock: seconds.
    """

    def __init__(self, keep_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._keep_s = keep_s
        self._clock = clock
        self.standing = Standing()

    @property
    def champion(self) -> Edition:
        """The edition in service.

        Raises:
            ReleaseError: nothing is loaded yet.
        """
        champion = self.standing.champion
        if champion is None:
            raise ReleaseError("a release must be loaded to answer. Received: none yet. /readyz says why.")
        return champion

    def loaded(self, release_id: str) -> Edition | None:
        """The edition of a release, if it is loaded."""
        return next((edition for edition in self.standing.editions if edition.release_id == release_id), None)

    def put(self, champion: Edition, challenger: Edition | None = None) -> None:
        """Put a champion, and the challenger or none, into service at once. What was champion stays for a while."""
        before = self.standing
        if champion is before.champion:
            previous, until = before.previous, before.previous_until
        else:
            previous, until = before.champion, self._clock() + self._keep_s
        if previous is challenger:
            previous = None
        self._replace(Standing(champion, challenger, previous, until))

    def clear(self) -> None:
        """Let go of the champion before the present one, if it stood long enough."""
        now = self.standing
        if now.previous is not None and self._clock() >= now.previous_until:
            self._replace(Standing(now.champion, now.challenger))

    def _replace(self, standing: Standing) -> None:
        gone = set(map(id, self.standing.editions)) - set(map(id, standing.editions))
        self.standing = standing
        if gone:
            gc.collect()  # an error that was answered may hold its edition in a cycle
