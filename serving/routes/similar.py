"""Routes that search and read.

GET  /v1/items/{item_id}/similar     neighbors of an item
GET  /v1/items/{item_id}             details of an item
POST /v1/similar                     neighbors of a query
POST /v1/similar/batch               neighbors of several queries
GET  /v1/release                     the champion release
"""

import asyncio
from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from recsys import Release
from recsys.config.senses import Sense
from recsys.errors import InputError, RecsysError
from recsys.retrieval.query import Query
from serving.live.live_release import Embed, LiveRelease
from serving.live.response_cache import CACHEABLE, chosen_release
from serving.live.state import ReleaseNotLoadedError, State
from serving.protocol import headers
from serving.protocol.encoded_path import ENCODED
from serving.protocol.pagination import apply_cursor, next_cursor
from serving.protocol.problem import PROBLEM_CONTENT
from serving.protocol.requests import BatchRequest, RequestedRelease, SearchRequest, SimilarParameters
from serving.protocol.responses import BatchResponse, ItemResponse, ReleaseResponse, SearchResponse
from serving.protocol.strict_json import StrictJSONRoute
from serving.routes.dependencies import IfNoneMatch, ItemId, Requested, WorkerState, openapi_parameters
from serving.routes.direct import DirectRoute
from serving.routes.error_handlers import problem_of

router = APIRouter(route_class=StrictJSONRoute, tags=["search"])

Responses = dict[int | str, dict[str, Any]]
MAX_BATCH_SIZE = 100
"""Maximum number of queries in a batch request. More would delay the other requests of the worker."""
RELEASE_NAME = headers.encode(headers.RELEASE)
RELEASE_HEADER = {headers.RELEASE: {"description": "The release of the response.", "schema": {"type": "string"}}}
ETAG_HEADERS = {
    "ETag": {"description": "Changes if the response changes.", "schema": {"type": "string"}},
    **RELEASE_HEADER,
}
OK: Responses = {200: {"description": "The result.", "headers": RELEASE_HEADER}}
OK_WITH_ETAG: Responses = {200: {"description": "The result.", "headers": ETAG_HEADERS}}
NOT_MODIFIED: Responses = {304: {"description": "Not modified.", "headers": ETAG_HEADERS}}
NOT_FOUND: Responses = {
    404: {"description": "The item is unknown, or the release is not loaded.", "content": PROBLEM_CONTENT}
}
GONE: Responses = {410: {"description": "The release of the cursor is no longer loaded.", "content": PROBLEM_CONTENT}}
INVALID: Responses = {422: {"description": "The request is not valid.", "content": PROBLEM_CONTENT}}


async def similar(request: Request) -> Response:
    """Return the items most similar to an item, nearest first; fewer than `k` only if no others satisfy the query."""
    state: State = request.app.state.recsys
    query, cursor = state.similar_queries.query(request.path_params["item_id"], request.scope["query_string"])
    release = chosen_release(request.scope, state)
    body = _search(state, release, _at_cursor(query, cursor, state))
    request.scope[CACHEABLE] = not (body["unknown_item_ids"] or body["fallback"])  # counted every time
    return JsonResponse(body, release)


router.add_api_route(
    f"/v1/items/{{item_id:{ENCODED}}}/similar",
    similar,
    response_model=SearchResponse,
    responses={**OK_WITH_ETAG, **NOT_MODIFIED, **NOT_FOUND, **GONE, **INVALID},
    openapi_extra={"parameters": openapi_parameters(SimilarParameters)},
    route_class_override=DirectRoute,
    summary="Similar items",
)


@router.get(
    f"/v1/items/{{item_id:{ENCODED}}}",
    response_model=ItemResponse,
    responses={**OK_WITH_ETAG, **NOT_MODIFIED, **NOT_FOUND, **GONE, **INVALID},
    summary="Item details",
)
async def item(request: Request, state: WorkerState, item_id: ItemId, _: Requested, __: IfNoneMatch = None) -> Response:
    """Return the catalog columns of an item."""
    release = chosen_release(request.scope, state)
    return JsonResponse(ItemResponse.from_details(release.item_details(item_id)), release)


@router.post(
    "/v1/similar",
    response_model=SearchResponse,
    responses={**OK, **NOT_FOUND, **GONE, **INVALID},
    summary="Search by a query",
)
async def search(state: WorkerState, body: SearchRequest, requested: Requested) -> Response:
    """Return the nearest items of a query; fewer than `k` only if no others satisfy the query."""
    release = state.choose_release(requested._replace(cursor=body.cursor))
    return JsonResponse(_search(state, release, _query(state, body, release)), release)


@router.post(
    "/v1/similar/batch",
    response_model=BatchResponse,
    responses={**NOT_FOUND, **INVALID},
    summary="Search by several queries",
)
async def search_batch(request: Request, state: WorkerState, body: BatchRequest, requested: Requested) -> Response:
    """Return the result of each query as if it were sent alone; an invalid query does not affect the others."""
    if len(body.queries) > MAX_BATCH_SIZE:
        raise InputError(
            f"queries must have at most {MAX_BATCH_SIZE} elements. Received: {len(body.queries)}. "
            "Send several requests."
        )
    release = state.choose_release(requested)  # one release for all queries, even if another is promoted
    results = []
    for query in body.queries:
        await asyncio.sleep(0)  # let other requests run, and apply the time limit of this one
        results.append(_batch_entry(request, state, query, release, requested))
    return Response(to_json({"results": results}), media_type="application/json")


@router.get("/v1/release", summary="The champion release")
async def champion(state: WorkerState) -> ReleaseResponse:
    """Return the champion release."""
    manifest = state.releases.champion.release.manifest
    return ReleaseResponse.model_validate(manifest.model_dump(include=set(ReleaseResponse.model_fields)))


def _batch_entry(
    request: Request, state: State, query: Any, release: LiveRelease, requested: RequestedRelease
) -> dict[str, Any]:
    """Return an entry of `BatchResponse`."""
    try:
        body = SearchRequest.model_validate(query)
        if body.cursor is not None:
            release = state.choose_release(requested._replace(cursor=body.cursor))
        result = _search(state, release, _query(state, body, release))
    except (RecsysError, ValidationError, ReleaseNotLoadedError) as error:
        problem = problem_of(request.scope, error)
        return {"status": problem.status, "result": None, "problem": problem}
    return {"status": HTTPStatus.OK, "result": result, "problem": None}


def _query(state: State, body: SearchRequest, release: LiveRelease) -> Query:
    embed = None if state.embed is None else partial(_embed, state.embed, release.release)
    return _at_cursor(body.to_query(state.config, embed), body.cursor, state)


def _embed(embed: Embed, release: Release, sense: Sense, features: Mapping[str, Any]) -> NDArray[np.float32]:
    return embed(release.space(sense), features)


def _at_cursor(query: Query, cursor: str | None, state: State) -> Query:
    return query if cursor is None else apply_cursor(query, cursor, state.config.max_k)


def _search(state: State, release: LiveRelease, query: Query) -> dict[str, Any]:
    """Return the fields of `SearchResponse`."""
    result = state.search(release, query)
    cursor = next_cursor(release.release_id, query, state.config.max_k) if result.has_more else None
    return {**result.to_dict(), "next_cursor": cursor}


class JsonResponse(Response):
    """A response that names its release. Its headers are not copied and searched, as those of other responses are."""

    def __init__(self, body: BaseModel | dict[str, Any], release: LiveRelease) -> None:
        self.status_code = 200
        self.background = None
        self.body = to_json(body)
        self.raw_headers = [
            (RELEASE_NAME, release.release_id.encode("latin-1")),
            (b"content-length", b"%d" % len(self.body)),
            (b"content-type", b"application/json"),
        ]
