"""Response bodies.

To add a field to search results, add it to the type in `recsys.retrieval.results`, set it in
`recsys.retrieval.engine`, and describe it here.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, Field

from recsys.config.senses import Sense
from recsys.retrieval.results import IncompleteReason, ItemDetails

EmbeddingSource = Literal["release", "vector", "features"]


class ExplanationResponse(BaseModel):
    """What a neighbor has in common with the items of the query."""

    shared_users: int | None = Field(
        ge=0,
        description="Number of users who interacted with the neighbor and with an item of the query. "
        "Null if the release has no user data.",
    )
    shared_values: dict[str, list[str | bool | float]] = Field(
        description="Catalog column -> values that the neighbor shares with an item of the query."
    )


class NeighborResponse(BaseModel):
    """One item of a search result."""

    item_id: str
    title: str | None
    similarity: float | None = Field(
        ge=-1,
        le=1,
        description="Cosine similarity, or 1 / (1 + distance); larger is closer. Null for popular items.",
    )
    rank: int = Field(
        ge=1, description="Rank in the whole ranking, including skipped neighbors; 1 is the nearest item."
    )
    probability: float | None = Field(
        ge=0,
        le=1,
        description="Calibrated probability that the neighbor and the query belong together. "
        "Null if the release is not calibrated.",
    )
    explanation: ExplanationResponse | None = Field(description="Null unless the request sets `explain`.")


class SearchResponse(BaseModel):
    """The neighbors of a query, nearest first."""

    release_id: str = Field(description="The release that the result comes from.")
    sense: Sense = Field(description="The sense of similarity in which the query was answered.")
    item_id: str | None = Field(description="The item of the query, if it has exactly one.")
    title: str | None = Field(description="The title of that item.")
    neighbors: list[NeighborResponse]
    unknown_item_ids: list[str] = Field(description="Item ids of the query that the release does not contain.")
    fallback: bool = Field(
        description="Whether the neighbors are popular items, because no item of the query is known."
    )
    has_more: bool = Field(description="Whether the ranking continues after these neighbors.")
    incomplete_reason: IncompleteReason | None = Field(
        description="Why there are fewer than `k` neighbors; the first reason that applies."
    )
    next_cursor: str | None = Field(
        description="Cursor of the next page. Null if there is none, or if it would begin beyond rank `serve.max_k`."
    )


class ItemResponse(BaseModel):
    """What a release contains about one item."""

    release_id: str
    item_id: str
    title: str | None
    available: bool
    interactions: int = Field(ge=0, description="Number of interactions in the training data.")
    features: dict[str, str | bool | int | float | list[str] | None] = Field(description="Catalog column -> value.")

    @classmethod
    def from_details(cls, details: ItemDetails) -> Self:
        """Return the response for the item details of the library."""
        return cls.model_validate(details._asdict())


class SpaceResponse(BaseModel):
    """An embedding space of a release."""

    index_recall: float = Field(ge=0, le=1, description="Share of the exact nearest neighbors that the index returns.")


class ReleaseResponse(BaseModel):
    """The champion release."""

    release_id: str
    created_at: str
    format_version: int
    num_items: int
    dimension: int
    spaces: dict[Sense, SpaceResponse] = Field(
        description="Embedding spaces by sense. A sense without its own space is answered by the space `next`."
    )
    data_snapshot: str
    code_version: str
    parent_release: str | None


class StatusResponse(BaseModel):
    """Liveness or readiness of the service."""

    status: Literal["alive", "ready", "starting"]
    release_id: str | None = Field(None, description="The champion release.")
    loaded: list[str] = Field([], description="Ids of all loaded releases; a request can select any of them.")
    errors: dict[str, str] = Field(
        {}, description="Component -> its current error. The service continues to answer from the loaded releases."
    )


class ItemChangeResponse(BaseModel):
    """A change of an item that was written to disk."""

    item_id: str
    release_id: str = Field(description="The release that the change was validated against.")
    embedding_source: dict[Sense, EmbeddingSource] = Field(
        description="Sense -> source of the embedding: the release, or the vector or the features of the change. "
        "In a sense that is left out, the item is unknown."
    )


class Problem(BaseModel):
    """Problem details of an error (RFC 9457), served as `application/problem+json`."""

    type: str = Field(description="URN of the kind of problem, for example `urn:recsys:unknown-item`.")
    title: str = Field(description="Reason phrase of the HTTP status.")
    status: int = Field(description="HTTP status.")
    detail: str = Field(description="Why this request failed, and what was received.")
    instance: str = Field(description="Path of the request.")


class BatchEntry(BaseModel):
    """The outcome of one query of a batch: a result or a problem."""

    status: int = Field(description="HTTP status that the query would have alone.")
    result: SearchResponse | None
    problem: Problem | None


class BatchResponse(BaseModel):
    """The outcome of each query of a batch, in the order of the request."""

    results: list[BatchEntry]
