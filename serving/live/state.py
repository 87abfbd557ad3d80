"""The state of a worker: its loaded releases, the item changes, and the choice of the release for a request."""

from __future__ import annotations

import hashlib
import time

from recsys.config.sections import ServeConfig
from recsys.errors import InputError
from recsys.retrieval.query import Query, TogetherQuery
from recsys.retrieval.results import SearchResult, TogetherResult
from serving.live.item_changes import ItemChanges
from serving.live.live_release import Embed, LiveRelease
from serving.live.loaded_releases import LoadedReleases, Roles
from serving.live.shadow import Shadow
from serving.middleware.metrics import Metrics
from serving.protocol.pagination import decode_cursor
from serving.protocol.requests import RequestedRelease, SimilarQueries


class ReleaseNotLoadedError(Exception):
    """A request selects a release that the service has not loaded."""


class ReleaseExpiredError(ReleaseNotLoadedError):
    """The release of a cursor is no longer loaded."""


class State:
    """State of a worker: everything it needs to answer requests.

    Args:
        releases: the loaded releases.
        config: settings of the service.
        metrics: counts results.
        item_changes: None if the service does not accept changes.
        embed: embeds new items by their features; None if the service has no tower.
    """

    def __init__(
        self,
        releases: LoadedReleases,
        config: ServeConfig,
        metrics: Metrics,
        item_changes: ItemChanges | None = None,
        embed: Embed | None = None,
    ) -> None:
        self.releases = releases
        self.config = config
        self.metrics = metrics
        self.item_changes = item_changes
        self.embed = embed
        self.similar_queries = SimilarQueries(config)
        self.errors: dict[str, str] = {}
        """Component -> its current error."""
        self.shadow = Shadow(config.challenger_share, metrics) if config.challenger == "shadow" else None
        self._applied: tuple[int, Roles] | None = None

    def choose_release(self, requested: RequestedRelease) -> LiveRelease:
        """Return the release that answers a request, with every change acknowledged so far.

        This is the release of the cursor, otherwise the requested release, otherwise the challenger for its share of
        sticky keys, otherwise the champion.

        Raises:
            InputError: the request selects two releases, or its cursor is invalid.
            ReleaseNotLoadedError: the requested release is not loaded.
            ReleaseError: no release is loaded yet.
            StageError: the item changes cannot be read.
        """
        self._apply_item_changes()
        release_id, by_header = requested.parameter, requested.header
        if release_id is None:
            release_id = by_header
        elif by_header is not None and by_header != release_id:
            raise InputError(
                "the parameter release and the header Recsys-Release must agree. "
                f"Received: {release_id!r} and {by_header!r}."
            )
        if requested.cursor is not None:
            return self._release_of_cursor(requested.cursor, release_id)
        roles = self.releases.roles
        if release_id is None:
            if self.config.challenger == "canary" and roles.challenger is not None and requested.sticky_key is not None:
                is_canary = bucket(requested.sticky_key) < self.config.challenger_share
                return roles.challenger if is_canary else self.releases.champion
            return roles.champion or self.releases.champion
        release = self.releases.find(release_id)
        if release is None:
            loaded = ", ".join(release.release_id for release in roles.releases)
            raise ReleaseNotLoadedError(
                f"release must be one of the loaded releases: {loaded}. Received: {release_id!r}."
            )
        return release

    def search(self, release: LiveRelease, query: Query) -> SearchResult:
        """Return the neighbors of a query, and record metrics; a share of the queries is repeated on the shadow.

        A query with a vector is not repeated, because the embeddings of two releases are not comparable.
        """
        started_at = time.perf_counter()
        result = release.search(query)
        duration_s = time.perf_counter() - started_at
        self.metrics.count_result(len(result.unknown_item_ids), fallback=result.fallback)
        roles = self.releases.roles
        is_comparable = query.vector is None and release is roles.champion
        if self.shadow is not None and roles.challenger is not None and is_comparable:
            self.shadow.submit(roles.challenger, query, result, duration_s)
        return result

    def search_together(self, release: LiveRelease, query: TogetherQuery) -> TogetherResult:
        """Return the items after an item, and record metrics. These queries are not repeated on the shadow."""
        result = release.search_together(query)
        self.metrics.count_result(len(result.unknown_item_ids), fallback=result.fallback)
        return result

    def _apply_item_changes(self) -> None:
        if self.item_changes is None:
            return
        current = self.item_changes.version(), self.releases.roles
        if current != self._applied:
            for release in self.releases.roles.releases:
                release.apply(self.item_changes)
            self._applied = current

    def _release_of_cursor(self, cursor: str, release_id: str | None) -> LiveRelease:
        cursor_release_id = decode_cursor(cursor, self.config.max_k).release_id
        if release_id not in (None, cursor_release_id):
            raise InputError(
                f"the release of the cursor must be the requested release, {release_id!r}. "
                f"Received: a cursor of {cursor_release_id!r}."
            )
        release = self.releases.find(cursor_release_id)
        if release is None:
            raise ReleaseExpiredError(
                f"the release of the cursor must be loaded. Received: a cursor of {cursor_release_id!r}, "
                "which was unloaded. Repeat the query without a cursor."
            )
        return release


def bucket(sticky_key: str) -> float:
    """Return a number in [0, 1) that is uniform over keys, and always the same for the same key."""
    digest = hashlib.sha256(sticky_key.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
