"""Items in the order of their similarity to a place: one after the other, as many as somebody takes.

Nothing here is told how many will be taken. So a longer answer begins with the shorter one, and a page is the same
whether it was asked for alone or as part of a larger one. `docs/decisions/0017-questions.md` says what follows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from heapq import merge
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recsys.errors import InputError
from recsys.index.annoy_index import Index
from recsys.index.distances import Distance
from recsys.index.embeddings import Vectors
from recsys.retrieval.filters import Mask

WINDOWS = ((32, 32, 0), (128, 640, 0), (320, 1_280, 1))
"""Ranks up to which the index is believed, how many it is asked for to be believed, and at least so many times its
`search_k`. That is tuned for the first twenty or so, and the index looks farther the more it is asked for."""
FEW = 5_000
"""So many items are compared one by one sooner than the index finds the nearest of them."""
SELECTIVE = 16
"""As are those of which the catalog holds so many times as many: the index would go through the others."""
LEVELS = (256, 1_024, 4_096, 16_384)
"""Exact search sorts so many first, then as many as the next, in the end all."""
POINTLESS = 1e-6
"""Length of a mean of directions below which it is rounding."""
SCANNED = 1 << 18
"""Numbers multiplied at a time: more, and BLAS wakes threads that cost more than they save."""


class Near(NamedTuple):
    """An item and its similarity to the place that was asked about."""

    number: int
    similarity: float


def score(distance: Distance, place: NDArray[np.float64], vectors: Vectors) -> NDArray[np.float64]:
    """Similarity of each vector, [n, dimension], to a place, [dimension] (of length 1 for cosine); float64 [n].

    Row by row: the same item has the same similarity, to the last bit, in whatever company it was found.
    """
    found = np.empty(len(vectors), np.float64)
    step = max(SCANNED // len(place), 1)
    for start in range(0, len(vectors), step):
        rows = vectors[start : start + step].astype(np.float64)
        if distance.unit:
            found[start : start + step] = np.add.reduce(rows * place, axis=1)
        else:
            found[start : start + step] = distance.similarity(distance.between(place, rows))
    return found


Place = int | NDArray[np.float64]
"""Where to look: at an item of the catalog, by its number, or at a vector, [dimension], of length 1 for cosine.

Only to items does the index find its way: its trees part them from each other, and a place between is in no one's
neighborhood.
"""


class Allowed:
    """The items that may be in an answer.

    Args:
        mask: bool [num_items]; None lets all items be in it.
        num_items: of the catalog.
        left_out: numbers that may not be, whatever the mask says.
        gone: others that may not be; apart, since they can be many and are those of every question.
    """

    def __init__(
        self, mask: Mask | None, num_items: int, left_out: Collection[int], gone: Collection[int] = frozenset()
    ) -> None:
        self._mask = mask
        self._num_items = num_items
        self._left_out = left_out
        self._gone = gone

    def __contains__(self, number: int) -> bool:
        if number in self._left_out or number in self._gone:
            return False
        return self._mask is None or bool(self._mask[number])

    def __len__(self) -> int:
        """How many; those left out are still counted."""
        return self._num_items if self._mask is None else int(np.count_nonzero(self._mask))

    def numbers(self) -> NDArray[np.intp]:
        """Their numbers, ascending."""
        mask = np.ones(self._num_items, np.bool_) if self._mask is None else self._mask.copy()
        mask[[number for number in (*self._left_out, *self._gone) if number < self._num_items]] = False
        return np.flatnonzero(mask)


@dataclass(frozen=True)
class Space:
    """A catalog's embeddings and the index of them."""

    vectors: Vectors
    """float32 [num_items, dimension], no memory map: those are slow to take rows from."""
    index: Index
    distance: Distance

    def vector(self, place: Place) -> NDArray[np.float64]:
        """The vector of a place, [dimension], of length 1 for cosine."""
        return direction(self.vectors[place].astype(np.float64), self.distance) if isinstance(place, int) else place

    def compares_each(self, count: int) -> bool:
        """Whether so many items are compared one by one, and the index is not asked."""
        return count <= max(FEW, len(self.vectors) // SELECTIVE)

    def nearest(self, place: Place, allowed: Allowed) -> Iterator[Near]:
        """All items that are allowed, by falling similarity.

        Args:
            place: where to look.
            allowed: of the catalog.
        """
        if not isinstance(place, int) or self.compares_each(len(allowed)):
            return self._exactly(self.vector(place), allowed)
        return self._by_index(place, allowed)

    def _by_index(self, number: int, allowed: Allowed) -> Iterator[Near]:
        """The nearest to an item that the index finds; behind them, by exact search, all that are farther.

        What the index misses within its windows is in no answer: it would have to stand before what was given.
        """
        reached, seen = math.inf, set[int]()
        for depth, asked, times in WINDOWS:
            numbers, similarities = self.index.nearest(number, max(asked, times * self.index.search_k))
            for other, similarity in zip(numbers[:depth], similarities[:depth], strict=True):
                if similarity <= reached and other in allowed and other not in seen:
                    yield Near(other, similarity)
            reached = min(reached, similarities[:depth][-1])
            seen.update(numbers[:depth])
        for near in self._exactly(self.vector(number), allowed):
            if near.similarity <= reached and near.number not in seen:
                yield near

    def _exactly(self, place: NDArray[np.float64], allowed: Allowed) -> Iterator[Near]:
        """By comparing with each: roughly and fast first, then what is near enough to the top, to the last bit."""
        numbers = allowed.numbers()
        rough = self._roughly(place, numbers)
        # what float32 and its order of adding may be off by, of a similarity
        slack = (len(place) + 8) * 2.0**-23
        ceiling = np.inf
        for width in (*LEVELS, len(rough)):
            if ceiling == -np.inf:
                return
            floor = -np.inf if width >= len(rough) else float(np.partition(rough, -width)[-width])
            near = np.flatnonzero((rough >= floor - slack) & (rough < ceiling + slack))
            near = numbers[near]
            similarities = score(self.distance, place, self.vectors[near])
            kept = (similarities >= floor) & (similarities < ceiling)
            near, similarities = near[kept], similarities[kept]
            by_order = np.lexsort((near, -similarities))
            yield from map(Near, near[by_order].tolist(), similarities[by_order].tolist())
            ceiling = floor

    def _roughly(self, place: NDArray[np.float64], numbers: NDArray[np.intp]) -> NDArray[np.float32]:
        """Similarity of some items, float32 [len(numbers)]."""
        # of many it is cheaper to read all, in their order
        every = 2 * len(numbers) > len(self.vectors)
        count = len(self.vectors) if every else len(numbers)
        found = np.empty(count, np.float32)
        narrow = place.astype(np.float32)[None]
        step = max(SCANNED // len(place), 1)
        for start in range(0, count, step):
            rows = slice(start, start + step)
            block = self.vectors[rows] if every else self.vectors[numbers[rows]]
            found[rows] = self.distance.similarities(narrow, block)[0]
        return found[numbers] if every else found


def order(near: Near) -> tuple[float, int]:
    """What everything here is sorted by: the most similar first, ties by number."""
    return -near.similarity, near.number


def merged(one: Iterable[Near], other: Iterable[Near]) -> Iterator[Near]:
    """Two rankings of different items as one."""
    return merge(one, other, key=order)


def while_near(
    nearest: Iterator[Near], near_enough: Callable[[float], bool], when_ended: Callable[[], None]
) -> Iterator[Near]:
    """Up to the first that is not similar enough; `when_ended` is called if there is one."""
    for near in nearest:
        if not near_enough(near.similarity):
            when_ended()
            return
        yield near


def checked(name: str, vector: NDArray[np.floating], dimension: int, distance: Distance) -> NDArray[np.float64]:
    """A vector that somebody gave, [dimension]; at length 1 for cosine.

    Raises:
        InputError: another shape, a number that is not finite, or a zero vector for cosine.
    """
    wide = np.asarray(vector, np.float64)
    length = np.linalg.norm(wide)
    if wide.shape != (dimension,) or not np.isfinite(length) or (distance.unit and length == 0):
        rule = f"of {dimension} finite numbers" + (", not all of them 0" if distance.unit else "")
        raise InputError(f"{name} must be {rule}. Received: {wide.size} numbers, of length {length:g}.")
    return wide / length if distance.unit else wide


def direction(place: NDArray[np.float64], distance: Distance) -> NDArray[np.float64]:
    """At length 1, if the distance is of directions.

    Raises:
        InputError: there is none in it.
    """
    if not distance.unit:
        return place
    length = math.sqrt(place @ place)
    if length < POINTLESS:
        raise InputError(
            "items must have a direction in common. Received: items whose weighted mean is zero. Ask for fewer of them."
        )
    return place / length
