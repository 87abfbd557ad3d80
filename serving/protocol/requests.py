"""Request parameters and bodies, and their conversion to queries of the library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, NamedTuple, Protocol, Self
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from starlette.types import Scope

from recsys.config.sections import ServeConfig
from recsys.config.senses import Sense
from recsys.errors import InputError
from recsys.retrieval.query import NO_DIVERSITY, Condition, Diversity, OnUnknown, Query, WeightedItem, resolve_sense
from serving.protocol import headers

RELEASE_HEADER, STICKY_KEY_HEADER = headers.encode(headers.RELEASE), headers.encode(headers.STICKY_KEY)
RANGE_KEYS = {"min", "max"}
MAX_PARSED = 256
"""Number of query strings whose queries are kept. Most clients send few different ones, for many items."""
MAX_LIST_LENGTH = 1_000
"""Maximum number of ids or values in a list of a query."""

K = Annotated[int, Field(ge=1, description="Maximum number of neighbors; `k` + `offset` is at most `serve.max_k`.")]
Offset = Annotated[int, Field(ge=0, description="Number of nearest neighbors to skip. Exclusive with `cursor`.")]
CursorText = Annotated[
    str | None,
    Field(description="`next_cursor` of the previous response: continues the same query on the same release."),
]
MinSimilarity = Annotated[float | None, Field(allow_inf_nan=False, description="Smallest similarity of a neighbor.")]
MinProbability = Annotated[float | None, Field(ge=0, le=1, description="Smallest probability of a neighbor.")]
Exclude = Annotated[list[str], Field(description="Item ids that must not be returned.")]
OnlyAvailable = Annotated[bool, Field(description="Leave out items that are not available.")]
UnknownItems = Annotated[
    OnUnknown,
    Field(
        description="Handling of unknown item ids. `error`: respond with 404. `skip`: ignore them. "
        "`fallback`: return popular items if no item of the query is known."
    ),
]
QuerySense = Annotated[
    Sense | None,
    Field(
        description="Sense of similarity. `similar`: items that are alike. `next`: items that are used together or one "
        "after the other. By default `next` for a query with a history, otherwise `similar`."
    ),
]
Explain = Annotated[bool, Field(description="Return what each neighbor has in common with the items of the query.")]
MmrLambda = Annotated[
    float,
    Field(
        ge=0,
        le=1,
        description="Lambda of maximal marginal relevance: 1 ranks by similarity alone, 0 by difference from the "
        "neighbors ranked before.",
    ),
]


class SimilarParameters(BaseModel):
    """Query parameters of `GET /v1/items/{item_id}/similar`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    k: K = 10
    offset: Offset = 0
    cursor: CursorText = None
    min_similarity: MinSimilarity = None
    min_probability: MinProbability = None
    exclude: Exclude = Field(default_factory=list)
    only_available: OnlyAvailable = False
    on_unknown: UnknownItems = "error"
    explain: Explain = False
    mmr_lambda: MmrLambda = 1.0
    sense: QuerySense = None
    release: str | None = Field(None, description="Id of the release to answer from.")

    @classmethod
    def from_query_string(cls, query_string: bytes) -> Self:
        """Parse a query string.

        Raises:
            ValidationError: a parameter is unknown or has an invalid value.
        """
        parameters = parse_query_string(query_string)
        values: dict[str, Any] = dict(parameters)
        if "exclude" in values:
            values["exclude"] = [value for name, value in parameters if name == "exclude"]
        return cls.model_validate(values)

    def to_query(self, item_id: str, limits: ServeConfig) -> Query:
        """Return the query for the neighbors of an item; another item has the same with `Query.for_item`.

        Raises:
            InputError: the query exceeds a limit, or contradicts itself.
        """
        validate_sizes(limits, self.k, self.offset, self.cursor, exclude=self.exclude)
        return Query(
            items=(WeightedItem(item_id),),
            k=self.k,
            offset=self.offset,
            min_similarity=self.min_similarity,
            min_probability=self.min_probability,
            exclude=tuple(self.exclude),
            only_available=self.only_available,
            diversity=NO_DIVERSITY if self.mmr_lambda == 1 else Diversity(self.mmr_lambda),
            on_unknown=self.on_unknown,
            sense=self.sense,
            explain=self.explain,
        )


class SimilarQueries:
    """Parses the query strings of `GET /v1/items/{item_id}/similar`, each of the last ones only once.

    Args:
        limits: settings of the service.
    """

    def __init__(self, limits: ServeConfig) -> None:
        self._limits = limits
        self._parse = lru_cache(MAX_PARSED)(self._parse_and_validate)

    def query(self, item_id: str, query_string: bytes) -> tuple[Query, str | None]:
        """Return the query for the neighbors of an item, and the cursor of its page, if any.

        Raises:
            ValidationError: a parameter is unknown or has an invalid value.
            InputError: the query exceeds a limit, or contradicts itself.
        """
        query, cursor = self._parse(query_string)
        return query.for_item(item_id), cursor

    def _parse_and_validate(self, query_string: bytes) -> tuple[Query, str | None]:
        parameters = SimilarParameters.from_query_string(query_string)
        query = parameters.to_query("", self._limits)
        query.conditions  # noqa: B018 - computed once for all items
        return query, parameters.cursor


class RequestedRelease(NamedTuple):
    """The release that a request selects. If all fields are None, the service chooses."""

    parameter: str | None = None
    """Value of the query parameter `release`."""
    header: str | None = None
    """Value of the header `Recsys-Release`."""
    sticky_key: str | None = None
    """Value of the header `Recsys-Sticky-Key`."""
    cursor: str | None = None

    @classmethod
    def from_scope(cls, scope: Scope) -> Self:
        """Read the query parameters and headers of a request without a body."""
        values, query = headers.received(scope), scope["query_string"]
        header, sticky_key = _decode(values.get(RELEASE_HEADER)), _decode(values.get(STICKY_KEY_HEADER))
        # most requests select no release, and parsing takes longer than finding a cached response; `%` begins an
        # encoded character of a name
        if b"release" in query or b"cursor" in query or b"%" in query:
            parameters = dict(parse_query_string(query))
            return cls(parameters.get("release"), header, sticky_key, parameters.get("cursor"))
        return cls(None, header, sticky_key)


def _decode(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")


def parse_query_string(query_string: bytes) -> list[tuple[str, str]]:
    """Return the parameters of a query string by name, as `starlette.datastructures.QueryParams` does."""
    text = query_string.decode("latin-1")
    if "%" in text or "+" in text:
        return parse_qsl(text, keep_blank_values=True)
    pairs = [part.partition("=") for part in text.split("&") if part]  # five times as fast
    return [(name, value) for name, _, value in pairs]


def _item_from_string(value: Any) -> Any:
    return {"item_id": value} if isinstance(value, str) else value


class WeightedItemBody(BaseModel):
    """An item id and its weight relative to the other items."""

    model_config = ConfigDict(extra="forbid", strict=True)

    item_id: str
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)


ITEM_SCHEMA = {"anyOf": [{"type": "string"}, WeightedItemBody.model_json_schema()]}
Items = list[Annotated[WeightedItemBody, BeforeValidator(_item_from_string), WithJsonSchema(ITEM_SCHEMA)]]


class DiversityBody(BaseModel):
    """Diversity of the neighbors."""

    model_config = ConfigDict(extra="forbid", strict=True)

    mmr_lambda: MmrLambda = 1.0
    max_per_value: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict, description="Catalog column -> maximum number of neighbors with the same value."
    )


VALUE_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "number"}, {"type": "boolean"}]}
WHERE_SCHEMA = {
    "type": "object",
    "description": "Catalog column -> a value, a list of accepted values, or a range with `min`, `max` or both.",
    "additionalProperties": {
        "anyOf": [
            *VALUE_SCHEMA["anyOf"],
            {"type": "array", "items": VALUE_SCHEMA, "minItems": 1},
            {
                "type": "object",
                "properties": {"min": {"type": "number"}, "max": {"type": "number"}},
                "additionalProperties": False,
                "minProperties": 1,
            },
        ]
    },
}


class SearchRequest(BaseModel):
    """A query by `items`, `history`, `vector` or `features`, or several of them, and conditions on the neighbors."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [{"items": ["50", {"item_id": "181", "weight": 2.0}], "negatives": ["7"], "k": 5}]
        },
    )

    items: Items = Field(
        default_factory=list, description="Item ids, or item ids with weights. Only the ratios of the weights matter."
    )
    negatives: Items = Field(default_factory=list, description="Items that the neighbors should not resemble.")
    history: list[str] = Field(default_factory=list, description="Item ids that a user interacted with, newest last.")
    vector: list[float] | None = Field(
        None, description="An embedding of the sense of the query. If the query has items too, its weight is 1."
    )
    features: dict[str, Any] | None = Field(
        None, description="Features of a new item, embedded by the tower. Requires a service with `--with-tower`."
    )
    k: K = 10
    offset: Offset = 0
    cursor: CursorText = None
    min_similarity: MinSimilarity = None
    min_probability: MinProbability = None
    exclude: Exclude = Field(default_factory=list)
    allow: list[str] | None = Field(None, description="The only item ids that may be returned. By default, all.")
    where: Annotated[dict[str, Any], WithJsonSchema(WHERE_SCHEMA)] = Field(default_factory=dict)
    only_available: OnlyAvailable = False
    diversity: DiversityBody = Field(default_factory=DiversityBody)
    on_unknown: UnknownItems = "error"
    sense: QuerySense = None
    explain: Explain = False

    def to_query(self, limits: ServeConfig, embed: Embedder | None) -> Query:
        """Return the query. Its vector comes from the body, or is the embedding of the features.

        Raises:
            InputError: the query exceeds a limit, contradicts itself, or has features but the service has no tower.
        """
        validate_sizes(
            limits,
            self.k,
            self.offset,
            self.cursor,
            items=self.items,
            negatives=self.negatives,
            history=self.history,
            exclude=self.exclude,
            allow=self.allow or (),
            **lists_of_where(self.where),
            **{"diversity.max_per_value": self.diversity.max_per_value},
        )
        return Query(
            items=tuple(WeightedItem(item.item_id, item.weight) for item in self.items),
            negatives=tuple(WeightedItem(item.item_id, item.weight) for item in self.negatives),
            history=tuple(self.history),
            vector=_vector(self, embed),
            k=self.k,
            offset=self.offset,
            min_similarity=self.min_similarity,
            min_probability=self.min_probability,
            exclude=tuple(self.exclude),
            allow=None if self.allow is None else tuple(self.allow),
            where=tuple(condition(column, value) for column, value in self.where.items()),
            only_available=self.only_available,
            diversity=Diversity(self.diversity.mmr_lambda, self.diversity.max_per_value),
            on_unknown=self.on_unknown,
            sense=self.sense,
            explain=self.explain,
        )


QUERY_SCHEMA = {"$ref": "#/components/schemas/SearchRequest"}


class BatchRequest(BaseModel):
    """Several queries; each is validated and answered independently."""

    model_config = ConfigDict(extra="forbid", strict=True)

    queries: Annotated[list[Any], WithJsonSchema({"type": "array", "items": QUERY_SCHEMA, "minItems": 1})] = Field(
        min_length=1
    )


class Embedder(Protocol):
    """A function that embeds an item by its features, for queries in a sense."""

    def __call__(self, sense: Sense, features: Mapping[str, Any]) -> NDArray[np.float32]:
        """Return the embedding, float32 [dimension]."""


def _vector(body: SearchRequest, embed: Embedder | None) -> tuple[float, ...] | None:
    if body.features is None:
        return None if body.vector is None else tuple(body.vector)
    if body.vector is not None:
        raise InputError("a query must have a vector or features. Received: both.")
    if embed is None:
        raise InputError(
            "a query with features requires a service with the tower. Received: features, on a service without it. "
            "Start the service with recsys serve --with-tower, or send the vector of the item."
        )
    return tuple(embed(resolve_sense(body.sense, body.history), body.features).tolist())


def lists_of_where(where: Mapping[str, Any]) -> dict[str, Sequence[Any] | Mapping[str, Any]]:
    """Return the conditions of a query and each list of accepted values, by name, for `validate_sizes`."""
    lists = {f"where.{column}": values for column, values in where.items() if isinstance(values, list)}
    return {"where": where, **lists}


def condition(column: str, value: Any) -> Condition:
    """Return the condition that a value of `where` describes.

    Raises:
        InputError: the value is not valid.
    """
    if isinstance(value, dict):
        invalid = sorted(set(value) - RANGE_KEYS) or [key for key, bound in value.items() if not _is_number(bound)]
        if invalid or not value:
            raise InputError(f"where.{column} must be a range with numbers for min, max or both. Received: {value!r}.")
        return Condition(column, minimum=value.get("min"), maximum=value.get("max"))
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(element, str | bool) or _is_number(element) for element in values):
        raise InputError(f"where.{column} must be a value, a list of values or a range. Received: {value!r}.")
    return Condition(column, any_of=tuple(values))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def validate_sizes(
    limits: ServeConfig, k: int, offset: int, cursor: str | None, **lists: Sequence[Any] | Mapping[str, Any]
) -> None:
    """Validate the page of a query, and the lengths of its lists by name.

    Raises:
        InputError: a limit is exceeded, or the query has a cursor and an offset.
    """
    if cursor is not None and offset:
        raise InputError(f"a query must have a cursor or an offset. Received: both, offset {offset}.")
    if k + offset > limits.max_k:
        if offset:
            raise InputError(f"k + offset must be at most {limits.max_k}. Received: k {k} and offset {offset}.")
        raise InputError(f"k must be at most {limits.max_k}. Received: {k}.")
    for name, values in lists.items():
        if len(values) > MAX_LIST_LENGTH:
            raise InputError(f"{name} must have at most {MAX_LIST_LENGTH} elements. Received: {len(values)}.")
