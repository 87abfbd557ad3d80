"""The answer to "more like this" on a catalogue and its index."""

from __future__ import annotations

from typing import NamedTuple

from recsys.catalogue import Catalogue
from recsys.errors import InputError
from recsys.index import Index


class Neighbour(NamedTuple):
    """An item near the one asked about."""

    item_id: str
    title: str | None
    similarity: float
    """Cosine in [-1, 1], larger is closer."""
    rank: int
    """1 is the nearest."""


class Answer(NamedTuple):
    """Neighbours, nearest first, and the release that gave them."""

    release_id: str
    item_id: str
    title: str | None
    neighbours: list[Neighbour]


def similar(catalogue: Catalogue, index: Index, release_id: str, item_id: str, k: int) -> Answer:
    """The `k` items most like one item, fewer only where the catalogue holds no more.

    Raises:
        UnknownItemError: the catalogue does not hold the item.
        InputError: `k` is not at least 1.
    """
    if k < 1:
        raise InputError(f"k must be at least 1. Received: {k}.")
    number = catalogue.number(item_id)
    item_ids, titles = catalogue.item_ids, catalogue.titles
    numbers, similarities = index.nearest(number, k)
    neighbours = [
        Neighbour(item_ids[other], titles[other], max(-1.0, min(1.0, cosine)), rank)
        for rank, (other, cosine) in enumerate(zip(numbers, similarities, strict=True), 1)
    ]
    return Answer(release_id, item_id, titles[number], neighbours)
