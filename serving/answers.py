"""Answers that were given, ready to be sent again: the same release and question give the same bytes."""

from __future__ import annotations

from collections import OrderedDict

KEPT = 10_000
"""Answers; those that were not asked for the longest go first. Of ten neighbours, one takes 2 kB."""


class Answers:
    """The answers of one release, by their ETag, which changes with whatever changes an answer."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._bodies: OrderedDict[str, bytes] = OrderedDict()

    def get(self, tag: str) -> bytes | None:
        """The answer, if it was given lately."""
        body = self._bodies.get(tag)
        if body is not None:
            self._bodies.move_to_end(tag)
        return body

    def keep(self, tag: str, body: bytes) -> None:
        """Keep an answer in place of the one that was not asked for the longest."""
        self._bodies[tag] = body
        if len(self._bodies) > self._kept:
            self._bodies.popitem(last=False)
