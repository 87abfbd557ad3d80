"""Items ranked by similarity to an item or a vector, as a lazy sequence.

The ranking does not depend on how many items the caller takes. So a longer result begins with the shorter one, and
a page is the same whether it is requested alone or as part of a longer result; see
`docs/decisions/0017-results-as-a-lazy-ranking.md`.
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
"""Stages of an index search: the rank up to which its result is used, the number of items requested from the index,
and the least number requested as a multiple of `search_k`. `search_k` is tuned for about the first 20 ranks; the
index searches more of its trees if more items are requested."""
EXACT_BELOW = 5_000
"""Up to this number of candidate items, comparing with each of them is faster than the index."""
SELECTIVITY = 16
"""Candidates are also compared one by one if the catalog has at least this many items per candidate: the index would
return mostly items that the filter rejects."""
SORT_SIZES = (256, 1_024, 4_096, 16_384)
"""Exact search sorts this many nearest items first, then the next block, at last all remaining ones."""
MIN_MEAN_LENGTH = 1e-6
"""A mean of unit vectors that is shorter than this is rounding error and has no direction."""
CELLS = 1 << 18
"""Numbers multiplied at a time; with more, BLAS starts threads that cost more than they save."""


class ScoredItem(NamedTuple):
    """An item and its similarity to the query."""

    item_number: int
    similarity: float


QueryPoint = int | NDArray[np.float64]
"""What to search from: an item number of the catalog, or a vector, [dimension], of length 1 for cosine.

Only item numbers are searched with the index. Its trees separate items, so a vector between items has neighbors in
several branches, and the index would miss many of them.
"""


class AllowedItems:
    """The items that may be returned.

    Args:
        mask: bool [num_items]; None allows all items.
        num_items: size of the catalog.
        excluded: item numbers that are not allowed whatever the mask says.
        removed: further item numbers that are not allowed. Separate from `excluded`, since they can be many and are
            the same for every query.
    """

    def __init__(
        self, mask: Mask | None, num_items: int, excluded: Collection[int], removed: Collection[int] = frozenset()
    ) -> None:
        self._mask = mask
        self._num_items = num_items
        self._excluded = excluded
        self._removed = removed

    def __contains__(self, item_number: int) -> bool:
        if item_number in self._excluded or item_number in self._removed:
            return False
        return self._mask is None or bool(self._mask[item_number])

    def __len__(self) -> int:
        """Return the number of items that the mask allows; excluded and removed ones are not subtracted."""
        return self._num_items if self._mask is None else int(np.count_nonzero(self._mask))

    def item_numbers(self) -> NDArray[np.intp]:
        """Return the numbers of the allowed items, ascending."""
        mask = np.ones(self._num_items, np.bool_) if self._mask is None else self._mask.copy()
        not_allowed = (*self._excluded, *self._removed)
        mask[[item_number for item_number in not_allowed if item_number < self._num_items]] = False
        return np.flatnonzero(mask)


@dataclass(frozen=True)
class Searcher:
    """Ranks the items of a catalog by similarity, with its index or by exact comparison."""

    vectors: Vectors
    """float32 [num_items, dimension]. Not a memory map, from which taking rows is slow."""
    index: Index
    distance: Distance

    def vector(self, point: QueryPoint) -> NDArray[np.float64]:
        """Return the vector of a query point, float64 [dimension], of length 1 for cosine."""
        return normalize(self.vectors[point].astype(np.float64), self.distance) if isinstance(point, int) else point

    def is_exact(self, num_candidates: int) -> bool:
        """Return whether this number of candidates is compared one by one, without the index."""
        return num_candidates <= max(EXACT_BELOW, len(self.vectors) // SELECTIVITY)

    def ranking(self, point: QueryPoint, allowed: AllowedItems) -> Iterator[ScoredItem]:
        """Return all allowed items by descending similarity to a query point."""
        if not isinstance(point, int) or self.is_exact(len(allowed)):
            return self._exact_ranking(self.vector(point), allowed)
        return self._index_ranking(point, allowed)

    def _index_ranking(self, query_item: int, allowed: AllowedItems) -> Iterator[ScoredItem]:
        """Yield the nearest items that the index returns, then, by exact search, all less similar ones.

        An item that the index misses within its windows is not returned at all: it would belong before items that
        were already yielded.
        """
        last_similarity, seen = math.inf, set[int]()
        for depth, count, search_k_multiple in WINDOWS:
            neighbors, similarities = self.index.nearest(
                query_item, max(count, search_k_multiple * self.index.search_k)
            )
            for item_number, similarity in zip(neighbors[:depth], similarities[:depth], strict=True):
                if similarity <= last_similarity and item_number in allowed and item_number not in seen:
                    yield ScoredItem(item_number, similarity)
            last_similarity = min(last_similarity, similarities[:depth][-1])
            seen.update(neighbors[:depth])
        for item in self._exact_ranking(self.vector(query_item), allowed):
            if item.similarity <= last_similarity and item.item_number not in seen:
                yield item

    def _exact_ranking(self, query_vector: NDArray[np.float64], allowed: AllowedItems) -> Iterator[ScoredItem]:
        """Compare with every item: in float32 first, then in float64 those that can be among the next to yield."""
        item_numbers = allowed.item_numbers()
        approximate = self._approximate_similarities(query_vector, item_numbers)
        # bound on the rounding error of a float32 similarity
        tolerance = (len(query_vector) + 8) * 2.0**-23
        upper = np.inf
        for size in (*SORT_SIZES, len(approximate)):
            if upper == -np.inf:
                return
            lower = -np.inf if size >= len(approximate) else float(np.partition(approximate, -size)[-size])
            rows = np.flatnonzero((approximate >= lower - tolerance) & (approximate < upper + tolerance))
            block = item_numbers[rows]
            similarities = exact_similarities(self.distance, query_vector, self.vectors[block])
            inside = (similarities >= lower) & (similarities < upper)
            block, similarities = block[inside], similarities[inside]
            order = np.lexsort((block, -similarities))
            yield from map(ScoredItem, block[order].tolist(), similarities[order].tolist())
            upper = lower

    def _approximate_similarities(
        self, query_vector: NDArray[np.float64], item_numbers: NDArray[np.intp]
    ) -> NDArray[np.float32]:
        """Return the similarity of each item, float32 [len(item_numbers)]."""
        # for most of the catalog, reading all vectors in order is faster than gathering some
        read_all = 2 * len(item_numbers) > len(self.vectors)
        count = len(self.vectors) if read_all else len(item_numbers)
        similarities = np.empty(count, np.float32)
        query = query_vector.astype(np.float32)[None]  # [1, dimension]
        step = max(CELLS // len(query_vector), 1)
        for start in range(0, count, step):
            rows = slice(start, start + step)
            block = self.vectors[rows] if read_all else self.vectors[item_numbers[rows]]
            similarities[rows] = self.distance.similarities(query, block)[0]
        return similarities[item_numbers] if read_all else similarities


def exact_similarities(distance: Distance, query_vector: NDArray[np.float64], vectors: Vectors) -> NDArray[np.float64]:
    """Return the similarity of each vector, [n, dimension], to a query vector, [dimension]; float64 [n].

    Computed row by row: an item has the same similarity, to the last bit, whatever other items are compared with it.
    For cosine the query vector must have length 1.
    """
    similarities = np.empty(len(vectors), np.float64)
    step = max(CELLS // len(query_vector), 1)
    for start in range(0, len(vectors), step):
        rows = vectors[start : start + step].astype(np.float64)
        if distance.unit_norm:
            similarities[start : start + step] = np.add.reduce(rows * query_vector, axis=1)
        else:
            similarities[start : start + step] = distance.similarity(distance.between(query_vector, rows))
    return similarities


def sort_key(item: ScoredItem) -> tuple[float, int]:
    """Return the sort key of every ranking: the most similar item first, ties by item number."""
    return -item.similarity, item.item_number


def merge_rankings(first: Iterable[ScoredItem], second: Iterable[ScoredItem]) -> Iterator[ScoredItem]:
    """Merge two rankings of different items into one."""
    return merge(first, second, key=sort_key)


def take_while_similar(
    ranking: Iterator[ScoredItem], is_similar: Callable[[float], bool], on_end: Callable[[], None]
) -> Iterator[ScoredItem]:
    """Yield items up to the first that is not similar enough, and call `on_end` if there is one."""
    for item in ranking:
        if not is_similar(item.similarity):
            on_end()
            return
        yield item


def validate_vector(name: str, vector: NDArray[np.floating], dimension: int, distance: Distance) -> NDArray[np.float64]:
    """Return a vector from outside as float64 [dimension], normalized to length 1 for cosine.

    Raises:
        InputError: another shape, a number that is not finite, or a zero vector for cosine.
    """
    wide = np.asarray(vector, np.float64)
    length = np.linalg.norm(wide)
    if wide.shape != (dimension,) or not np.isfinite(length) or (distance.unit_norm and length == 0):
        rule = f"of {dimension} finite numbers" + (", not all of them 0" if distance.unit_norm else "")
        raise InputError(f"{name} must be {rule}. Received: {wide.size} numbers, of length {length:g}.")
    return wide / length if distance.unit_norm else wide


def normalize(vector: NDArray[np.float64], distance: Distance) -> NDArray[np.float64]:
    """Return a vector normalized to length 1 for cosine, unchanged for other distances.

    Raises:
        InputError: the vector is zero up to rounding.
    """
    if not distance.unit_norm:
        return vector
    length = math.sqrt(vector @ vector)
    if length < MIN_MEAN_LENGTH:
        raise InputError(
            "the items of a query must not cancel out. Received: items whose weighted mean is zero. Query fewer items."
        )
    return vector / length
