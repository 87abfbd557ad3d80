"""Errors as problem details (RFC 9457), with the HTTP status of each exception of the library."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, get_args

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.types import Scope

from recsys import errors
from serving.live.state import ReleaseExpiredError, ReleaseNotLoadedError
from serving.protocol.problem import create_problem, problem_response
from serving.protocol.responses import Problem

TABLE: dict[type[errors.RecsysError], tuple[HTTPStatus, str]] = {
    errors.UnknownItemError: (HTTPStatus.NOT_FOUND, "unknown-item"),
    errors.InputError: (HTTPStatus.UNPROCESSABLE_ENTITY, "invalid-request"),
    errors.ConfigError: (HTTPStatus.INTERNAL_SERVER_ERROR, "misconfigured"),
    errors.StageError: (HTTPStatus.INTERNAL_SERVER_ERROR, "internal-error"),
    errors.ReleaseError: (HTTPStatus.SERVICE_UNAVAILABLE, "release-unusable"),
    errors.TrackingError: (HTTPStatus.SERVICE_UNAVAILABLE, "registry-unreachable"),
    errors.RejectedError: (HTTPStatus.CONFLICT, "gate-failed"),
    errors.RecsysError: (HTTPStatus.INTERNAL_SERVER_ERROR, "internal-error"),
}
"""Exception -> HTTP status and kind of problem. A test verifies that it contains every exception of the library."""

MAX_VALUE_LENGTH = 200
"""Maximum number of characters of an invalid value in a message."""


ExpectedError = errors.RecsysError | ReleaseNotLoadedError | RequestValidationError
"""Errors of a request; any other is an error of the service."""
EXPECTED_ERRORS: tuple[type[ExpectedError], ...] = get_args(ExpectedError)


def problem_of(scope: Scope, error: ExpectedError | ValidationError) -> Problem:
    """Return the problem details of an error."""
    if isinstance(error, ReleaseNotLoadedError):
        status = HTTPStatus.GONE if isinstance(error, ReleaseExpiredError) else HTTPStatus.NOT_FOUND
        return create_problem(scope, status, "release-not-loaded", str(error))
    if isinstance(error, ValidationError):
        return _invalid(scope, [(dict(details), details["loc"]) for details in error.errors()])
    if isinstance(error, RequestValidationError):
        # the first element of a location is "body", "query" or "path"
        return _invalid(scope, [(details, details["loc"][1:]) for details in error.errors()])
    status, kind = next(TABLE[parent] for parent in type(error).__mro__ if parent in TABLE)
    detail = str(error) if status < HTTPStatus.INTERNAL_SERVER_ERROR else status.description
    return create_problem(scope, status, kind, detail)


def register(app: FastAPI) -> None:
    """Register handlers for all expected errors; `MetricsMiddleware` responds to unexpected ones."""

    async def handle_expected_error(request: Request, error: ExpectedError) -> JSONResponse:
        return problem_response(problem_of(request.scope, error))

    for kind in EXPECTED_ERRORS:
        app.add_exception_handler(kind, handle_expected_error)  # type: ignore[arg-type] # each is called with its kind

    @app.exception_handler(HTTPException)
    async def handle_http_error(request: Request, error: HTTPException) -> JSONResponse:
        kind = HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
        return problem_response(
            create_problem(request.scope, error.status_code, kind, str(error.detail)), error.headers
        )


def _invalid(scope: Scope, located: list[tuple[dict[str, Any], tuple[int | str, ...]]]) -> Problem:
    detail = "; ".join(_message(error, location) for error, location in located)
    return create_problem(scope, HTTPStatus.UNPROCESSABLE_ENTITY, "invalid-request", detail)


def _message(error: dict[str, Any], location: tuple[int | str, ...]) -> str:
    """Return the message for one error of pydantic."""
    if error["type"] == "json_invalid":
        return f"the body must be JSON: {error['ctx']['error']}. Received: another text"
    name = ".".join(map(str, location)) or "the body"
    if error["type"] == "extra_forbidden":
        return f"{name} is not a known field. Received: {_shorten(error['input'])}. See /docs for the known fields"
    if error["type"] in ("model_type", "model_attributes_type"):
        if isinstance(error["input"], bytes):
            return "the body must have the header Content-Type: application/json. Received: another type"
        return f"{name} must be an object. Received: {_shorten(error['input'])}"
    if error["type"] == "missing":
        return f"{name} is required. Received: nothing"
    return f"{name}: {error['msg']}. Received: {_shorten(error['input'])}"


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_VALUE_LENGTH else f"{text[:MAX_VALUE_LENGTH]}…"
