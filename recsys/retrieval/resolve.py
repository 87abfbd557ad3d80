"""Resolve a query on a release: item ids to item numbers, and its items to the item or vector to search from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recsys.errors import InputError
from recsys.index.distances import Distance
from recsys.retrieval.overlay import OverlaidCatalog
from recsys.retrieval.query import Query
from recsys.retrieval.search import QueryPoint, normalize, validate_vector


class ResolvedQuery(NamedTuple):
    """The item numbers of a query's item ids."""

    positives: list[tuple[int, float]]
    """Known items of `items` and `history`, with their weights."""
    negatives: list[tuple[int, float]]
    """Known items of `negatives`, with their weights."""
    excluded: set[int]
    """Items of the query and of `exclude`."""
    allowed: list[int] | None
    """Known items of `allow`."""
    unknown_ids: list[str]
    unknown_query_ids: list[str]
    """Unknown ids of `items`, `history` and `negatives` only."""


def resolve(query: Query, catalog: OverlaidCatalog, recency: float) -> ResolvedQuery:
    """Convert the item ids of a query to item numbers.

    Args:
        query: to resolve.
        catalog: the known items.
        recency: factor on the weight for each step back in a history.
    """
    unknown_ids: dict[str, None] = {}  # an ordered set

    def known_items(items: Iterable[tuple[str, float]]) -> list[tuple[int, float]]:
        resolved = []
        for item_id, weight in items:
            item_number = catalog.item_number(item_id)
            if item_number is not None:
                resolved.append((item_number, weight))
            else:
                unknown_ids[item_id] = None
        return resolved

    def item_numbers(item_ids: Iterable[str]) -> list[int]:
        return [item_number for item_number, _ in known_items((item_id, 1.0) for item_id in item_ids)]

    # most queries have none of the optional parts
    positives = known_items(query.items)
    if query.history:
        steps_back = range(len(query.history) - 1, -1, -1)
        weights = [recency**step for step in steps_back]
        positives += known_items(zip(query.history, weights, strict=True))
    negatives = known_items(query.negatives) if query.negatives else []
    unknown_query_ids = list(unknown_ids)
    excluded = {item_number for item_number, _ in positives}
    if negatives:
        excluded.update(item_number for item_number, _ in negatives)
    if query.exclude:
        excluded.update(item_numbers(query.exclude))
    allowed = None if query.allow is None else item_numbers(query.allow)
    return ResolvedQuery(positives, negatives, excluded, allowed, list(unknown_ids), unknown_query_ids)


def query_point(query: Query, resolved: ResolvedQuery, catalog: OverlaidCatalog, distance: Distance) -> QueryPoint:
    """Return the query item if it is one item of the catalog, otherwise the vector of the query."""
    if query.single_item_id is not None and resolved.positives[0][0] < catalog.num_catalog_items:
        return resolved.positives[0][0]
    return _query_vector(query, resolved, catalog, distance)


def _query_vector(
    query: Query, resolved: ResolvedQuery, catalog: OverlaidCatalog, distance: Distance
) -> NDArray[np.float64]:
    """Return the weighted mean of the positives minus half that of the negatives, float64 [dimension].

    With a factor of one half, an item that is less similar to the negatives than another never loses rank to it.
    """
    vectors = catalog.vectors([item_number for item_number, _ in resolved.positives]).astype(np.float64)
    weights = [weight for _, weight in resolved.positives]
    if query.vector is not None:
        vector = validate_vector("vector", np.array(query.vector, np.float64), vectors.shape[1], distance)
        vectors = np.vstack([vectors, vector])
        weights.append(1.0)
    mean = _weighted_mean(vectors, weights)
    if resolved.negatives:
        if distance.metric == "manhattan":
            raise InputError(
                "negatives require a release with cosine or Euclidean distance. "
                f"Received: a release with {distance.name} distance. Use exclude instead."
            )
        negatives = catalog.vectors([item_number for item_number, _ in resolved.negatives]).astype(np.float64)
        negative_mean = _weighted_mean(negatives, [weight for _, weight in resolved.negatives])
        mean = 2 * normalize(mean, distance) - negative_mean
    vector = normalize(mean, distance)
    # rounded, so that equal queries with scaled weights give equal results
    return vector.astype(np.float32).astype(np.float64)


def _weighted_mean(vectors: NDArray[np.float64], weights: list[float]) -> NDArray[np.float64]:
    shares = np.array(weights) / max(weights)  # the sum cannot overflow
    return np.asarray(shares @ vectors / shares.sum(), np.float64)
