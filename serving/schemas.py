"""The shapes of questions and answers over HTTP."""

from __future__ import annotations

from pydantic import BaseModel, Field


class NeighbourBody(BaseModel):
    """An item near the one asked about."""

    item_id: str
    title: str | None
    similarity: float = Field(ge=-1, le=1, description="A cosine, or 1 / (1 + distance); larger is closer.")
    rank: int = Field(ge=1, description="1 is the nearest.")
    probability: float | None = Field(
        ge=0, le=1, description="That both belong together; null where the release is not calibrated."
    )


class AnswerBody(BaseModel):
    """Neighbours, nearest first, and the release that gave them."""

    release_id: str
    item_id: str
    title: str | None
    neighbours: list[NeighbourBody]


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


class ProblemBody(BaseModel):
    """What went wrong: RFC 9457, served as `application/problem+json`."""

    type: str = Field(description="A name of the kind of problem that does not change.")
    title: str
    status: int
    detail: str
    instance: str = Field(description="The path that was asked for.")
