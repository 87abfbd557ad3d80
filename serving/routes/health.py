"""Whether the service lives, whether it is ready, and its figures.

GET /livez     for whoever restarts this process
GET /readyz    for whoever routes to it
GET /metrics   Prometheus
"""

from http import HTTPStatus

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from serving.protocol.responses import StatusBody
from serving.routes.dependencies import Serving

router = APIRouter()


@router.get("/livez")
async def live() -> StatusBody:
    """The process answers."""
    return StatusBody(status="alive")


@router.get("/readyz", responses={503: {"description": "No release is loaded.", "model": StatusBody}})
async def ready(serving: Serving, response: Response) -> StatusBody:
    """A verified release is loaded. What is wrong nevertheless is told: an old release is better than none."""
    champion = serving.shelf.standing.champion
    if champion is None:
        response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
        return StatusBody(status="starting", troubles=serving.troubles)
    loaded = [edition.release_id for edition in serving.shelf.standing.editions]
    return StatusBody(status="ready", release_id=champion.release_id, loaded=loaded, troubles=serving.troubles)


@router.get("/metrics", response_class=Response)
async def metrics(serving: Serving) -> Response:
    """Prometheus's text format, over all workers."""
    standing, telemetry = serving.shelf.standing, serving.telemetry
    for role, edition in (("champion", standing.champion), ("challenger", standing.challenger)):
        if edition is not None:
            telemetry.serving(role, len(edition.release.catalog), edition.created)
    if serving.journal is not None:
        telemetry.journal(len(serving.journal), serving.journal.size)
    return Response(telemetry.exposition(), media_type=CONTENT_TYPE_LATEST)
