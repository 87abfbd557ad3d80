"""What the engine returns: neighbors of a query, the details of one item, and the comparison of two items.

To add a field to the HTTP responses, add it here and in `recsys.retrieval.engine`, and describe it in
`serving.protocol.responses`.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from recsys.config.senses import Sense
from recsys.data.catalog import Catalog
from recsys.evaluation.calibration import Calibration, Threshold
from recsys.retrieval.query import Value

IncompleteReason = Literal["unknown_items", "min_similarity", "min_probability", "diversity", "filters", "catalog"]
"""Why fewer than `k` neighbors were returned, the first reason that applies: no item of the query is known; the
remaining items are below `min_similarity` or `min_probability`; the diversity limits exclude them; the filters
(`where`, `only_available`, `exclude`, `allow`) exclude them; the catalog has no more items."""


class Explanation(NamedTuple):
    """What a neighbor has in common with the items of the query."""

    shared_users: int | None
    """Number of users who interacted with the neighbor and with an item of the query; None if the release has no user
    data."""
    shared_values: dict[str, list[Value]]
    """Column -> values that the neighbor shares with an item of the query."""


class Neighbor(NamedTuple):
    """One item of a search result. `serving.protocol.responses` describes it for HTTP."""

    item_id: str
    title: str | None
    similarity: float | None
    """A cosine in [-1, 1], or 1 / (1 + distance); larger is closer. None for popular items (`fallback`)."""
    rank: int
    """Rank in the whole ranking, from 1, including the items skipped by an offset."""
    probability: float | None = None
    """Calibrated probability that the neighbor and the query belong together; None if the release is not calibrated.
    See `recsys.evaluation.calibration`."""
    explanation: Explanation | None = None
    """Set if the query has `explain`."""


class SearchResult(NamedTuple):
    """The neighbors of a query, nearest first, and the release that they come from."""

    release_id: str
    sense: Sense
    """The sense of similarity in which the query was answered."""
    item_id: str | None
    """The item of the query, if it has exactly one."""
    title: str | None
    """Its title."""
    neighbors: list[Neighbor]
    unknown_item_ids: list[str]
    """Ids of the query that the release does not contain, in `items`, `history`, `negatives`, `exclude` or `allow`."""
    fallback: bool
    """Whether the neighbors are popular items, because no item of the query is known."""
    has_more: bool
    """Whether the ranking continues after these neighbors."""
    incomplete_reason: IncompleteReason | None
    """Why there are fewer than `k` neighbors."""

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-compatible objects."""
        neighbors = [
            {  # three times as fast as `_asdict`
                "item_id": item_id,
                "title": title,
                "similarity": similarity,
                "rank": rank,
                "probability": probability,
                "explanation": explanation and explanation._asdict(),
            }
            for item_id, title, similarity, rank, probability, explanation in self.neighbors
        ]
        return {**self._asdict(), "neighbors": neighbors}


class TogetherNeighbor(NamedTuple):
    """One item that users interact with after the query item. All shares are of users before their test targets.

    The release has counts of the item's followers (`recsys.data.followers`); for other items `users`, `support`,
    `confidence` and `lift` are 0.
    """

    item_id: str
    title: str | None
    rank: int
    """Rank in the whole ranking, from 1, including the items skipped by an offset."""
    users: int
    """Number of users who interacted with the query item and then, within the window, with this one."""
    support: float
    """These users as a share of all users."""
    confidence: float
    """These users as a share of the users of the query item."""
    lift: float
    """Confidence divided by the share of all users who interacted with this item."""
    score: float | None
    """Confidence smoothed by the embeddings (`recsys.retrieval.together`), in [0, 1]; neighbors are ranked by it. None
    for popular items (`fallback`)."""


TogetherIncompleteReason = Literal["unknown_items", "min_users", "filters", "catalog"]
"""Why fewer than `k` neighbors were returned, the first reason that applies; see `IncompleteReason`."""


class TogetherResult(NamedTuple):
    """The items that users interact with after an item, highest score first, and the release that they come from."""

    release_id: str
    item_id: str
    title: str | None
    """Title of the query item."""
    users: int
    """Number of users who interacted with the query item before their test targets."""
    neighbors: list[TogetherNeighbor]
    unknown_item_ids: list[str]
    """Ids of the query that the release does not contain, in `item_id`, `exclude` or `allow`."""
    fallback: bool
    """Whether the neighbors are popular items, because the query item is unknown."""
    has_more: bool
    """Whether the ranking continues after these neighbors."""
    incomplete_reason: TogetherIncompleteReason | None
    """Why there are fewer than `k` neighbors."""

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-compatible objects."""
        return {**self._asdict(), "neighbors": [neighbor._asdict() for neighbor in self.neighbors]}


class ItemDetails(NamedTuple):
    """What a release contains about one item."""

    release_id: str
    item_id: str
    title: str | None
    available: bool
    interactions: int
    """Number of interactions in the training data."""
    features: dict[str, Any]
    """Catalog column -> value."""


class ComparedItem(NamedTuple):
    """One of the two items of a verification."""

    item_id: str
    title: str | None


class VerificationResult(NamedTuple):
    """Whether two items belong together according to a calibrated threshold."""

    release_id: str
    items: tuple[ComparedItem, ComparedItem]
    similarity: float
    """Exact similarity of the two embeddings; larger is closer."""
    probability: float
    """Probability that the two items belong together, assuming that half of all pairs belong together."""
    same: bool
    """Whether the similarity reaches the threshold."""
    threshold: Threshold
    """The threshold, with its error rates on pairs that were not used to choose it."""

    @classmethod
    def from_similarity(
        cls,
        catalog: Catalog,
        release_id: str,
        item_ids: tuple[str, str],
        *,
        similarity: float,
        calibration: Calibration,
        threshold: Threshold,
    ) -> VerificationResult:
        """Compare a similarity with a threshold."""
        first, second = (ComparedItem(item_id, catalog.titles[catalog.item_number(item_id)]) for item_id in item_ids)
        same = threshold.similarity is not None and similarity >= threshold.similarity
        return cls(release_id, (first, second), similarity, calibration.probability(similarity), same, threshold)
