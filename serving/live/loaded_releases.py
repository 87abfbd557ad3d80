"""The loaded releases: the champion, the previous champion for a while, and a challenger.

A request uses one release until its response, even if another release is promoted meanwhile. Readers are not counted:
a release is freed, with its files and memory, when the last request that refers to it has finished.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

from recsys.errors import ReleaseError
from serving.live.live_release import LiveRelease


@dataclass(frozen=True)
class Roles:
    """The loaded releases by their role. Replaced as a whole, never modified."""

    champion: LiveRelease | None = None
    challenger: LiveRelease | None = None
    previous: LiveRelease | None = None
    previous_until: float = 0.0
    """When the previous champion is unloaded, on the clock of `LoadedReleases`."""

    @property
    def releases(self) -> list[LiveRelease]:
        """All loaded releases, the champion first."""
        return [release for release in (self.champion, self.challenger, self.previous) if release is not None]


class LoadedReleases:
    """The loaded releases. One thread replaces them; any number of threads may read them.

    Args:
        keep_previous_s: seconds that the previous champion stays loaded.
        clock: returns seconds.
    """

    def __init__(self, keep_previous_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._keep_previous_s = keep_previous_s
        self._clock = clock
        self.roles = Roles()

    @property
    def champion(self) -> LiveRelease:
        """The champion.

        Raises:
            ReleaseError: no release is loaded yet.
        """
        champion = self.roles.champion
        if champion is None:
            raise ReleaseError("the service must have loaded a release. Received: none yet. See /readyz.")
        return champion

    def find(self, release_id: str) -> LiveRelease | None:
        """Return the loaded release with this id, or None."""
        return next((release for release in self.roles.releases if release.release_id == release_id), None)

    def replace(self, champion: LiveRelease, challenger: LiveRelease | None = None) -> None:
        """Replace champion and challenger at once. The replaced champion stays loaded for a while."""
        roles = self.roles
        if champion is roles.champion:
            previous, until = roles.previous, roles.previous_until
        else:
            previous, until = roles.champion, self._clock() + self._keep_previous_s
        if previous is challenger:
            previous = None
        self._set(Roles(champion, challenger, previous, until))

    def unload_expired(self) -> None:
        """Unload the previous champion if its time is over."""
        roles = self.roles
        if roles.previous is not None and self._clock() >= roles.previous_until:
            self._set(Roles(roles.champion, roles.challenger))

    def _set(self, roles: Roles) -> None:
        unloaded = set(map(id, self.roles.releases)) - set(map(id, roles.releases))
        self.roles = roles
        if unloaded:
            gc.collect()  # the traceback of an error response may refer to its release in a cycle
