"""Items ranked by similarity to an item or a vector, as a lazy sequence.

The ranking does not depend on how many items the caller takes. So a longer result begins with the shorter one, and
a page is the same whether it is requested alone or as part of a longer result; see
`docs/decisions/0017-results-as-a-lazy-ranking.md`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from heapq import merge
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recsys.errors import InputError
from recsys.index.annoy_index import Index
from recsys.index.distances import Distance
from recsys.index.embeddings import Vectors
from recsys.index.exact import PIECE, exact_similarities, item_vector, lower_bounds, rounding_error, take
from recsys.index.neighbors import Neighbors
from recsys.retrieval.filters import Mask

PIECES = (0, 16, 64, None)
"""Ranks between which neighbors are read from the table; most queries end before the second."""
WINDOWS = ((32, 32, 0), (128, 640, 0), (320, 1_280, 1))
"""Stages of an index search, as far as they reach beyond the table: the rank up to which its result is used, the number
of items requested from the index, and the least number requested as a multiple of `search_k`. `search_k` is tuned for
about the first 20 ranks; the index searches more of its trees if more items are requested."""
Windows = Sequence[tuple[int, int, int]]
MEAN_DEPTH, MEAN_SEARCH, MEAN_NEIGHBORS = 32, 4, 100
"""Search for the mean of several items: the rank up to which the result is used, the nodes that the index inspects as a
multiple of `search_k`, and the neighbors of each item that it finds which are compared with the mean as well."""
EXACT_BELOW = 5_000
"""Up to this number of candidate items, comparing with each of them is faster than any index."""
SELECTIVITY = 16
"""Candidates are also compared one by one if the catalog has at least this many items per candidate: the index would
return mostly items that the filter rejects."""
NODE_COST = 4
"""Items that are compared in the time in which the index inspects a node."""
SORT_SIZES = (64, 256, 1_024, 4_096, 16_384)
"""Exact search sorts about this many nearest items first, then the next block, at last all remaining ones."""
MAX_FLOAT32 = float(np.finfo(np.float32).max)
MIN_MEAN_LENGTH = 1e-6
"""A mean of unit vectors that is shorter than this is rounding error and has no direction."""


class ScoredItem(NamedTuple):
    """An item and its similarity to the query."""

    item_number: int
    similarity: float


QueryPoint = int | NDArray[np.float64]
"""What to search from: an item number of the catalog, or a vector, [dimension], of length 1 for cosine.

Item numbers are searched with the table and the index, means of items with both and a wider search. Other vectors are
compared with every item: the trees of the index separate items, so a vector between items has neighbors in several
branches, and the index would miss many of them.
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
        self, mask: Mask | None, num_items: int, excluded: AbstractSet[int], removed: AbstractSet[int] = frozenset()
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

    def among(self, item_numbers: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return the items that are allowed, in the same order."""
        if self._mask is not None:
            item_numbers = item_numbers[self._mask[item_numbers]]
        numbers = item_numbers.tolist()
        if self._removed or not self._excluded.isdisjoint(numbers):
            numbers = [number for number in numbers if number not in self._excluded and number not in self._removed]
            return np.array(numbers, np.int32)
        return item_numbers

    def mask(self) -> Mask:
        """Return which items are allowed, bool [num_items]."""
        mask = np.ones(self._num_items, np.bool_) if self._mask is None else self._mask.copy()
        not_allowed = (*self._excluded, *self._removed)
        mask[[item_number for item_number in not_allowed if item_number < self._num_items]] = False
        return mask


@dataclass(frozen=True)
class Searcher:
    """Ranks the items of a catalog by similarity: by the neighbor table, its index, or exact comparison."""

    vectors: Vectors
    """float32 [num_items, dimension]. Not a memory map, from which taking rows is slow."""
    index: Index
    distance: Distance
    neighbors: Neighbors | None = None
    """The neighbor table, int32 [num_items, width], without padding; None for releases of formats 1 to 5."""

    def vector(self, point: QueryPoint) -> NDArray[np.float64]:
        """Return the vector of a query point, float64 [dimension], of length 1 for cosine."""
        return item_vector(self.vectors, point, self.distance) if isinstance(point, int) else point

    def is_exact(self, num_candidates: int) -> bool:
        """Return whether this number of candidates is compared one by one, without the index."""
        faster_than_index = max(EXACT_BELOW, NODE_COST * self.index.search_k)
        return num_candidates <= max(faster_than_index, len(self.vectors) // SELECTIVITY)

    def ranking(self, point: QueryPoint, allowed: AllowedItems, *, is_mean: bool = False) -> Iterator[ScoredItem]:
        """Return all allowed items by descending similarity to a query point.

        Args:
            point: what to search from.
            allowed: the items that may be returned.
            is_mean: whether a vector is the mean of items, near which the index finds items.
        """
        is_exact = self.is_exact(len(allowed))
        if isinstance(point, int) and self.neighbors is not None:
            return self._table_ranking(point, self.neighbors[point], allowed, () if is_exact else WINDOWS)
        if isinstance(point, int) and not is_exact:
            return self._ranking_beyond(point, allowed, WINDOWS, math.inf, set())
        vector = self.vector(point)
        if is_mean and self.neighbors is not None and not is_exact:
            return self._mean_ranking(vector, self.neighbors, allowed)
        return self._exact_ranking(vector, allowed)

    def _table_ranking(
        self, query_item: int, row: NDArray[np.int32], allowed: AllowedItems, windows: Windows
    ) -> Iterator[ScoredItem]:
        """Yield the allowed items of a row of the table, then all less similar ones.

        An item that neither table nor index has is not returned at all: it would belong before items that were already
        yielded.
        """
        vector = self.vector(query_item)
        for start, stop in pairwise(PIECES):
            yield from self._scored(vector, allowed.among(row[start:stop]))
        last_similarity = self._scored(vector, row[-1:])[0].similarity if len(row) else math.inf
        yield from self._ranking_beyond(query_item, allowed, windows, last_similarity, set(row.tolist()))

    def _mean_ranking(
        self, vector: NDArray[np.float64], neighbors: Neighbors, allowed: AllowedItems
    ) -> Iterator[ScoredItem]:
        """Yield the items nearest to a mean of items that index and table find, then all less similar ones.

        The index misses some items in other branches of its trees; most of them are neighbors of those that it finds.
        """
        found, _ = self.index.nearest_to_vector(vector, MEAN_DEPTH, search_k_multiple=MEAN_SEARCH)
        candidates = np.union1d(found, neighbors[found, :MEAN_NEIGHBORS])
        approximate = self._approximate_similarities(vector, candidates)
        bound = lower_bounds(approximate[None], MEAN_DEPTH)[0] - 2 * rounding_error(len(vector))
        nearest = sorted(self._scored(vector, candidates[approximate >= bound]), key=sort_key)[:MEAN_DEPTH]
        yield from (item for item in nearest if item.item_number in allowed)
        last_similarity, seen = nearest[-1].similarity, {item.item_number for item in nearest}
        for item in self._exact_ranking(vector, allowed):
            if item.similarity <= last_similarity and item.item_number not in seen:
                yield item

    def _scored(self, vector: NDArray[np.float64], item_numbers: NDArray[np.integer]) -> list[ScoredItem]:
        similarities = exact_similarities(self.distance, vector, take(self.vectors, item_numbers))
        return [*map(ScoredItem, item_numbers.tolist(), similarities.tolist())]

    def _ranking_beyond(
        self,
        query_item: int,
        allowed: AllowedItems,
        windows: Windows,
        last_similarity: float,
        seen: set[int],
    ) -> Iterator[ScoredItem]:
        """Yield the items beyond those that were seen, which are not more similar than the last of them."""
        vector, num_seen = self.vector(query_item), len(seen)
        for depth, count, search_k_multiple in windows:
            if depth <= num_seen:
                continue
            nearest, _ = self.index.nearest(query_item, max(count, search_k_multiple * self.index.search_k))
            item_numbers = [item_number for item_number in nearest[:depth] if item_number not in seen]
            seen.update(item_numbers)
            items = sorted(self._scored(vector, np.array(item_numbers, np.intp)), key=sort_key)
            yield from (item for item in items if item.similarity <= last_similarity and item.item_number in allowed)
            last_similarity = min(last_similarity, items[-1].similarity) if items else last_similarity
        for item in self._exact_ranking(vector, allowed):
            if item.similarity <= last_similarity and item.item_number not in seen:
                yield item

    def _exact_ranking(self, query_vector: NDArray[np.float64], allowed: AllowedItems) -> Iterator[ScoredItem]:
        """Compare with every item: in float32 first, then in float64 those that can be among the next to yield."""
        mask = allowed.mask()
        count = int(np.count_nonzero(mask))
        if 2 * count > len(mask):  # then reading all vectors in order is faster than gathering some
            item_numbers = None
            approximate = self._approximate_similarities(query_vector, None)
            approximate[~mask] = -np.inf
        else:
            item_numbers = np.flatnonzero(mask)
            approximate = self._approximate_similarities(query_vector, item_numbers)
        tolerance = rounding_error(len(query_vector))
        upper = np.inf
        for size in (*SORT_SIZES, count):
            if upper == -np.inf:
                return
            lower = -np.inf if size >= count else float(lower_bounds(approximate[None], size)[0])
            possible = (approximate >= max(lower - tolerance, -MAX_FLOAT32)) & (approximate < upper + tolerance)
            rows = np.flatnonzero(possible)
            block = rows if item_numbers is None else item_numbers[rows]
            similarities = exact_similarities(self.distance, query_vector, take(self.vectors, block))
            inside = (similarities >= lower) & (similarities < upper)
            block, similarities = block[inside], similarities[inside]
            order = np.lexsort((block, -similarities))
            yield from map(ScoredItem, block[order].tolist(), similarities[order].tolist())
            upper = lower

    def _approximate_similarities(
        self, query_vector: NDArray[np.float64], item_numbers: NDArray[np.intp] | None
    ) -> NDArray[np.float32]:
        """Return the similarity of each item, or of each item of the catalog; float32 [n]."""
        similarities = np.empty(len(self.vectors) if item_numbers is None else len(item_numbers), np.float32)
        query = query_vector.astype(np.float32)[None]  # [1, dimension]
        step = max(PIECE // len(query_vector), 1)
        for start in range(0, len(similarities), step):
            rows = slice(start, start + step)
            block = self.vectors[rows] if item_numbers is None else take(self.vectors, item_numbers[rows])
            similarities[rows] = self.distance.similarities(query, block)[0]
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
