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


class ItemChangeRequest(BaseModel):
    """All differences of an item from the release. A change replaces earlier changes of the item."""

    model_config = ConfigDict(extra="forbid", strict=True)

    title: str | None = Field(None, description="Title. If omitted, the title of the release.")
    available: bool | None = Field(None, description="Availability. If omitted, the availability of the release.")
    features: dict[str, Any] = Field(
        default_factory=dict,
        description="Catalog column -> value. Used by filters, and to embed a new item that has no vector.",
    )
    vector: list[Annotated[float, Field(allow_inf_nan=False)]] | None = Field(
        None, description="Embedding of the item, comparable with the embeddings of the champion release."
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
    vector, source = _embedding(state, release, item_id, change)
    stored = ItemChange(
        item_id,
        time.time(),
        columns=columns,
        features=change.features if source == "features" else None,
        vector=vector,
        release_id=None if vector is None else release.release_id,
    )
    await run_in_threadpool(item_changes.write, stored)
    state.metrics.count_change("put")
    return ItemChangeResponse(item_id=item_id, release_id=release.release_id, embedding_source=source)


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


def _embedding(
    state: State, release: LiveRelease, item_id: str, change: ItemChangeRequest
) -> tuple[NDArray[np.float32] | None, EmbeddingSource]:
    """Return the embedding of a changed item, or None to use the embedding of the release, and its source."""
    if change.vector is not None:
        space = release.release.space("similar")
        dimension, distance = space.vectors.shape[1], space.distance
        vector = validate_vector("vector", np.array(change.vector, np.float64), dimension, distance)
        return vector.astype(np.float32), "vector"
    if release.release.catalog.find_item_number(item_id) is not None:
        return None, "release"
    if state.embed is None:
        raise InputError(
            f"a new item must have a vector, unless the service has the tower. Received: {item_id!r} without a vector. "
            "Start the service with recsys serve --with-tower, or send the vector of the item."
        )
    return state.embed(release.release.space("similar"), change.features), "features"
