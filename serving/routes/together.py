"""Routes that return the items that users interact with after an item.

GET  /v1/items/{item_id}/together    items after an item
POST /v1/together                    the same with all filters
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from serving.live.response_cache import CACHEABLE, chosen_release
from serving.protocol.encoded_path import ENCODED
from serving.protocol.strict_json import StrictJSONRoute
from serving.protocol.together import TogetherParameters, TogetherRequest, TogetherResponse
from serving.routes.dependencies import IfNoneMatch, ItemId, Requested, WorkerState
from serving.routes.similar import INVALID, NOT_FOUND, NOT_MODIFIED, OK, OK_WITH_ETAG, JsonResponse

router = APIRouter(route_class=StrictJSONRoute, tags=["search"])


@router.get(
    f"/v1/items/{{item_id:{ENCODED}}}/together",
    response_model=TogetherResponse,
    responses={**OK_WITH_ETAG, **NOT_MODIFIED, **NOT_FOUND, **INVALID},
    summary="Items used together with an item",
)
async def together(
    request: Request,
    state: WorkerState,
    item_id: ItemId,
    parameters: Annotated[TogetherParameters, Query()],
    _: Requested,
    __: IfNoneMatch = None,
) -> Response:
    """Return the items that users interact with after an item, highest score first."""
    release = chosen_release(request.scope, state)
    body = state.search_together(release, parameters.to_query(item_id, state.config)).to_dict()
    request.scope[CACHEABLE] = not (body["unknown_item_ids"] or body["fallback"])  # counted every time
    return JsonResponse(body, release)


@router.post(
    "/v1/together",
    response_model=TogetherResponse,
    responses={**OK, **NOT_FOUND, **INVALID},
    summary="Items used together with an item, by a query",
)
async def search_together(state: WorkerState, body: TogetherRequest, requested: Requested) -> Response:
    """Return the items that users interact with after an item and that satisfy all conditions."""
    release = state.choose_release(requested)
    return JsonResponse(state.search_together(release, body.to_query(state.config)).to_dict(), release)
