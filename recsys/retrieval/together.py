"""Search for the items that users interact with after an item: counts of users, smoothed by the embeddings.

The score of an item B after an item A is `(users of A then B + ALPHA * p(B)) / (users of A + ALPHA)`: the confidence of
the rule A -> B with a Dirichlet prior (Zhai and Lafferty, "A study of smoothing methods for language models applied to
information retrieval", 2004). The prior p is a softmax of the similarities to A in the embedding space `next`. So
the counts decide for an item with many users, and the embeddings for a rare or new one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from heapq import merge
from itertools import islice
from typing import Final, NamedTuple

import numpy as np
import polars as pl

from recsys.data.followers import Followers
from recsys.index.exact import exact_similarities
from recsys.retrieval.engine import Engine, ResolvedSearch
from recsys.retrieval.filters import Mask
from recsys.retrieval.overlay import EMPTY_OVERLAY, Overlay
from recsys.retrieval.query import TogetherQuery
from recsys.retrieval.resolve import query_point
from recsys.retrieval.results import TogetherIncompleteReason, TogetherNeighbor, TogetherResult
from recsys.retrieval.search import AllowedItems

ALPHA = 1_000.0
"""Weight of the prior, as a number of users. Chosen with `TEMPERATURE` in `docs/experiments/likeness.md`."""
TEMPERATURE = 0.1
"""Difference of two similarities at which the prior of one item is e times that of the other."""
NEAREST = 100
"""Number of nearest items that are candidates beside the followers: the prior of all candidates sums to 1."""

SCHEMA: Final = {
    "item_id": pl.String,
    "rank": pl.Int32,
    "neighbor_id": pl.String,
    "users": pl.Int32,
    "confidence": pl.Float64,
    "lift": pl.Float64,
    "score": pl.Float64,
}
"""`neighbor_id` is the item after `item_id` at `rank`, from 1; see `recsys.retrieval.results.TogetherNeighbor`."""


class _Ranked(NamedTuple):
    """An item and what decides its rank."""

    item_number: int
    score: float
    similarity: float
    users: int = 0


def _sort_key(item: _Ranked) -> tuple[float, float, int]:
    return -item.score, -item.similarity, item.item_number


def search_together(
    engine: Engine, followers: Followers, query: TogetherQuery, overlay: Overlay = EMPTY_OVERLAY
) -> TogetherResult:
    """Return the `k` items with the highest scores, fewer only if no more items qualify.

    Args:
        engine: of the embedding space `next`.
        followers: counts of the same release.
        query: the item, and conditions on its neighbors.
        overlay: item changes since the release was built.

    Raises:
        UnknownItemError: the item is unknown, and `on_unknown` is "error".
        InputError: a condition does not fit the release.
    """
    return _search(engine, followers, query, engine.resolve(query.base, overlay))


def search_items(
    engine: Engine, followers: Followers, item_numbers: Iterable[int], k: int, mask: Mask | None
) -> pl.DataFrame:
    """Return the `k` items with the highest scores after each of several items.

    Args:
        engine: of the embedding space `next`.
        followers: counts of the same release.
        item_numbers: the items.
        k: maximum number of neighbors of each item.
        mask: which items can be neighbors, bool [num_items]; None if all can.

    Returns:
        A table of `SCHEMA`, items in the order of `item_numbers`, neighbors by rank.
    """
    rows = []
    for item_number in item_numbers:
        query = TogetherQuery(engine.catalog.item_ids[item_number], k=k)
        search = engine.resolve(query.base, EMPTY_OVERLAY)._replace(mask=mask)
        for neighbor in _search(engine, followers, query, search).neighbors:
            figures = (neighbor.users, neighbor.confidence, neighbor.lift, neighbor.score)
            rows.append((query.item_id, neighbor.rank, neighbor.item_id, *figures))
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def _search(engine: Engine, followers: Followers, query: TogetherQuery, search: ResolvedSearch) -> TogetherResult:
    catalog, is_known = search.catalog, bool(search.resolved.positives)
    fallback = not is_known and query.on_unknown == "fallback"
    counts = _Counts(engine, followers, query.item_id if is_known else None)
    ranking: Iterator[_Ranked] = iter(())
    if is_known:
        ranking = _ranking(engine, counts, query, search)
    elif fallback:
        ranking = (_Ranked(item_number, math.nan, math.nan) for item_number, _ in engine.popular(search))
    page = list(islice(ranking, query.offset, query.offset + query.k + 1))
    has_more, page = len(page) > query.k, page[: query.k]
    ids_and_titles = catalog.ids_and_titles([item.item_number for item in page])
    return TogetherResult(
        engine.release_id,
        query.item_id,
        catalog.ids_and_titles([search.resolved.positives[0][0]])[0][1] if is_known else None,
        counts.users,
        [
            counts.neighbor(item, item_id, title, rank)
            for rank, (item, (item_id, title)) in enumerate(zip(page, ids_and_titles, strict=True), query.offset + 1)
        ],
        search.resolved.unknown_ids,
        fallback,
        has_more,
        None if len(page) == query.k else _incomplete_reason(query, answered=is_known or fallback),
    )


def _incomplete_reason(query: TogetherQuery, *, answered: bool) -> TogetherIncompleteReason:
    if not answered:
        return "unknown_items"
    if query.min_users:
        return "min_users"
    return "filters" if query.base.has_filters else "catalog"


class _Counts:
    """The counts of one item, which may have none; items of the release are found by their ids."""

    def __init__(self, engine: Engine, followers: Followers, item_id: str | None) -> None:
        self._find = engine.catalog.find_item_number
        self._all = followers
        item_number = None if item_id is None else self._find(item_id)
        self.users, self.followers, self.counts = 0, np.empty(0, np.int32), np.empty(0, np.int32)
        if item_number is not None:
            self.users = int(followers.users[item_number])
            self.followers, self.counts = followers.of(item_number)

    def neighbor(self, item: _Ranked, item_id: str, title: str | None, rank: int) -> TogetherNeighbor:
        """Return an item of the result with its figures."""
        confidence = item.users / self.users if item.users else 0.0
        lift = 0.0
        item_number = self._find(item_id) if item.users else None
        if item_number is not None:
            lift = confidence * self._all.num_users / int(self._all.users[item_number])
        support = item.users / self._all.num_users if item.users else 0.0
        score = None if math.isnan(item.score) else item.score
        return TogetherNeighbor(item_id, title, rank, item.users, support, confidence, lift, score)


def _ranking(engine: Engine, counts: _Counts, query: TogetherQuery, search: ResolvedSearch) -> Iterator[_Ranked]:
    """Return the items that satisfy the query, in the order of the result.

    The followers are scored one by one. The scores of all other items have the order of their similarities, so these
    items are read from the ranking of the engine, and their number does not matter.
    """
    catalog, resolved, mask = search
    searcher = engine.searcher
    current_numbers = map(catalog.current_number, counts.followers.tolist())
    users = {
        item_number: count
        for item_number, count in zip(current_numbers, counts.counts.tolist(), strict=True)
        if item_number is not None
    }
    vector = searcher.vector(query_point(query.base, resolved, catalog, searcher.distance))
    similarities = exact_similarities(searcher.distance, vector, catalog.vectors([*users])).tolist()

    candidates = resolved._replace(excluded={resolved.positives[0][0], *users})
    nearest = engine.ranking(query.base, ResolvedSearch(catalog, candidates, None), set())
    candidate_similarities = similarities + [item.similarity for item in islice(nearest, NEAREST)]
    largest = max(candidate_similarities, default=0.0)
    total = sum(math.exp((similarity - largest) / TEMPERATURE) for similarity in candidate_similarities)

    def scored(item_number: int, similarity: float) -> _Ranked:
        # above 1 only for an item that the index did not find among the candidates
        prior = min(math.exp((similarity - largest) / TEMPERATURE) / total, 1.0)
        count = users.get(item_number, 0)
        return _Ranked(item_number, (count + ALPHA * prior) / (counts.users + ALPHA), similarity, count)

    allowed = AllowedItems(mask, len(catalog), resolved.excluded, catalog.removed)
    followers = [
        scored(item_number, similarity)
        for item_number, similarity in zip(users, similarities, strict=True)
        if item_number in allowed and users[item_number] >= query.min_users
    ]
    followers.sort(key=_sort_key)
    if query.min_users:
        return iter(followers)
    others = resolved._replace(excluded=resolved.excluded.union(users))
    others_ranking = engine.ranking(query.base, ResolvedSearch(catalog, others, mask), set())
    return merge(followers, (scored(*item) for item in others_ranking), key=_sort_key)
