"""Search for similar items on a catalog, its embeddings and its index."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple, get_args

import numpy as np

from recsys.data.catalog import Catalog
from recsys.data.item_users import ItemUsers
from recsys.errors import InputError, UnknownItemError
from recsys.evaluation.calibration import Calibration
from recsys.index.annoy_index import Index
from recsys.index.embeddings import Vectors
from recsys.index.exact import exact_similarities
from recsys.index.neighbors import Neighbors
from recsys.retrieval.filters import AVAILABLE, CatalogColumns, Mask
from recsys.retrieval.overlay import EMPTY_OVERLAY, OverlaidCatalog, Overlay
from recsys.retrieval.query import Query
from recsys.retrieval.rerank import limit_per_value, maximal_marginal_relevance
from recsys.retrieval.resolve import ResolvedQuery, query_point, resolve
from recsys.retrieval.results import Explanation, IncompleteReason, ItemDetails, Neighbor, SearchResult
from recsys.retrieval.search import (
    AllowedItems,
    ScoredItem,
    Searcher,
    merge_rankings,
    sort_key,
    take_while_similar,
)


class ResolvedSearch(NamedTuple):
    """A query on the catalog with an overlay."""

    catalog: OverlaidCatalog
    resolved: ResolvedQuery
    mask: Mask | None
    """Which items satisfy the filters, bool [len(catalog)]; None without filters."""


class Engine:
    """Searches a catalog for similar items.

    Args:
        release_id: included in every result.
        catalog: the items.
        vectors: their embeddings, float32 [num_items, dimension].
        index: index of the embeddings.
        neighbors: the neighbor table of the embeddings; None if there is none.
        recency: factor on an item's weight for each step back in a history.
        calibration: converts similarities to probabilities.
        item_users: the users of each item.
        columns: columns of the catalog, which several engines may share.
    """

    def __init__(
        self,
        release_id: str,
        catalog: Catalog,
        vectors: Vectors,
        index: Index,
        *,
        neighbors: Neighbors | None = None,
        recency: float = 1.0,
        calibration: Calibration | None = None,
        item_users: ItemUsers | None = None,
        columns: CatalogColumns | None = None,
    ) -> None:
        self.release_id = release_id
        self.catalog = catalog
        self.searcher = Searcher(
            np.asarray(vectors), index, index.distance, None if neighbors is None else np.asarray(neighbors)
        )
        self._recency = recency
        self._calibration = calibration
        self._item_users = item_users
        self._columns = columns or CatalogColumns(catalog.frame)
        self.features = self._columns.features
        """Catalog columns with item features."""
        self._cached_overlay = EMPTY_OVERLAY, self._overlay(EMPTY_OVERLAY)

    def search(self, query: Query, overlay: Overlay = EMPTY_OVERLAY) -> SearchResult:
        """Return the `k` nearest items, fewer only if no more items qualify.

        Args:
            query: the items to search from, and conditions on the neighbors.
            overlay: item changes since the release was built.

        Raises:
            UnknownItemError: an item of the query is unknown, and `on_unknown` is "error".
            InputError: a condition or a vector does not fit the release.
        """
        search = self.resolve(query, overlay)
        catalog, resolved, _ = search
        reasons: set[IncompleteReason] = set()
        has_point = bool(resolved.positives) or query.vector is not None
        fallback = not has_point and query.on_unknown == "fallback"
        ranking: Iterator[ScoredItem]
        if has_point:
            ranking = self.ranking(query, search, reasons)
        elif fallback:
            ranking = self.popular(search)
        else:
            ranking = iter(())
            reasons.add("unknown_items")
        limits = query.diversity.max_per_value
        if limits:
            self._columns.validate_countable(limits)
            ranking = limit_per_value(ranking, catalog, limits, lambda: reasons.add("diversity"))
        page = list(islice(ranking, query.offset, query.offset + query.k + 1))
        has_more = len(page) > query.k
        page = page[: query.k]
        item_id = query.single_item_id
        title = None
        if item_id is not None and has_point:
            title = catalog.ids_and_titles([resolved.positives[0][0]])[0][1]
        return SearchResult(
            self.release_id,
            query.answered_in,
            item_id,
            title,
            self._neighbors(query, resolved, catalog, page, fallback=fallback),
            resolved.unknown_ids,
            fallback,
            has_more,
            _incomplete_reason(query, reasons) if len(page) < query.k else None,
        )

    def resolve(self, query: Query, overlay: Overlay) -> ResolvedSearch:
        """Find the items of a query, and which items satisfy its filters.

        Raises:
            UnknownItemError: an item of the query is unknown, and `on_unknown` is "error".
            InputError: a condition does not fit the release.
        """
        catalog = self.overlaid(overlay)
        resolved = resolve(query, catalog, self._recency)
        if resolved.unknown_query_ids and query.on_unknown == "error":
            raise UnknownItemError(_unknown_message(resolved.unknown_query_ids))
        return ResolvedSearch(catalog, resolved, self._mask(query, resolved, catalog))

    def item_details(self, item_id: str, overlay: Overlay = EMPTY_OVERLAY) -> ItemDetails:
        """Return the columns of one item.

        Raises:
            UnknownItemError: the item is not in the catalog, or is hidden by the overlay.
        """
        catalog = self.overlaid(overlay)
        item_number = catalog.item_number(item_id)
        if item_number is None:
            raise UnknownItemError(_unknown_message([item_id]))
        row = catalog.row(item_number)
        available = row.get(AVAILABLE) is not False
        features = {column: row.get(column) for column in self.features}
        return ItemDetails(self.release_id, item_id, row["title"], available, row["interactions"] or 0, features)

    def overlaid(self, overlay: Overlay = EMPTY_OVERLAY) -> OverlaidCatalog:
        """Return the catalog with an overlay applied; the last one is cached."""
        cached_overlay, catalog = self._cached_overlay
        if cached_overlay is not overlay:
            catalog = self._overlay(overlay)
            self._cached_overlay = overlay, catalog
        return catalog

    def _overlay(self, overlay: Overlay) -> OverlaidCatalog:
        return OverlaidCatalog(self.catalog, self.searcher.vectors, self._columns, self.searcher.distance, overlay)

    def _mask(self, query: Query, resolved: ResolvedQuery, catalog: OverlaidCatalog) -> Mask | None:
        """Return which items satisfy the filters, bool [len(catalog)]; None without filters."""
        mask = catalog.mask(query.where, only_available=query.only_available)
        if resolved.allowed is None:
            return mask
        allowed = np.zeros(len(catalog), np.bool_)
        allowed[resolved.allowed] = True
        return allowed if mask is None else mask & allowed

    def ranking(self, query: Query, search: ResolvedSearch, reasons: set[IncompleteReason]) -> Iterator[ScoredItem]:
        """Return the items that satisfy a query with items or a vector, nearest first.

        When `min_similarity` or `min_probability` ends the ranking, it is added to `reasons`.
        """
        catalog, resolved, mask = search
        point = query_point(query, resolved, catalog, self.searcher.distance)
        distance, num_catalog_items = self.searcher.distance, catalog.num_catalog_items
        catalog_mask = None if mask is None else mask[:num_catalog_items]
        allowed = AllowedItems(catalog_mask, num_catalog_items, resolved.excluded, catalog.removed)
        is_mean = query.vector is None and not query.negatives
        ranking = self.searcher.ranking(point, allowed, is_mean=is_mean)
        if len(catalog) > num_catalog_items:
            vector = self.searcher.vector(point)
            similarities = exact_similarities(distance, vector, catalog.added_vectors).tolist()
            added = map(ScoredItem, range(num_catalog_items, len(catalog)), similarities)
            allowed = AllowedItems(mask, len(catalog), resolved.excluded, catalog.removed)
            ranking = merge_rankings(ranking, sorted((s for s in added if s.item_number in allowed), key=sort_key))
        if query.min_similarity is not None:
            minimum = query.min_similarity
            ranking = take_while_similar(ranking, lambda s: s >= minimum, lambda: reasons.add("min_similarity"))
        if query.min_probability is not None:
            calibration, min_probability = self._require_calibration(), query.min_probability
            ranking = take_while_similar(
                ranking,
                lambda s: calibration.probability(s) >= min_probability,
                lambda: reasons.add("min_probability"),
            )
        if query.diversity.mmr_lambda < 1:
            ranking = maximal_marginal_relevance(ranking, catalog.vectors, distance, query.diversity.mmr_lambda)
        return ranking

    def popular(self, search: ResolvedSearch) -> Iterator[ScoredItem]:
        """Return the items that satisfy a query by popularity, without a similarity."""
        catalog, resolved, mask = search
        allowed = AllowedItems(mask, len(catalog), resolved.excluded, catalog.removed)
        item_numbers = map(int, catalog.by_popularity)
        return (ScoredItem(item_number, math.nan) for item_number in item_numbers if item_number in allowed)

    def _require_calibration(self) -> Calibration:
        if self._calibration is None:
            raise InputError(
                f"min_probability requires a release with a calibration. Received: {self.release_id}, "
                "which has none. Use min_similarity."
            )
        return self._calibration

    def _neighbors(
        self,
        query: Query,
        resolved: ResolvedQuery,
        catalog: OverlaidCatalog,
        page: list[ScoredItem],
        *,
        fallback: bool,
    ) -> list[Neighbor]:
        values = [item.similarity for item in page]
        similarities: list[float | None] = [None] * len(page)
        probabilities = similarities
        if not fallback:
            similarities = [value if -1.0 <= value <= 1.0 else math.copysign(1.0, value) for value in values]
            if self._calibration is not None:
                probabilities = self._calibration.to_probabilities(values).tolist()
        explanations: list[Explanation | None] = [None] * len(page)
        if query.explain:
            explanations = self._explanations([number for number, _ in resolved.positives], catalog, page)
        ids_and_titles = catalog.ids_and_titles([s.item_number for s in page])
        return [
            Neighbor(item_id, title, similarity, rank, probability, explanation)
            for rank, ((item_id, title), similarity, probability, explanation) in enumerate(
                zip(ids_and_titles, similarities, probabilities, explanations, strict=True), query.offset + 1
            )
        ]

    def _explanations(
        self, query_items: list[int], catalog: OverlaidCatalog, page: list[ScoredItem]
    ) -> list[Explanation | None]:
        """Return what each item of the page has in common with the query items."""
        columns = self._columns.string_columns
        query_values = {
            column: {value for item in query_items for value in catalog.values(column, item)} for column in columns
        }
        num_catalog_items = catalog.num_catalog_items
        query_users = None
        if self._item_users is not None:
            query_users = self._item_users.users_of_any([item for item in query_items if item < num_catalog_items])
        explanations: list[Explanation | None] = []
        for item_number, _ in page:
            shared = {
                column: [value for value in catalog.values(column, item_number) if value in query_values[column]]
                for column in columns
            }
            shared_users = None
            if self._item_users is not None and query_users is not None:
                in_catalog = item_number < num_catalog_items
                shared_users = self._item_users.count_shared(query_users, item_number) if in_catalog else 0
            explanations.append(
                Explanation(shared_users, {column: values for column, values in shared.items() if values})
            )
        return explanations


def _incomplete_reason(query: Query, reasons: set[IncompleteReason]) -> IncompleteReason:
    for reason in get_args(IncompleteReason):
        if reason in reasons:
            return reason  # type: ignore[no-any-return]
    return "filters" if query.has_filters else "catalog"


def _unknown_message(item_ids: list[str]) -> str:
    return f"item_id must be in the catalog. Received: {', '.join(map(repr, item_ids))}."
