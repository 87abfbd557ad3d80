"""A release as it is now: with what the journal says has changed since it was built."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys import Release
from recsys.errors import RecsysError
from recsys.retrieval.overlay import EMPTY_OVERLAY, AddedItem, Overlay
from recsys.retrieval.query import Query
from recsys.retrieval.results import ItemDetails, SearchResult
from serving.live.item_changes import NOWHERE, Entry, Journal
from serving.live.response_cache import Answers

logger = logging.getLogger(__name__)

HOUR_S = 3_600.0
WARM = 3
"""Questions that are asked before the first caller's."""

Embed = Callable[[Release, Mapping[str, Any]], NDArray[np.float32]]
"""The place of an item by its features, float32 [dimension]; see `recsys.release.bundle.new_item`."""


class Edition:
    """One release and the changes that it does not contain.

    Args:
        release: verified.
        embed: gives new items their place by their features; None where the service has no tower.
        night_h: hours after which a release stands above a change.
    """

    def __init__(self, release: Release, embed: Embed | None = None, night_h: float = 24.0) -> None:
        self.release = release
        self.overlay = EMPTY_OVERLAY
        self.answers = Answers()
        """Those of the overlay as it is."""
        self._embed = embed
        self._night_s = night_h * HOUR_S
        self._created = datetime.fromisoformat(release.manifest.created_at).timestamp()
        self._position = NOWHERE
        self._hidden: set[str] = set()
        self._added: dict[str, AddedItem] = {}
        self._changed: dict[str, Mapping[str, Any]] = {}

    @property
    def release_id(self) -> str:
        """Id of the release, in every answer."""
        return self.release.release_id

    @property
    def created(self) -> float:
        """When the release was built, seconds since 1970."""
        return self._created

    def ask(self, question: Query) -> SearchResult:
        """Answer a question; see `recsys.retrieval.engine.Engine.search`."""
        return self.release.search(question, self.overlay)

    def item(self, item_id: str) -> ItemDetails:
        """What is known of one item; see `recsys.retrieval.engine.Engine.item_details`."""
        return self.release.engine.item_details(item_id, self.overlay)

    def warm(self) -> None:
        """Ask some questions, so that what is made on first use is there before the first caller.

        Raises:
            RecsysError: the release does not answer them.
        """
        item_ids = self.release.catalog.item_ids
        for number in np.linspace(0, len(item_ids) - 1, WARM).astype(int).tolist():
            self.release.similar(item_ids[number])

    def contains(self, entry: Entry) -> bool:
        """Whether the release was made with a change, or stands above it; then the change is left out.

        A take-down is contained where the item is not: as long as a release has the item, it stays down. Any other
        change is contained where the item is held as the change wants it, or where the release was built `night_h`
        later.
        """
        number = self.release.catalog.find_item_number(entry.item_id)
        if entry.hidden:
            return number is None
        if self._created < entry.at:
            return False
        if self._created >= entry.at + self._night_s:
            return True
        if number is None:
            return False
        row = self.release.catalog.frame.row(number, named=True)
        return all(row.get(column) == value for column, value in entry.row.items() if column in row)

    def follow(self, journal: Journal) -> None:
        """Take what the journal holds that was not taken yet."""
        changes = journal.since(self._position)
        if changes.position == self._position:
            return
        if changes.anew:
            self._hidden, self._added, self._changed = set(), {}, {}
        for entry in changes.entries:
            self._hidden.discard(entry.item_id)
            self._added.pop(entry.item_id, None)
            self._changed.pop(entry.item_id, None)
            if not self.contains(entry):
                self._take(entry)
        revision = "-".join(map(str, changes.position))
        self.answers = Answers()
        if self._hidden or self._added or self._changed:
            self.overlay = Overlay(frozenset(self._hidden), dict(self._added), dict(self._changed), revision)
        else:
            self.overlay = EMPTY_OVERLAY
        self._position = changes.position

    def _take(self, entry: Entry) -> None:
        number = self.release.catalog.find_item_number(entry.item_id)
        if entry.hidden:
            self._hidden.add(entry.item_id)
            return
        vector = self._vector(entry, known=number is not None)
        if vector is not None:
            row = {} if number is None else self.release.catalog.frame.row(number, named=True)
            self._added[entry.item_id] = AddedItem(vector, {**row, **entry.row, "item_id": entry.item_id})
        elif number is not None:
            self._changed[entry.item_id] = entry.row

    def _vector(self, entry: Entry, *, known: bool) -> NDArray[np.float32] | None:
        """The place that a change gives an item here; places of another release mean nothing in this one."""
        if entry.vector is not None and entry.release_id == self.release_id:
            return entry.vector
        if known or entry.features is None or self._embed is None:
            return None
        try:
            return self._embed(self.release, entry.features)
        except RecsysError as error:  # another config may have other columns
            logger.warning("a new item cannot be embedded by release %s: %s", self.release_id, error)
            return None
