"""What a release answers: "more like this", on a catalogue and its index, and "are these two the same"."""

from __future__ import annotations

from typing import NamedTuple

from recsys.calibration import Calibration, Threshold
from recsys.catalogue import Catalogue
from recsys.errors import InputError
from recsys.index import Index


class Neighbour(NamedTuple):
    """An item near the one asked about."""

    item_id: str
    title: str | None
    similarity: float
    """Larger is closer: a cosine in [-1, 1], or 1 / (1 + distance)."""
    rank: int
    """1 is the nearest."""
    probability: float | None = None
    """That both belong together, where the release is calibrated; see `recsys.calibration`."""


class Answer(NamedTuple):
    """Neighbours, nearest first, and the release that gave them."""

    release_id: str
    item_id: str
    title: str | None
    neighbours: list[Neighbour]


class Item(NamedTuple):
    """An item that was asked about."""

    item_id: str
    title: str | None


class Verdict(NamedTuple):
    """Whether two items belong together, why, and the release that says so."""

    release_id: str
    items: tuple[Item, Item]
    similarity: float
    """Exact; larger is closer."""
    probability: float
    """That both belong together, if as many pairs do as do not."""
    same: bool
    """Whether the similarity is at least that of the threshold."""
    threshold: Threshold
    """What it was compared with, and how good that was on pairs that had no part in choosing it."""


def similar(
    catalogue: Catalogue, index: Index, release_id: str, item_id: str, k: int, *, calibration: Calibration | None = None
) -> Answer:
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
    similarities = [max(-1.0, min(1.0, similarity)) for similarity in similarities]
    probabilities = calibration.probabilities_of(similarities).tolist() if calibration else [None] * len(numbers)
    neighbours = [
        Neighbour(item_ids[other], titles[other], similarity, rank, probability)
        for rank, (other, similarity, probability) in enumerate(
            zip(numbers, similarities, probabilities, strict=True), 1
        )
    ]
    return Answer(release_id, item_id, titles[number], neighbours)


def verdict(
    catalogue: Catalogue,
    release_id: str,
    item_ids: tuple[str, str],
    *,
    similarity: float,
    calibration: Calibration,
    threshold: Threshold,
) -> Verdict:
    """Compare a similarity with a threshold that some similarity reaches."""
    first, second = (Item(item_id, catalogue.titles[catalogue.number(item_id)]) for item_id in item_ids)
    same = threshold.similarity is not None and similarity >= threshold.similarity
    return Verdict(release_id, (first, second), similarity, calibration.probability(similarity), same, threshold)
