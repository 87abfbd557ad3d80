"""A problem that is told before, or instead of, the application's own answer."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import JSONResponse
from starlette.types import Scope

from serving.problems import MEDIA_TYPE
from serving.schemas import ProblemBody


def refusal(
    scope: Scope, status: HTTPStatus, kind: str, detail: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """A problem as a response."""
    body = ProblemBody(
        type=f"urn:recsys:{kind}",
        title=status.phrase,
        status=status,
        detail=detail,
        instance=scope["raw_path"].decode("ascii"),
    )
    return JSONResponse(body.model_dump(), status, headers, media_type=MEDIA_TYPE)
