"""Answers that were given, ready to be sent again: the same release and request give the same bytes."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from starlette.responses import Response

KEPT_BYTES = 64 << 20
"""Of one release; what was not asked for the longest goes first. An answer of ten neighbors takes about 3 kB."""
BESIDE_BYTES = 1_900
"""What an answer takes beside its request and its body."""

Asked = tuple[str, bytes]
"""A request as it was sent: its encoded path and its query."""


class Given(NamedTuple):
    """An answer that was given."""

    route: object
    """By which; for the figures of the service."""
    tag: str
    """Its ETag."""
    whole: Response
    unchanged: Response
    """To whoever has it at hand."""


class Answers:
    """The answers of one release, for as long as nothing of it is changed."""

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._free = kept_bytes
        self._given: OrderedDict[Asked, Given] = OrderedDict()

    def get(self, asked: Asked) -> Given | None:
        """The answer, if it was given lately."""
        given = self._given.get(asked)
        if given is not None:
            self._given.move_to_end(asked)
        return given

    def keep(self, asked: Asked, given: Given) -> None:
        """Keep an answer, in place of those that were not asked for the longest."""
        self._forget(asked)
        self._given[asked] = given
        self._free -= _size(asked, given)
        while self._free < 0:
            self._forget(next(iter(self._given)))

    def _forget(self, asked: Asked) -> None:
        given = self._given.pop(asked, None)
        if given is not None:
            self._free += _size(asked, given)


def _size(asked: Asked, given: Given) -> int:
    return len(asked[0]) + len(asked[1]) + len(given.whole.body) + BESIDE_BYTES


def is_known(tag: str, known: str | None) -> bool:
    """Whether `If-None-Match` names the tag."""
    if known is None:
        return False
    named = {one.strip().removeprefix("W/") for one in known.split(",")}
    return tag in named or "*" in named
