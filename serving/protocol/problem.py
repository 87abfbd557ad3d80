"""A problem as it is told (RFC 9457), by the application or before it."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Scope

from serving.protocol.responses import ProblemBody

MEDIA_TYPE = "application/problem+json"
CONTENT: dict[str, Any] = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemBody"}}}
"""For the OpenAPI; one route at least has to name the model, so that it is among the schemas."""


def problem(scope: Scope, status: int, kind: str, detail: str) -> ProblemBody:
    """What went wrong with the request of a scope."""
    return ProblemBody(
        type=f"urn:recsys:{kind}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        instance=scope["raw_path"].decode("ascii"),
    )


def response(told: ProblemBody, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """A problem as an answer of its status."""
    return JSONResponse(told.model_dump(), told.status, headers, media_type=MEDIA_TYPE)
