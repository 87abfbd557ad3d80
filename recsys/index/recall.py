"""Recall of an index against exact search, and the `search_k` that reaches a target recall."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recsys.config.sections import IndexConfig
from recsys.errors import StageError
from recsys.index.annoy_index import RECALL_K, SEED, Index
from recsys.index.distances import Distance
from recsys.index.embeddings import Vectors
from recsys.index.exact import ExactIndex

TOLERANCE = 1e-6
"""Tolerance for equal similarities, absolute for cosine, otherwise relative: float32 rounding must not separate
them."""


SAMPLE_SIZE = 1_000
"""Items whose neighbors are compared with exact search: the standard error of a recall of .98 is then .001."""
MAX_SEARCH_K = 100_000
"""Largest `search_k` that tuning chooses: beyond it, exact search is faster."""


class TunedSearch(NamedTuple):
    """The chosen `search_k` and the measured recall."""

    search_k: int
    recall: float
    """Share of the exact nearest neighbors that the index returned, over the sample."""
    curve: list[tuple[int, float]]
    """Each `search_k` that was tried, with its recall, ascending."""


def tune_search_k(
    index: Index,
    vectors: Vectors,
    config: IndexConfig,
    on_try: Callable[[int, float], None] = lambda *_: None,
    *,
    k: int = RECALL_K,
    sample_size: int = SAMPLE_SIZE,
    max_search_k: int = MAX_SEARCH_K,
) -> TunedSearch:
    """Set the index's `search_k` to the smallest value, within 10%, that reaches `recall_target`.

    Args:
        index: the index, or several shards as one.
        vectors: float32 [num_items, dimension].
        config: target and floor of the recall.
        on_try: called with each `search_k` and its recall.
        k: number of exact nearest neighbors that count.
        sample_size: number of items whose neighbors are compared.
        max_search_k: largest `search_k` to try.

    Raises:
        StageError: the recall at `max_search_k` is below `recall_floor`.
    """
    rng = np.random.default_rng(SEED)
    sample = np.sort(rng.choice(len(index), min(sample_size, len(index)), replace=False)).astype(np.int32)
    exact = ExactIndex(vectors, index.distance).neighbors(sample, k)
    recalls: dict[int, float] = {}

    def reaches_target(search_k: int) -> bool:
        index.search_k = search_k
        recalls[search_k] = recall(index.neighbors(sample, k), exact, vectors, sample, index.distance)
        on_try(search_k, recalls[search_k])
        return recalls[search_k] >= config.recall_target

    low, high = 0, min(k, max_search_k)
    while not reaches_target(high) and high < max_search_k:
        low, high = high, min(math.ceil(high * _growth(recalls, config.recall_target)), max_search_k)
    while high - low > max(1, high // 10) and recalls[high] >= config.recall_target:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches_target(middle) else (middle, high)
    if recalls[high] < config.recall_floor:
        raise StageError(
            f"index recall must be at least {config.recall_floor}. Received: {recalls[high]:.4f} at "
            f"search_k {high}. Raise index.n_trees."
        )
    index.search_k = high
    return TunedSearch(high, recalls[high], sorted(recalls.items()))


def _growth(recalls: Mapping[int, float], target: float) -> float:
    """Return the factor, from 1.1 to 2, by which the largest `search_k` should grow to reach the target.

    The misses decrease about like a power of `search_k`, whose exponent the last two values tell.
    """
    (last, last_recall), (previous, previous_recall) = [*sorted(recalls.items(), reverse=True), (1, 0.0)][:2]
    miss, previous_miss = 1 - last_recall, 1 - previous_recall
    if not 0 < miss < previous_miss or target == 1:
        return 2.0
    exponent = math.log(previous_miss / miss) / math.log(last / previous)
    log_factor = math.log(miss / (1 - target)) / exponent  # beyond the largest float if the exponent is tiny
    return math.exp(min(max(log_factor, math.log(1.1)), math.log(2)))


def recall(
    neighbors: NDArray[np.int32],
    exact: NDArray[np.int32],
    vectors: Vectors,
    item_numbers: NDArray[np.int32],
    distance: Distance,
) -> float:
    """Return the share of the exact `k` nearest neighbors that `neighbors` has; both int32 [n, k], -1 is padding.

    An item as near as the last exact neighbor counts as one, since ties can be broken either way (ann-benchmarks does
    the same).
    """
    k = min(exact.shape[1], len(vectors) - 1)
    if k == 0:
        return 1.0

    def similarities(columns: NDArray[np.int32]) -> NDArray[np.floating]:
        distances = distance.between(vectors[item_numbers][:, None], vectors[columns])
        return distance.similarity(distances)  # type: ignore[no-any-return]

    kth_similarity = similarities(exact[:, k - 1 : k])  # [n, 1]
    neighbors = neighbors[:, :k]
    tolerance = TOLERANCE * (1 if distance.unit_norm else kth_similarity)
    return float(((similarities(neighbors) >= kth_similarity - tolerance) & (neighbors >= 0)).mean())
