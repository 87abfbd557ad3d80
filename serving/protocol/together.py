"""Request and response bodies of `together`: the items that users interact with after an item."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from recsys.config.sections import ServeConfig
from recsys.retrieval.query import TogetherQuery
from recsys.retrieval.results import TogetherIncompleteReason
from serving.protocol.requests import (
    WHERE_SCHEMA,
    Exclude,
    K,
    OnlyAvailable,
    UnknownItems,
    condition,
    lists_of_where,
    validate_sizes,
)

Offset = Annotated[int, Field(ge=0, description="Number of neighbors with the highest scores to skip.")]
MinUsers = Annotated[
    int,
    Field(
        ge=0,
        description="Smallest number of users who interacted with the item and then with the neighbor. Above 0, only "
        "the item's 100 followers with the most users can be returned.",
    ),
]


class TogetherParameters(BaseModel):
    """Query parameters of `GET /v1/items/{item_id}/together`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    k: K = 10
    offset: Offset = 0
    min_users: MinUsers = 0
    exclude: Exclude = Field(default_factory=list)
    only_available: OnlyAvailable = False
    on_unknown: UnknownItems = "error"
    release: str | None = Field(None, description="Id of the release to answer from.")

    def to_query(self, item_id: str, limits: ServeConfig) -> TogetherQuery:
        """Return the query for the items after an item.

        Raises:
            InputError: the query exceeds a limit.
        """
        validate_sizes(limits, self.k, self.offset, None, exclude=self.exclude)
        return TogetherQuery(
            item_id,
            k=self.k,
            offset=self.offset,
            min_users=self.min_users,
            exclude=tuple(self.exclude),
            only_available=self.only_available,
            on_unknown=self.on_unknown,
        )


class TogetherRequest(BaseModel):
    """An item, and conditions on the items that users interact with after it."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"item_id": "50", "k": 5, "min_users": 20}]}
    )

    item_id: str
    k: K = 10
    offset: Offset = 0
    min_users: MinUsers = 0
    exclude: Exclude = Field(default_factory=list)
    allow: list[str] | None = Field(None, description="The only item ids that may be returned. By default, all.")
    where: Annotated[dict[str, Any], WithJsonSchema(WHERE_SCHEMA)] = Field(default_factory=dict)
    only_available: OnlyAvailable = False
    on_unknown: UnknownItems = "error"

    def to_query(self, limits: ServeConfig) -> TogetherQuery:
        """Return the query.

        Raises:
            InputError: the query exceeds a limit, or a condition is invalid.
        """
        lists = lists_of_where(self.where)
        validate_sizes(limits, self.k, self.offset, None, exclude=self.exclude, allow=self.allow or (), **lists)
        return TogetherQuery(
            self.item_id,
            k=self.k,
            offset=self.offset,
            min_users=self.min_users,
            exclude=tuple(self.exclude),
            allow=None if self.allow is None else tuple(self.allow),
            where=tuple(condition(column, value) for column, value in self.where.items()),
            only_available=self.only_available,
            on_unknown=self.on_unknown,
        )


class TogetherNeighborResponse(BaseModel):
    """One item that users interact with after the query item.

    For an item that is not one of its 100 followers with the most users, `users`, `support`, `confidence` and `lift`
    are 0.
    """

    item_id: str
    title: str | None
    rank: int = Field(ge=1, description="Rank in the whole ranking, including skipped neighbors.")
    users: int = Field(
        ge=0, description="Number of users who interacted with the query item and then, within the window, with this."
    )
    support: float = Field(ge=0, description="These users as a share of all users.")
    confidence: float = Field(ge=0, description="These users as a share of the users of the query item.")
    lift: float = Field(ge=0, description="Confidence divided by the share of all users who interacted with this item.")
    score: float | None = Field(
        ge=0, description="Confidence smoothed by the embeddings; neighbors are ranked by it. Null for popular items."
    )


class TogetherResponse(BaseModel):
    """The items that users interact with after an item, highest score first."""

    release_id: str = Field(description="The release that the result comes from.")
    item_id: str
    title: str | None = Field(description="The title of the query item.")
    users: int = Field(ge=0, description="Number of users who interacted with the query item.")
    neighbors: list[TogetherNeighborResponse]
    unknown_item_ids: list[str] = Field(description="Item ids of the query that the release does not contain.")
    fallback: bool = Field(description="Whether the neighbors are popular items, because the query item is unknown.")
    has_more: bool = Field(description="Whether the ranking continues after these neighbors.")
    incomplete_reason: TogetherIncompleteReason | None = Field(
        description="Why there are fewer than `k` neighbors; the first reason that applies."
    )
