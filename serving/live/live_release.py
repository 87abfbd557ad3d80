"""A loaded release together with the item changes since it was built."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys import Release
from recsys.errors import RecsysError
from recsys.release.embedding_space import EmbeddingSpace
from recsys.retrieval.overlay import EMPTY_OVERLAY, AddedItem, Overlay
from recsys.retrieval.query import Query
from recsys.retrieval.results import ItemDetails, SearchResult
from serving.live.item_changes import START, ItemChange, ItemChanges

logger = logging.getLogger(__name__)

CHANGE_EXPIRY_S = 86_400.0
"""A release that was built this long after a change contains it, on the assumption that no nightly run takes longer."""
WARM_UP_QUERIES = 3

Embed = Callable[[EmbeddingSpace, Mapping[str, Any]], NDArray[np.float32]]
"""Returns the embedding of an item by its features, float32 [dimension]; see `recsys.release.new_item`."""


class LiveRelease:
    """One release and the item changes that it does not contain.

    Args:
        release: a verified release.
        embed: embeds new items by their features; None if the service has no tower.
    """

    def __init__(self, release: Release, embed: Embed | None = None) -> None:
        self.release = release
        self.release_id = release.release_id
        self.overlay = EMPTY_OVERLAY
        """The item changes, in the form that `Release.search` accepts."""
        self.created_at = datetime.fromisoformat(release.manifest.created_at).timestamp()
        """When the release was built, in seconds since 1970."""
        self._embed = embed
        self._position = START
        self._hidden: set[str] = set()
        self._added: dict[str, AddedItem] = {}
        self._changed: dict[str, Mapping[str, Any]] = {}

    def search(self, query: Query) -> SearchResult:
        """Return the neighbors of a query; see `recsys.retrieval.engine.Engine.search`."""
        return self.release.search(query, self.overlay)

    def item_details(self, item_id: str) -> ItemDetails:
        """Return the columns of one item; see `recsys.retrieval.engine.Engine.item_details`."""
        return self.release.space("similar").engine.item_details(item_id, self.overlay)

    def warm_up(self) -> None:
        """Run some queries, so that the first request does not wait for lazy initialization.

        Raises:
            RecsysError: the release cannot answer them.
        """
        item_ids = self.release.catalog.item_ids
        for item_number in np.linspace(0, len(item_ids) - 1, WARM_UP_QUERIES).astype(int).tolist():
            self.release.similar(item_ids[item_number])

    def contains(self, change: ItemChange) -> bool:
        """Return whether the release already contains a change, or supersedes it; then the change is not applied.

        A hidden item is contained if the catalog does not have the item: it stays hidden as long as it is in the
        catalog. Any other change is contained if the catalog has the changed values, or if the release was built
        `CHANGE_EXPIRY_S` after the change.
        """
        item_number = self.release.catalog.find_item_number(change.item_id)
        if change.hidden:
            return item_number is None
        if self.created_at < change.changed_at:
            return False
        if self.created_at >= change.changed_at + CHANGE_EXPIRY_S:
            return True
        if item_number is None:
            return False
        row = self.release.catalog.frame.row(item_number, named=True)
        return all(row.get(column) == value for column, value in change.columns.items() if column in row)

    def apply(self, item_changes: ItemChanges) -> None:
        """Apply the changes that were written since the last call."""
        unread = item_changes.read_since(self._position)
        if unread.position == self._position:
            return
        if unread.is_complete:
            self._hidden, self._added, self._changed = set(), {}, {}
        for change in unread.changes:
            self._hidden.discard(change.item_id)
            self._added.pop(change.item_id, None)
            self._changed.pop(change.item_id, None)
            if not self.contains(change):
                self._apply_change(change)
        revision = "-".join(map(str, unread.position))
        if self._hidden or self._added or self._changed:
            self.overlay = Overlay(frozenset(self._hidden), dict(self._added), dict(self._changed), revision)
        else:
            self.overlay = EMPTY_OVERLAY
        self._position = unread.position

    def _apply_change(self, change: ItemChange) -> None:
        if change.hidden:
            self._hidden.add(change.item_id)
            return
        item_number = self.release.catalog.find_item_number(change.item_id)
        vector = self._vector(change, in_catalog=item_number is not None)
        if vector is not None:
            row = {} if item_number is None else self.release.catalog.frame.row(item_number, named=True)
            self._added[change.item_id] = AddedItem(vector, {**row, **change.columns, "item_id": change.item_id})
        elif item_number is not None:
            self._changed[change.item_id] = change.columns

    def _vector(self, change: ItemChange, *, in_catalog: bool) -> NDArray[np.float32] | None:
        """Return the embedding of a change. Embeddings of another release are not comparable and are not used."""
        if change.vector is not None and change.release_id == self.release_id:
            return change.vector
        if in_catalog or change.features is None or self._embed is None:
            return None
        try:
            return self._embed(self.release.space("similar"), change.features)
        except RecsysError as error:  # a release with another config may have other columns
            logger.warning("release %s cannot embed a new item: %s", self.release_id, error)
            return None
