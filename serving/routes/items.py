"""Routes that change items between two runs of the pipeline.

PUT    /v1/items/{item_id}   add an item, or change the embedding, title, availability or features of one
DELETE /v1/items/{item_id}   hide an item
"""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import Annotated, Any

import numpy as np
import polars as pl
from fastapi import APIRouter, Response
from fastapi.concurrency import run_in_threadpool
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from recsys import Release
from recsys.config.senses import SENSES, Sense
from recsys.errors import InputError
from recsys.retrieval.filters import AVAILABLE
from recsys.retrieval.query import is_finite
from recsys.retrieval.search import validate_vector
from serving.live.item_changes import ItemChange, ItemChanges
from serving.live.live_release import LiveRelease
from serving.live.state import State
from serving.middleware.access import RejectedRequest
from serving.protocol.encoded_path import ENCODED
from serving.protocol.problem import PROBLEM_CONTENT
from serving.protocol.requests import RequestedRelease
from serving.protocol.responses import EmbeddingSource, ItemChangeResponse, Problem
from serving.protocol.strict_json import StrictJSONRoute
from serving.routes.dependencies import ItemId, WorkerState

MAX_ID_LENGTH = 1_024
"""Maximum number of characters of the id of a new item."""

router = APIRouter(route_class=StrictJSONRoute, tags=["items"])


Vector = list[Annotated[float, Field(allow_inf_nan=False)]] | None


class ItemChangeRequest(BaseModel):
    """All differences of an item from the release. A change replaces earlier changes of the item."""

    model_config = ConfigDict(extra="forbid", strict=True)

    title: str | None = Field(None, description="Title. If omitted, the title of the release.")
    available: bool | None = Field(None, description="Availability. If omitted, the availability of the release.")
    features: dict[str, Any] = Field(
        default_factory=dict,
        description="Catalog column -> value. Used by filters, and to embed a new item that has no vector.",
    )
    vector: Vector = Field(
        None,
        description="Embedding of the item for the sense `similar`, comparable with the embeddings of the champion "
        "release. If that release has one embedding space, the embedding for both senses.",
    )
    next_vector: Vector = Field(
        None, description="Embedding for the sense `next`, if the champion release has two embedding spaces."
    )


@router.put(
    f"/v1/items/{{item_id:{ENCODED}}}",
    responses={422: {"description": "The change is not valid.", "model": Problem, "content": PROBLEM_CONTENT}},
    summary="Add or change an item",
)
async def put_item(state: WorkerState, item_id: ItemId, change: ItemChangeRequest) -> ItemChangeResponse:
    """Store a change until a release contains it. All workers apply it from their next response on."""
    item_changes = _require_item_changes(state)
    release = state.choose_release(RequestedRelease())
    _validate_length(item_id)
    columns = _columns(release, change)
    vectors, sources = _embeddings(state, release.release, item_id, change)
    stored = ItemChange(
        item_id,
        time.time(),
        columns=columns,
        features=change.features if "features" in sources.values() else None,
        vectors=vectors,
        release_id=release.release_id if vectors else None,
    )
    await run_in_threadpool(item_changes.write, stored)
    state.metrics.count_change("put")
    spaces = {sense: release.release.space_name(sense) for sense in SENSES}
    embedding_source = {sense: sources[space] for sense, space in spaces.items() if space in sources}
    return ItemChangeResponse(item_id=item_id, release_id=release.release_id, embedding_source=embedding_source)


@router.delete(
    f"/v1/items/{{item_id:{ENCODED}}}",
    status_code=HTTPStatus.NO_CONTENT,
    response_class=Response,
    summary="Hide an item",
)
async def hide_item(state: WorkerState, item_id: ItemId) -> None:
    """Hide an item, known or unknown, until it is added again. All workers apply it from their next response on."""
    if state.releases.champion.release.catalog.find_item_number(item_id) is None:
        _validate_length(item_id)
    await run_in_threadpool(_require_item_changes(state).write, ItemChange(item_id, time.time(), hidden=True))
    state.metrics.count_change("hide")


def _validate_length(item_id: str) -> None:
    if len(item_id) > MAX_ID_LENGTH:
        raise InputError(f"item_id must have at most {MAX_ID_LENGTH} characters. Received: {len(item_id)}.")


def _require_item_changes(state: State) -> ItemChanges:
    if state.item_changes is None:
        raise RejectedRequest(
            HTTPStatus.FORBIDDEN,
            "forbidden",
            "changes require a folder to store them in. Start the service with a config file.",
        )
    return state.item_changes


def _columns(release: LiveRelease, change: ItemChangeRequest) -> dict[str, Any]:
    """Return the catalog columns of a change.

    Raises:
        InputError: the catalog does not have a column, or has another type for it.
    """
    schema = release.release.catalog.frame.schema
    feature_columns = release.release.space("similar").engine.features
    columns = {
        column: _validate_value(column, value, schema, feature_columns) for column, value in change.features.items()
    }
    fields = {"title": change.title, AVAILABLE: change.available}
    return columns | {column: value for column, value in fields.items() if column in change.model_fields_set}


def _validate_value(column: str, value: Any, schema: pl.Schema, feature_columns: list[str]) -> Any:
    if column not in feature_columns:
        raise InputError(
            f"features must be of the columns {', '.join(feature_columns) or 'none'}. Received: {column!r}."
        )
    dtype = schema[column]
    if value is None:
        return None
    if dtype.is_numeric():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        is_valid, rule = is_number and is_finite(value), "a number"
    elif isinstance(dtype, pl.List):
        is_list = isinstance(value, list)
        is_valid, rule = is_list and all(isinstance(element, str) for element in value), "a list of strings"
    else:
        is_valid, rule = isinstance(value, str), "a string"
    if not is_valid:
        raise InputError(f"features.{column} must be {rule}. Received: {str(value)[:200]!r}.")
    return value


def _embeddings(
    state: State, release: Release, item_id: str, change: ItemChangeRequest
) -> tuple[dict[Sense, NDArray[np.float32]], dict[Sense, EmbeddingSource]]:
    """Return the embedding of a changed item in each space, unless it is that of the release, and its source.

    A new item without a source in a space is not in that space.
    """
    vectors: dict[Sense, NDArray[np.float32]] = {}
    sources: dict[Sense, EmbeddingSource] = {}
    in_catalog = release.catalog.find_item_number(item_id) is not None
    for name, (field, values) in _vector_fields(release, change).items():
        space = release.space(name)
        if values is not None:
            vector = validate_vector(field, np.array(values, np.float64), space.vectors.shape[1], space.distance)
            vectors[name], sources[name] = vector.astype(np.float32), "vector"
        elif in_catalog:
            sources[name] = "release"
        elif state.embed is not None:
            vectors[name], sources[name] = state.embed(space, change.features), "features"
    if not sources:
        raise InputError(
            f"a new item must have a vector, unless the service has the tower. Received: {item_id!r} without a vector. "
            "Start the service with recsys serve --with-tower, or send the vector of the item."
        )
    return vectors, sources


def _vector_fields(release: Release, change: ItemChangeRequest) -> dict[Sense, tuple[str, Vector]]:
    """Return the field of a change with the embedding in each space of a release, and its value.

    Raises:
        InputError: the change has the embedding in a space that the release does not have.
    """
    if "similar" in release.spaces:
        return {"similar": ("vector", change.vector), "next": ("next_vector", change.next_vector)}
    if change.next_vector is not None:
        raise InputError(
            f"next_vector requires a release with two embedding spaces. Received: next_vector, but the champion "
            f"{release.release_id} has one for both senses. Send vector alone."
        )
    return {"next": ("vector", change.vector)}
