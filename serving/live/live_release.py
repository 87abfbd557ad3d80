"""A loaded release together with the item changes since it was built."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys import Release
from recsys.config.senses import Sense
from recsys.errors import RecsysError
from recsys.release.embedding_space import EmbeddingSpace
from recsys.retrieval.overlay import EMPTY_OVERLAY, AddedItem, Overlay
from recsys.retrieval.query import Query, TogetherQuery
from recsys.retrieval.results import ItemDetails, SearchResult, TogetherResult
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
        self.overlays: Mapping[Sense, Overlay] = dict.fromkeys(release.spaces, EMPTY_OVERLAY)
        """Embedding space -> the item changes, in the form that `Release.search` accepts."""
        self.revision = ""
        """Identifies the item changes: cached responses depend on it and on the release."""
        self.created_at = datetime.fromisoformat(release.manifest.created_at).timestamp()
        """When the release was built, in seconds since 1970."""
        self._embed = embed
        self._position = START

    def search(self, query: Query) -> SearchResult:
        """Return the neighbors of a query; see `recsys.retrieval.engine.Engine.search`."""
        return self.release.search(query, self.overlays[self.release.space_name(query.answered_in)])

    def search_together(self, query: TogetherQuery) -> TogetherResult:
        """Return the items after an item; see `recsys.retrieval.together.search_together`."""
        return self.release.search_together(query, self.overlays["next"])

    def item_details(self, item_id: str) -> ItemDetails:
        """Return the columns of one item; see `recsys.retrieval.engine.Engine.item_details`.

        Raises:
            UnknownItemError: the item is in no embedding space.
        """
        for space, overlay in self.overlays.items():
            engine = self.release.space(space).engine
            if engine.overlaid(overlay).item_number(item_id) is not None:
                break
        return engine.item_details(item_id, overlay)

    def warm_up(self) -> None:
        """Run some queries in each space, so that the first request does not wait for lazy initialization.

        With a tower, an item without features is embedded in each space; this imports TensorFlow and loads the tower.

        Raises:
            RecsysError: the release cannot answer them, or a tower cannot be loaded.
        """
        if self._embed is not None:
            for embedding_space in self.release.spaces.values():
                self._embed(embedding_space, {})
        item_ids = self.release.catalog.item_ids
        for item_number in np.linspace(0, len(item_ids) - 1, WARM_UP_QUERIES).astype(int).tolist():
            for space in self.release.spaces:
                self.release.similar(item_ids[item_number], sense=space)

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
        overlays = dict.fromkeys(self.release.spaces, EMPTY_OVERLAY) if unread.is_complete else self.overlays
        changes = {change.item_id: None if self.contains(change) else change for change in unread.changes}
        overlays = {space: self._change(overlay, space, changes) for space, overlay in overlays.items()}
        is_changed = any(overlay is not EMPTY_OVERLAY for overlay in overlays.values())
        self.overlays, self.revision = overlays, "-".join(map(str, unread.position)) if is_changed else ""
        self._position = unread.position

    def _change(self, overlay: Overlay, space: Sense, changes: Mapping[str, ItemChange | None]) -> Overlay:
        """Return the overlay of a space with the changes of some items replaced, or removed where they are None."""
        hidden = set(overlay.hidden - changes.keys())
        added = {item_id: item for item_id, item in overlay.added.items() if item_id not in changes}
        changed = {item_id: columns for item_id, columns in overlay.changed.items() if item_id not in changes}
        for item_id, change in changes.items():
            if change is None:
                continue
            if change.hidden:
                hidden.add(item_id)
                continue
            item_number = self.release.catalog.find_item_number(item_id)
            vector = self._vector(change, space, in_catalog=item_number is not None)
            if vector is not None:
                row = {} if item_number is None else self.release.catalog.frame.row(item_number, named=True)
                added[item_id] = AddedItem(vector, {**row, **change.columns, "item_id": item_id})
            elif item_number is not None:
                changed[item_id] = change.columns
        return Overlay(frozenset(hidden), added, changed) if hidden or added or changed else EMPTY_OVERLAY

    def _vector(self, change: ItemChange, space: Sense, *, in_catalog: bool) -> NDArray[np.float32] | None:
        """Return the embedding of a change. Embeddings of another release are not comparable and are not used."""
        if space in change.vectors and change.release_id == self.release_id:
            return change.vectors[space]
        if in_catalog or change.features is None or self._embed is None:
            return None
        try:
            return self._embed(self.release.space(space), change.features)
        except RecsysError as error:  # a release with another config may have other columns
            logger.warning("release %s cannot embed a new item: %s", self.release_id, error)
            return None
