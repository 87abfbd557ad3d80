"""The shapes of answers over HTTP."""

from __future__ import annotations

from pydantic import BaseModel, Field

from recsys.retrieval.results import IncompleteReason


class ExplanationBody(BaseModel):
    """What a neighbor has in common with the items that were asked about."""

    shared_users: int | None = Field(
        ge=0, description="How many touched it and one of them; null where the release does not know."
    )
    shared_values: dict[str, list[str | bool | float]] = Field(
        description="Column -> values that it shares with one of them."
    )


class NeighborBody(BaseModel):
    """An item near what was asked about."""

    item_id: str
    title: str | None
    similarity: float | None = Field(
        ge=-1, le=1, description="A cosine, or 1 / (1 + distance); larger is closer. Null of a popular item."
    )
    rank: int = Field(ge=1, description="1 is the nearest.")
    probability: float | None = Field(
        ge=0, le=1, description="That both belong together; null where the release is not calibrated."
    )
    explanation: ExplanationBody | None = Field(description="Null where it was not asked for.")


class AnswerBody(BaseModel):
    """Neighbors, nearest first, and the release that gave them."""

    release_id: str
    item_id: str | None = Field(description="The item, where the question was about one alone.")
    title: str | None
    neighbors: list[NeighborBody]
    unknown_item_ids: list[str] = Field(description="Ids of the question that the release does not hold.")
    fallback: bool = Field(description="Whether these are popular items, because no item of the question is known.")
    has_more: bool = Field(description="Whether others would follow.")
    incomplete_reason: IncompleteReason | None = Field(
        description="Why there are fewer than asked for, the first that holds."
    )
    next: str | None = Field(description="The cursor of the next page; null where there is none, or it is too far.")


class ItemBody(BaseModel):
    """What the release holds of an item."""

    release_id: str
    item_id: str
    title: str | None
    available: bool
    interactions: int = Field(ge=0, description="How many training saw.")
    features: dict[str, str | float | list[str] | None] = Field(description="Column of the catalog -> value.")


class ReleaseBody(BaseModel):
    """The release in service."""

    release_id: str
    created_at: str
    format_version: int
    num_items: int
    dimension: int
    index_recall: float = Field(ge=0, le=1, description="Share of the exact nearest that the index returns.")
    data_snapshot: str
    code_version: str
    parent_release: str | None


class StatusBody(BaseModel):
    """Whether the service lives, or is ready."""

    status: str
    release_id: str | None = None
    loaded: list[str] = Field([], description="All releases that can be pinned.")
    troubles: dict[str, str] = Field({}, description="What keeps the service from serving what it should.")


class ChangedBody(BaseModel):
    """What was changed, and is on the disk."""

    item_id: str
    release_id: str = Field(description="The release that it was checked against.")
    place: str = Field(
        description="`release`: the item is where the release has it. `vector`, `features`: where those say."
    )


class ProblemBody(BaseModel):
    """What went wrong: RFC 9457, served as `application/problem+json`."""

    type: str = Field(description="A name of the kind of problem that does not change.")
    title: str
    status: int
    detail: str
    instance: str = Field(description="The path that was asked for.")


class EntryBody(BaseModel):
    """What became of one question of a batch: an answer, or a problem."""

    status: int = Field(description="As if it had been asked alone.")
    answer: AnswerBody | None
    problem: ProblemBody | None


class BatchAnswerBody(BaseModel):
    """What became of each question, in their order."""

    answers: list[EntryBody]
