"""Errors -> problem+json (RFC 9457): one table from the library's exceptions to HTTP, and no traceback."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from recsys import errors
from serving.protocol.problem import problem, response
from serving.protocol.responses import ProblemBody

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

SHOWN = 200
"""Characters of a wrong value that are told back."""


class NotLoadedError(Exception):
    """A release was named that this server does not hold."""

    def __init__(self, status: HTTPStatus, detail: str) -> None:
        super().__init__(detail)
        self.status = status


def body(request: Request, error: errors.RecsysError | ValidationError | NotLoadedError) -> ProblemBody:
    """What is told of an error."""
    if isinstance(error, NotLoadedError):
        return problem(request.scope, error.status, "release-not-loaded", str(error))
    if isinstance(error, ValidationError):
        rules = "; ".join(_explain(dict(wrong), wrong["loc"]) for wrong in error.errors())
        return problem(request.scope, HTTPStatus.UNPROCESSABLE_ENTITY, "invalid-question", rules)
    status, kind = next(TABLE[parent] for parent in type(error).__mro__ if parent in TABLE)
    detail = str(error) if status < HTTPStatus.INTERNAL_SERVER_ERROR else status.description
    return problem(request.scope, status, kind, detail)


def register(app: FastAPI) -> None:
    """Answer every error that is foreseen with a problem; `serving.middleware.metrics.Measured` answers the others."""

    @app.exception_handler(errors.RecsysError)
    @app.exception_handler(NotLoadedError)
    async def ours(request: Request, error: errors.RecsysError | NotLoadedError) -> JSONResponse:
        return response(body(request, error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        # what comes first says only where it was: in the body, the query or the path
        rules = "; ".join(_explain(wrong, wrong["loc"][1:]) for wrong in error.errors())
        return response(problem(request.scope, HTTPStatus.UNPROCESSABLE_ENTITY, "invalid-question", rules))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        kind = HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
        return response(problem(request.scope, error.status_code, kind, str(error.detail)), error.headers)


def _explain(wrong: dict[str, Any], place: tuple[int | str, ...]) -> str:
    if wrong["type"] == "json_invalid":
        return f"the body must be JSON: {wrong['ctx']['error']}. Received: another text"
    name = ".".join(map(str, place)) or "the body"
    if wrong["type"] == "extra_forbidden":
        return f"{name} is not known. Received: {_shown(wrong['input'])}. /docs lists what is"
    if wrong["type"] in ("model_type", "model_attributes_type"):
        if isinstance(wrong["input"], bytes):
            return "the body must be JSON, by its header Content-Type: application/json. Received: another type"
        return f"{name} must be an object. Received: {_shown(wrong['input'])}"
    if wrong["type"] == "missing":
        return f"{name} must be there"
    return f"{name}: {wrong['msg']}. Received: {_shown(wrong['input'])}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
