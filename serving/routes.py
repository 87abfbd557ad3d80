"""What can be asked over HTTP.

GET /v1/items/{item_id}/similar?k=   the neighbours of an item
GET /v1/release                      the release in service
GET /livez, /readyz                  for whoever restarts, or routes to, this process
GET /metrics                         Prometheus
"""

from typing import Annotated, cast

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from recsys.errors import InputError
from serving.paths import ENCODED
from serving.problems import MEDIA_TYPE
from serving.schemas import AnswerBody, NeighbourBody, ProblemBody, ReleaseBody, StatusBody
from serving.state import State

DEFAULT_K = 10

router = APIRouter()


def _state(request: Request) -> State:
    return cast("State", request.app.state.recsys)


Serving = Annotated[State, Depends(_state)]
PROBLEM = {"content": {MEDIA_TYPE: {"schema": ProblemBody.model_json_schema()}}}
PROBLEMS: dict[int | str, dict[str, object]] = {
    404: {"description": "The catalogue does not hold the item.", **PROBLEM},
    422: {"description": "The question is not valid.", **PROBLEM},
}


@router.get(f"/v1/items/{{item_id:{ENCODED}}}/similar", responses=PROBLEMS)
async def similar(
    serving: Serving,
    item_id: Annotated[str, Path(description="Any item id, URL-encoded.")],
    k: Annotated[int, Query(ge=1, description="How many neighbours.")] = DEFAULT_K,
) -> AnswerBody:
    """The items most like one item, nearest first; fewer than `k` only where there are no more."""
    if k > serving.config.max_k:
        raise InputError(f"k must be at most {serving.config.max_k}. Received: {k}.")
    answer = serving.release.similar(item_id, k)
    neighbours = [NeighbourBody.model_construct(**neighbour._asdict()) for neighbour in answer.neighbours]
    return AnswerBody.model_construct(
        release_id=answer.release_id, item_id=answer.item_id, title=answer.title, neighbours=neighbours
    )


@router.get("/v1/release")
async def release(serving: Serving) -> ReleaseBody:
    """The release in service."""
    return ReleaseBody(**serving.release.manifest.model_dump(include=set(ReleaseBody.model_fields)))


@router.get("/livez")
async def live() -> StatusBody:
    """The process answers."""
    return StatusBody(status="alive")


@router.get("/readyz")
async def ready(serving: Serving) -> StatusBody:
    """A verified release is loaded."""
    return StatusBody(status="ready", release_id=serving.release.release_id)


@router.get("/metrics", response_class=Response)
async def metrics(serving: Serving) -> Response:
    """Prometheus's text format."""
    return Response(serving.telemetry.exposition(), media_type=CONTENT_TYPE_LATEST)
