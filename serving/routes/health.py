"""Probes and metrics.

GET /livez     liveness, for the process manager
GET /readyz    readiness, for the load balancer
GET /metrics   metrics for Prometheus
"""

from http import HTTPStatus

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from serving.protocol.responses import StatusResponse
from serving.routes.dependencies import WorkerState

router = APIRouter(tags=["health"])


@router.get("/livez", summary="Liveness")
async def live() -> StatusResponse:
    """Respond with 200 if the process runs."""
    return StatusResponse(status="alive")


@router.get(
    "/readyz", summary="Readiness", responses={503: {"description": "No release is loaded.", "model": StatusResponse}}
)
async def ready(state: WorkerState, response: Response) -> StatusResponse:
    """Respond with 200 if a verified release is loaded.

    `errors` does not affect the status: the service continues to answer from the loaded releases.
    """
    roles = state.releases.roles
    if roles.champion is None:
        response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
        return StatusResponse(status="starting", errors=state.errors)
    loaded = [release.release_id for release in roles.releases]
    return StatusResponse(status="ready", release_id=roles.champion.release_id, loaded=loaded, errors=state.errors)


@router.get("/metrics", summary="Metrics", response_class=Response)
async def metrics(state: WorkerState) -> Response:
    """Return the metrics of all workers in the text format of Prometheus."""
    roles = state.releases.roles
    for role, release in (("champion", roles.champion), ("challenger", roles.challenger)):
        if release is not None:
            state.metrics.set_release(role, len(release.release.catalog), release.created_at)
    if state.item_changes is not None:
        state.metrics.set_item_changes(len(state.item_changes), state.item_changes.num_bytes)
    return Response(state.metrics.render(), media_type=CONTENT_TYPE_LATEST)
