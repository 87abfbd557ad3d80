"""What every request is answered from."""

from __future__ import annotations

import hashlib
import time

from recsys.config.sections import ServeConfig
from recsys.retrieval.query import Query
from recsys.retrieval.results import SearchResult
from serving.live.item_changes import Journal
from serving.live.live_release import Edition, Embed
from serving.live.loaded_releases import Shelf, Standing
from serving.live.shadow import Shadow
from serving.middleware.metrics import Telemetry


class State:
    """The releases that are loaded, what changed since they were built, and how to serve them.

    Args:
        shelf: the releases.
        config: how to serve.
        telemetry: is told what was answered.
        journal: what changed; None where nothing may be changed.
        embed: gives new items their place; None where the service was started without the tower.
    """

    def __init__(
        self,
        shelf: Shelf,
        config: ServeConfig,
        telemetry: Telemetry,
        journal: Journal | None = None,
        embed: Embed | None = None,
    ) -> None:
        self.shelf = shelf
        self.config = config
        self.telemetry = telemetry
        self.journal = journal
        self.embed = embed
        self.troubles: dict[str, str] = {}
        """What keeps the service from serving what it should, by what it was doing."""
        self.shadow = Shadow(config.challenger_share, telemetry) if config.challenger == "shadow" else None
        self._followed: tuple[int, Standing] | None = None

    def take(self, release_id: str | None = None, sticky: str | None = None) -> Edition | None:
        """The edition to answer from, with every change that was acknowledged so far.

        Args:
            release_id: of the release that is asked for; None for the one in service.
            sticky: decides whether that is the canary; the same text, the same release.

        Returns:
            None where the release that is asked for is not loaded.

        Raises:
            ReleaseError: nothing is loaded yet.
            StageError: the journal cannot be read.
        """
        standing = self.shelf.standing
        if self.journal is not None:
            now = self.journal.version(), standing
            if now != self._followed:
                for edition in standing.editions:
                    edition.follow(self.journal)
                self._followed = now
        if release_id is not None:
            return self.shelf.loaded(release_id)
        if self.config.challenger == "canary" and standing.challenger is not None and sticky is not None:
            chosen = share(sticky) < self.config.challenger_share
            return standing.challenger if chosen else self.shelf.champion
        return self.shelf.champion

    def ask(self, edition: Edition, question: Query) -> SearchResult:
        """Answer a question from an edition, and tell the telemetry; the shadow is asked too."""
        started = time.perf_counter()
        answer = edition.ask(question)
        took_s = time.perf_counter() - started
        self.telemetry.answered(len(answer.unknown_item_ids), fallback=answer.fallback)
        standing = self.shelf.standing
        if self.shadow is not None and standing.challenger is not None and edition is standing.champion:
            self.shadow.ask(standing.challenger, question, answer, took_s)
        return answer


def share(sticky: str) -> float:
    """Where a text stands among all texts, in [0, 1): evenly spread, and always the same."""
    digest = hashlib.sha256(sticky.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
