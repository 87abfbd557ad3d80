"""Questions as they come over HTTP, strictly typed, and what the library is asked instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from recsys.config.sections import ServeConfig
from recsys.errors import InputError
from recsys.retrieval.query import Condition, Diversity, OnUnknown, Query, WeightedItem

DEFAULT_K = 10
RANGE = {"min", "max"}

K = Annotated[int, Field(ge=1, description="How many neighbors; with `offset` at most `serve.max_k`.")]
Offset = Annotated[int, Field(ge=0, description="So many nearest are skipped. Or take `cursor`.")]
Cursor = Annotated[
    str | None,
    Field(description="`next` of the answer before, to go on from there with the same question on the same release."),
]
MinSimilarity = Annotated[float | None, Field(allow_inf_nan=False, description="Less similar ones are no neighbors.")]
MinProbability = Annotated[float | None, Field(ge=0, le=1, description="Less probable ones are no neighbors.")]
Exclude = Annotated[list[str], Field(description="Ids that may not be in the answer.")]
OnlyAvailable = Annotated[bool, Field(description="Leave out items that are not available.")]
Unknown = Annotated[
    OnUnknown,
    Field(description="`error`: 404. `skip`: go on without them. `fallback`: popular items where no item is known."),
]
WithWhy = Annotated[bool, Field(description="Tell what each neighbor has in common with the items.")]
Lambda = Annotated[
    float,
    Field(ge=0, le=1, alias="lambda", description="Maximal marginal relevance: 1 is by similarity alone."),
]


class SimilarQuery(BaseModel):
    """Options of a question about one item."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    k: K = DEFAULT_K
    offset: Offset = 0
    cursor: Cursor = None
    min_similarity: MinSimilarity = None
    min_probability: MinProbability = None
    exclude: Exclude = Field(default_factory=list)
    only_available: OnlyAvailable = False
    on_unknown: Unknown = "error"
    why: WithWhy = False
    balance: Lambda = 1.0
    release: str | None = Field(None, description="Ask this release and no other.")


def _named(value: Any) -> Any:
    return {"item_id": value} if isinstance(value, str) else value


class WeightedItemBody(BaseModel):
    """An item, and how much it counts beside the others."""

    model_config = ConfigDict(extra="forbid", strict=True)

    item_id: str
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)


WEIGHTED = {"anyOf": [{"type": "string"}, WeightedItemBody.model_json_schema()]}
Items = list[Annotated[WeightedItemBody, BeforeValidator(_named), WithJsonSchema(WEIGHTED)]]


class DiversityBody(BaseModel):
    """How unlike each other the neighbors have to be."""

    model_config = ConfigDict(extra="forbid", strict=True)

    balance: Lambda = 1.0
    at_most: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict, description="Column -> so many neighbors with the same value."
    )


VALUE = {"anyOf": [{"type": "string"}, {"type": "number"}, {"type": "boolean"}]}
WHERE = {
    "type": "object",
    "description": "Column -> a value, a list of values of which it has one, or a range with `min`, `max` or both.",
    "additionalProperties": {
        "anyOf": [
            *VALUE["anyOf"],
            {"type": "array", "items": VALUE, "minItems": 1},
            {
                "type": "object",
                "properties": {"min": {"type": "number"}, "max": {"type": "number"}},
                "additionalProperties": False,
                "minProperties": 1,
            },
        ]
    },
}


class QuestionBody(BaseModel):
    """A rich question: `items`, `history`, `vector` or `features`, or several of them, and conditions."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [{"items": ["50", {"item_id": "181", "weight": 2.0}], "negatives": ["7"], "k": 5}]
        },
    )

    items: Items = Field(default_factory=list, description="Ids, or ids with weights.")
    negatives: Items = Field(default_factory=list, description="What the neighbors should rather not be like.")
    history: list[str] = Field(default_factory=list, description="What a user touched, newest last.")
    vector: list[float] | None = Field(None, description="A place of its own; it weighs 1 beside items.")
    features: dict[str, Any] | None = Field(
        None, description="Columns of an item that the release does not know; embedded by the tower of the server."
    )
    k: K = DEFAULT_K
    offset: Offset = 0
    cursor: Cursor = None
    min_similarity: MinSimilarity = None
    min_probability: MinProbability = None
    exclude: Exclude = Field(default_factory=list)
    allow: list[str] | None = Field(None, description="Only these may be in the answer.")
    where: Annotated[dict[str, Any], WithJsonSchema(WHERE)] = Field(default_factory=dict)
    only_available: OnlyAvailable = False
    diversity: DiversityBody = Field(default_factory=DiversityBody)
    on_unknown: Unknown = "error"
    why: WithWhy = False


REFERENCE = {"$ref": "#/components/schemas/QuestionBody"}


class BatchBody(BaseModel):
    """Many questions, each answered, or refused, by itself."""

    model_config = ConfigDict(extra="forbid", strict=True)

    questions: Annotated[list[Any], WithJsonSchema({"type": "array", "items": REFERENCE, "minItems": 1})] = Field(
        min_length=1
    )


class Embedder(Protocol):
    """Finds the place of an item by its features."""

    def __call__(self, features: Mapping[str, Any]) -> NDArray[np.float32]:
        """float32 [dimension]."""


def of_query(item_id: str, query: SimilarQuery, limits: ServeConfig) -> Query:
    """The question about one item.

    Raises:
        InputError: it is larger than the server allows, or contradicts itself.
    """
    _require_sizes(limits, query.k, query.offset, query.cursor, exclude=query.exclude)
    return Query(
        items=(WeightedItem(item_id),),
        k=query.k,
        offset=query.offset,
        min_similarity=query.min_similarity,
        min_probability=query.min_probability,
        exclude=tuple(query.exclude),
        only_available=query.only_available,
        diversity=Diversity(query.balance),
        on_unknown=query.on_unknown,
        explain=query.why,
    )


def of_body(body: QuestionBody, limits: ServeConfig, embed: Embedder | None) -> Query:
    """The question of a body; a vector and features together are their sum.

    Raises:
        InputError: it is larger than the server allows, contradicts itself, or has features that nobody embeds.
    """
    _require_sizes(
        limits,
        body.k,
        body.offset,
        body.cursor,
        items=body.items,
        negatives=body.negatives,
        history=body.history,
        exclude=body.exclude,
        allow=body.allow or (),
        where=body.where,
        **{f"where.{column}": values for column, values in body.where.items() if isinstance(values, list)},
        **{"diversity.at_most": body.diversity.at_most},
    )
    return Query(
        items=tuple(WeightedItem(item.item_id, item.weight) for item in body.items),
        negatives=tuple(WeightedItem(item.item_id, item.weight) for item in body.negatives),
        history=tuple(body.history),
        vector=_vector(body, embed),
        k=body.k,
        offset=body.offset,
        min_similarity=body.min_similarity,
        min_probability=body.min_probability,
        exclude=tuple(body.exclude),
        allow=None if body.allow is None else tuple(body.allow),
        where=tuple(_condition(column, wanted) for column, wanted in body.where.items()),
        only_available=body.only_available,
        diversity=Diversity(body.diversity.balance, body.diversity.at_most),
        on_unknown=body.on_unknown,
        explain=body.why,
    )


def _vector(body: QuestionBody, embed: Embedder | None) -> tuple[float, ...] | None:
    if body.features is None:
        return None if body.vector is None else tuple(body.vector)
    if body.vector is not None:
        raise InputError("a question must have a vector or features. Received: both.")
    if embed is None:
        raise InputError(
            "features must be asked of a server with the tower. Received: features, by a server without. "
            "Start it by recsys serve --with-tower, or send the item's vector."
        )
    return tuple(embed(body.features).tolist())


def _condition(column: str, wanted: Any) -> Condition:
    if isinstance(wanted, dict):
        wrong = sorted(set(wanted) - RANGE) or [name for name, b in wanted.items() if not _is_number(b)]
        if wrong or not wanted:
            raise InputError(f"where.{column} must be a range with min, max or both, numbers. Received: {wanted!r}.")
        return Condition(column, minimum=wanted.get("min"), maximum=wanted.get("max"))
    values = wanted if isinstance(wanted, list) else [wanted]
    if not all(isinstance(value, str | bool) or _is_number(value) for value in values):
        raise InputError(f"where.{column} must be a value, a list of values or a range. Received: {wanted!r}.")
    return Condition(column, any_of=tuple(values))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _require_sizes(
    limits: ServeConfig, k: int, offset: int, cursor: str | None, **lists: Sequence[Any] | Mapping[str, Any]
) -> None:
    if cursor is not None and offset:
        raise InputError(f"a question must have a cursor or an offset. Received: both, offset {offset}.")
    if k + offset > limits.max_k:
        together = f"k and offset together must be at most {limits.max_k}. Received: {k} and {offset}."
        raise InputError(together if offset else f"k must be at most {limits.max_k}. Received: {k}.")
    for name, values in lists.items():
        if len(values) > limits.max_items:
            raise InputError(f"{name} must hold at most {limits.max_items}. Received: {len(values)}.")
