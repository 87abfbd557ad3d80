"""Error responses as problem details (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Scope

from serving.protocol.responses import Problem

MEDIA_TYPE = "application/problem+json"
PROBLEM_CONTENT: dict[str, Any] = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
"""OpenAPI content of an error response. At least one route must name the model, so that its schema is included."""


def create_problem(scope: Scope, status: int, kind: str, detail: str) -> Problem:
    """Return the problem details of a request."""
    return Problem(
        type=f"urn:recsys:{kind}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        instance=scope["raw_path"].decode("ascii"),
    )


def problem_response(problem: Problem, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return the response for a problem."""
    return JSONResponse(problem.model_dump(), problem.status, headers, media_type=MEDIA_TYPE)
