"""What may be changed between two nights.

PUT    /v1/items/{item_id}   a new item, or another place, title, availability or features of one
DELETE /v1/items/{item_id}   take an item down
"""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import Annotated, Any, Literal

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
from serving.live.item_changes import Entry, Journal
from serving.live.live_release import Edition
from serving.live.state import State
from serving.middleware.access import RefusedRequest
from serving.protocol.encoded_path import ENCODED
from serving.protocol.problem import CONTENT
from serving.protocol.responses import ChangedBody, ProblemBody
from serving.protocol.strict_json import BodyRoute
from serving.routes.dependencies import ItemId, Serving

LONGEST_ID = 1_024
"""Characters of the id of a new item."""

router = APIRouter(route_class=BodyRoute)


class ItemChange(BaseModel):
    """All that differs of an item from what the release says; what an earlier change said holds no more."""

    model_config = ConfigDict(extra="forbid", strict=True)

    title: str | None = Field(None, description="Shown to people. Left out: as the release has it.")
    available: bool | None = Field(None, description="Whether it can be had. Left out: as the release has it.")
    features: dict[str, Any] = Field(
        default_factory=dict,
        description="Column -> value. They are filtered by, and give a new item without a vector its place.",
    )
    vector: list[Annotated[float, Field(allow_inf_nan=False)]] | None = Field(
        None, description="The place of the item among the embeddings of the release; of no other release."
    )


@router.put(
    f"/v1/items/{{item_id:{ENCODED}}}",
    responses={422: {"description": "The change is not valid.", "model": ProblemBody, "content": CONTENT}},
)
async def put(serving: Serving, item_id: ItemId, change: ItemChange) -> ChangedBody:
    """Say what differs of an item until a release contains it. The next answer of every worker knows it."""
    journal = _journal(serving)
    edition = serving.take() or serving.shelf.champion
    _require_short(item_id)
    row = _row(edition, change)
    vector, place = _place(serving, edition, item_id, change)
    entry = Entry(
        item_id,
        time.time(),
        row=row,
        features=change.features if place == "features" else None,
        vector=vector,
        release_id=None if vector is None else edition.release_id,
    )
    await run_in_threadpool(journal.write, entry)
    serving.telemetry.changed("put")
    return ChangedBody(item_id=item_id, release_id=edition.release_id, place=place)


@router.delete(f"/v1/items/{{item_id:{ENCODED}}}", status_code=HTTPStatus.NO_CONTENT, response_class=Response)
async def take_down(serving: Serving, item_id: ItemId) -> None:
    """Take an item down, known or not, until it is put back. The next answer of every worker knows it."""
    if serving.shelf.champion.release.catalog.find_item_number(item_id) is None:
        _require_short(item_id)
    await run_in_threadpool(_journal(serving).write, Entry(item_id, time.time(), hidden=True))
    serving.telemetry.changed("take_down")


def _require_short(item_id: str) -> None:
    if len(item_id) > LONGEST_ID:
        raise InputError(f"item_id must have at most {LONGEST_ID} characters. Received: {len(item_id)}.")


def _journal(serving: State) -> Journal:
    if serving.journal is None:
        raise RefusedRequest(
            HTTPStatus.FORBIDDEN, "forbidden", "changes need a folder to be kept in. Start the service with a config."
        )
    return serving.journal


def _row(edition: Edition, change: ItemChange) -> dict[str, Any]:
    """The columns of a change.

    Raises:
        InputError: a column that the catalog does not have, or a value of another type.
    """
    schema = edition.release.catalog.frame.schema
    columns = edition.release.engine.features
    row = {column: _value(column, value, schema, columns) for column, value in change.features.items()}
    given = {"title": change.title, AVAILABLE: change.available}
    return row | {column: value for column, value in given.items() if column in change.model_fields_set}


def _value(column: str, value: Any, schema: pl.Schema, columns: list[str]) -> Any:
    if column not in columns:
        raise InputError(f"features must be of the columns {', '.join(columns) or 'none'}. Received: {column!r}.")
    kind = schema[column]
    if value is None:
        return None
    if kind.is_numeric():
        sound, rule = isinstance(value, int | float) and not isinstance(value, bool) and is_finite(value), "a number"
    elif isinstance(kind, pl.List):
        sound, rule = isinstance(value, list) and all(isinstance(term, str) for term in value), "a list of texts"
    else:
        sound, rule = isinstance(value, str), "a text"
    if not sound:
        raise InputError(f"features.{column} must be {rule}. Received: {str(value)[:200]!r}.")
    return value


def _place(
    serving: State, edition: Edition, item_id: str, change: ItemChange
) -> tuple[NDArray[np.float32] | None, Literal["release", "vector", "features"]]:
    release = edition.release
    if change.vector is not None:
        given = np.array(change.vector, np.float64)
        return validate_vector("vector", given, release.vectors.shape[1], release.distance).astype(np.float32), "vector"
    if release.catalog.find_item_number(item_id) is not None:
        return None, "release"
    if serving.embed is None:
        raise InputError(
            f"a new item must have a vector, unless the server has the tower. Received: {item_id!r} without, by a "
            "server without. Start it by recsys serve --with-tower, or send the item's vector."
        )
    return serving.embed(release, change.features), "features"
