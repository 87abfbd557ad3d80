"""Errors -> problem+json (RFC 9457): one table from the library's exceptions to HTTP, and no traceback."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from recsys import errors
from serving.schemas import ProblemBody

MEDIA_TYPE = "application/problem+json"

TABLE: dict[type[errors.RecsysError], tuple[HTTPStatus, str]] = {
    errors.UnknownItemError: (HTTPStatus.NOT_FOUND, "unknown-item"),
    errors.InputError: (HTTPStatus.UNPROCESSABLE_ENTITY, "invalid-question"),
    errors.ConfigError: (HTTPStatus.INTERNAL_SERVER_ERROR, "misconfigured"),
    errors.StageError: (HTTPStatus.INTERNAL_SERVER_ERROR, "internal-error"),
    errors.ReleaseError: (HTTPStatus.SERVICE_UNAVAILABLE, "release-unusable"),
    errors.TrackingError: (HTTPStatus.SERVICE_UNAVAILABLE, "registry-unreachable"),
    errors.RefusedError: (HTTPStatus.CONFLICT, "refused"),
    errors.RecsysError: (HTTPStatus.INTERNAL_SERVER_ERROR, "internal-error"),
}
"""A test holds it against the exception tree."""


def problem(request: Request, status: int, kind: str, detail: str) -> JSONResponse:
    """One problem as a response."""
    body = ProblemBody(
        type=f"urn:recsys:{kind}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        instance=request.scope["raw_path"].decode("ascii"),
    )
    return JSONResponse(body.model_dump(), status, media_type=MEDIA_TYPE)


def register(app: FastAPI) -> None:
    """Answer every error of the application with a problem."""

    @app.exception_handler(errors.RecsysError)
    def ours(request: Request, error: errors.RecsysError) -> JSONResponse:
        status, kind = next(TABLE[parent] for parent in type(error).__mro__ if parent in TABLE)
        detail = str(error) if status < HTTPStatus.INTERNAL_SERVER_ERROR else status.description
        return problem(request, status, kind, detail)

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        rules = "; ".join(_explain(wrong) for wrong in error.errors())
        return problem(request, HTTPStatus.UNPROCESSABLE_ENTITY, "invalid-question", rules)

    @app.exception_handler(HTTPException)
    def http(request: Request, error: HTTPException) -> JSONResponse:
        kind = HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
        response = problem(request, error.status_code, kind, str(error.detail))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    def unforeseen(request: Request, _: Exception) -> JSONResponse:
        status = HTTPStatus.INTERNAL_SERVER_ERROR
        return problem(request, status, "internal-error", status.description)


def _explain(wrong: dict[str, Any]) -> str:
    name = wrong["loc"][-1]
    return f"{name}: {wrong['msg']}. Received: {wrong['input']!r}"
