"""Neighbors that are unlike each other: another order of what comes, and less of the same.

Both take items one after the other and are not told how many are wanted, as `recsys.retrieval.search`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import islice

import numpy as np

from recsys.index.distances import Distance
from recsys.index.embeddings import Vectors
from recsys.retrieval.overlay import Stock
from recsys.retrieval.query import Value
from recsys.retrieval.search import Near

POOL = 100
"""Nearest items among which the next is chosen: far ones would be diverse, and no neighbors."""

FAR = 2_000
"""So many items are put in another order; those behind them stay in theirs. Each pool is compared with all that came
before: without an end, a question that leaves nearly everything out would take the square of the catalog."""

BLOCK = 16
"""Items compared with a pool at a time: more, and BLAS wakes threads that cost more than they save."""


def spread(
    nearest: Iterator[Near], vectors: Callable[[list[int]], Vectors], distance: Distance, balance: float
) -> Iterator[Near]:
    """Maximal marginal relevance (Carbonell and Goldstein, 1998), pool by pool.

    Next comes the item of the pool with the largest `balance` x similarity to the place - (1 - `balance`) x largest
    similarity to an item that came before; ties in the order that they came in. Behind `FAR` items, as they come.
    """
    before: list[int] = []
    while len(before) < FAR and (pool := list(islice(nearest, POOL))):
        numbers = [near.number for near in pool]
        among = vectors(numbers)
        relevance = balance * np.array([near.similarity for near in pool])
        likeness = np.full(len(pool), -np.inf)
        for start in range(0, len(before), BLOCK):
            likeness = np.maximum(likeness, distance.similarities(vectors(before[start : start + BLOCK]), among).max(0))
        left = np.ones(len(pool), np.bool_)
        for _ in pool:
            penalty = (1 - balance) * np.where(np.isfinite(likeness), likeness, 0.0)
            best = int(np.where(left, relevance - penalty, -np.inf).argmax())
            left[best] = False
            yield pool[best]
            likeness = np.maximum(likeness, distance.similarities(among[best : best + 1], among)[0])
        before += numbers
    yield from nearest


def at_most(
    nearest: Iterator[Near], stock: Stock, limits: Mapping[str, int], when_left_out: Callable[[], None]
) -> Iterator[Near]:
    """Leave out an item once so many with the same value in a column came; `when_left_out` is called if one is."""
    came: dict[str, Counter[Value]] = {column: Counter() for column in limits}
    out = np.zeros(len(stock), np.bool_)  # what nearly all of a catalog may come to be
    for near in nearest:
        if out[near.number]:
            when_left_out()
            continue
        for column, most in limits.items():
            for value in set(stock.terms(column, near.number)):
                came[column][value] += 1
                if came[column][value] == most:
                    out[stock.having(column, value)] = True
        yield near
