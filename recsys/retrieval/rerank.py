"""Diversity: reorder a ranking by maximal marginal relevance, and limit the items with the same value.

Both consume a ranking lazily and do not know how many items will be returned; see `recsys.retrieval.search`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import islice

import numpy as np

from recsys.index.distances import Distance
from recsys.index.embeddings import Vectors
from recsys.retrieval.overlay import OverlaidCatalog
from recsys.retrieval.query import Value
from recsys.retrieval.search import ScoredItem

POOL = 100
"""Number of nearest items from which the next one is chosen. A larger pool would admit items that are diverse but
not similar to the query."""

MAX_RERANKED = 2_000
"""Number of items that are reordered; the items after them keep their order. Each pool is compared with all items
before it, so without a limit a query that filters out most items would cost the square of the catalog size."""

BLOCK = 16
"""Items compared with a pool at a time; with more, BLAS starts threads that cost more than they save."""


def maximal_marginal_relevance(
    ranking: Iterator[ScoredItem], vectors: Callable[[list[int]], Vectors], distance: Distance, mmr_lambda: float
) -> Iterator[ScoredItem]:
    """Reorder a ranking by maximal marginal relevance (Carbonell and Goldstein, 1998), pool by pool.

    The next item is the one of the pool with the largest `mmr_lambda` x similarity to the query - (1 - `mmr_lambda`)
    x largest similarity to an item before it; ties keep their order. After `MAX_RERANKED` items the order is unchanged.
    """
    selected: list[int] = []
    while len(selected) < MAX_RERANKED and (pool := list(islice(ranking, POOL))):
        item_numbers = [item.item_number for item in pool]
        pool_vectors = vectors(item_numbers)
        relevance = mmr_lambda * np.array([item.similarity for item in pool])
        redundancy = np.full(len(pool), -np.inf)  # largest similarity to an item before
        for start in range(0, len(selected), BLOCK):
            block = vectors(selected[start : start + BLOCK])
            redundancy = np.maximum(redundancy, distance.similarities(block, pool_vectors).max(0))
        remaining = np.ones(len(pool), np.bool_)
        for _ in pool:
            penalty = (1 - mmr_lambda) * np.where(np.isfinite(redundancy), redundancy, 0.0)
            best = int(np.where(remaining, relevance - penalty, -np.inf).argmax())
            remaining[best] = False
            yield pool[best]
            similarities = distance.similarities(pool_vectors[best : best + 1], pool_vectors)[0]
            redundancy = np.maximum(redundancy, similarities)
        selected += item_numbers
    yield from ranking


def limit_per_value(
    ranking: Iterator[ScoredItem], catalog: OverlaidCatalog, limits: Mapping[str, int], on_skip: Callable[[], None]
) -> Iterator[ScoredItem]:
    """Skip an item if its value in a column was already returned as often as the limit allows.

    Args:
        ranking: items, nearest first.
        catalog: their columns.
        limits: column -> maximum number of items with the same value.
        on_skip: called for each skipped item.
    """
    counts: dict[str, Counter[Value]] = {column: Counter() for column in limits}
    exhausted = np.zeros(len(catalog), np.bool_)  # a mask: it can come to cover nearly the whole catalog
    for item in ranking:
        if exhausted[item.item_number]:
            on_skip()
            continue
        for column, limit in limits.items():
            for value in set(catalog.values(column, item.item_number)):
                counts[column][value] += 1
                if counts[column][value] == limit:
                    exhausted[catalog.items_with_value(column, value)] = True
        yield item
