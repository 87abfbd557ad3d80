"""Access control: API keys and rate limits, and limits on concurrency, body size and duration of requests.

Probes and metrics are always accepted, also by a busy server.
"""

from __future__ import annotations

import math
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recsys.config.sections import ServeConfig
from serving.middleware.api_keys import ApiKeys
from serving.middleware.metrics import Metrics
from serving.middleware.rate_limit import RateLimiter
from serving.middleware.time_limit import TimeLimit
from serving.protocol import headers
from serving.protocol.problem import create_problem, problem_response

PROTECTED_PREFIX = "/v1/"
"""Paths below this prefix search or change items. All others describe the service and are always accepted."""
WRITE_METHODS = {"PUT", "DELETE", "PATCH"}
BEARER = "bearer "
RETRY_AFTER_S = 1
MAX_BODY_BYTES = 1_048_576
"""Maximum size of a request body: enough for lists of `MAX_LIST_LENGTH` ids."""


class RejectedRequest(Exception):  # noqa: N818 - an outcome rather than an error
    """A request that is rejected before or by a route; becomes a problem response."""

    def __init__(self, status: HTTPStatus, kind: str, detail: str, **headers: str) -> None:
        super().__init__(detail)
        self.status, self.kind, self.detail = status, kind, detail
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class AccessControlMiddleware:
    """ASGI middleware that accepts or rejects requests.

    Args:
        app: the application.
        config: the limits.
        keys: the valid API keys.
        metrics: counts rejected requests.
        rate_limiter: None for no rate limit.
    """

    def __init__(
        self, app: ASGIApp, config: ServeConfig, keys: ApiKeys, metrics: Metrics, rate_limiter: RateLimiter | None
    ) -> None:
        self.app = app
        self._config = config
        self._keys = keys
        self._metrics = metrics
        self._rate_limiter = rate_limiter
        self._num_active = 0
        self._time_limit = TimeLimit(config.timeout_seconds)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or respond with a problem."""
        if scope["type"] != "http" or not scope["path"].startswith(PROTECTED_PREFIX):
            await self.app(scope, receive, send)
            return
        self._num_active += 1
        try:
            await self._handle(scope, receive, send)
        except RejectedRequest as rejected:
            self._metrics.count_rejected(rejected.kind)
            problem = create_problem(scope, rejected.status, rejected.kind, rejected.detail)
            await problem_response(problem, rejected.headers)(scope, receive, send)
        finally:
            self._num_active -= 1

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._num_active > self._config.max_concurrent:
            raise RejectedRequest(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "busy",
                f"a worker accepts at most {self._config.max_concurrent} concurrent requests. Retry later.",
                Retry_After=str(RETRY_AFTER_S),
            )
        self._authorize(scope)
        started = False

        async def send_and_note_start(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            with self._time_limit:
                receive = await self._receive_body(scope, receive)
                await self.app(scope, receive, send_and_note_start)
        except TimeoutError:
            if started:
                raise
            raise RejectedRequest(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "timeout",
                f"a request may take at most {self._config.timeout_seconds:g} seconds. It was canceled. Retry later.",
                Retry_After=str(RETRY_AFTER_S),
            ) from None

    def _authorize(self, scope: Scope) -> None:
        """Check the API key of a request, its permission and its rate limit."""
        is_write = scope["method"] in WRITE_METHODS
        if not (is_write or self._keys.required):
            return
        if not self._keys.required:
            raise RejectedRequest(
                HTTPStatus.FORBIDDEN,
                "forbidden",
                "changes require an API key with write permission, and the service has no API keys. "
                "Create one: recsys keys new NAME --write",
            )
        header = headers.received(scope).get(b"authorization", b"").decode("latin-1")
        key = self._keys.find(header[len(BEARER) :]) if header.lower().startswith(BEARER) else None
        if key is None:
            raise RejectedRequest(
                HTTPStatus.UNAUTHORIZED,
                "unauthorized",
                "a request must have the header Authorization: Bearer KEY with a valid API key.",
                WWW_Authenticate="Bearer",
            )
        scope["recsys.api_key"] = key.name
        if is_write and key.permission != "write":
            raise RejectedRequest(
                HTTPStatus.FORBIDDEN,
                "forbidden",
                "this API key has read permission only. Create one that may write: recsys keys new NAME --write",
            )
        wait_s = 0.0 if self._rate_limiter is None else self._rate_limiter.acquire(key.name)
        if wait_s:
            raise RejectedRequest(
                HTTPStatus.TOO_MANY_REQUESTS,
                "rate-limited",
                f"an API key may send {self._config.rate:g} requests per second. Retry later.",
                Retry_After=str(math.ceil(wait_s)),
            )

    async def _receive_body(self, scope: Scope, receive: Receive) -> Receive:
        """Read the whole body, and return a channel that delivers it again before all other messages."""
        received = headers.received(scope)
        length = received.get(b"content-length", b"0")
        if length == b"0" and b"transfer-encoding" not in received:
            return receive
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return _prepend(message, receive)
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if max(len(body), int(length)) > MAX_BODY_BYTES:
                raise RejectedRequest(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too-large", f"a body may have at most {MAX_BODY_BYTES} bytes."
                )
        return _prepend({"type": "http.request", "body": body, "more_body": False}, receive)


def _prepend(message: Message, receive: Receive) -> Receive:
    """Return a channel that delivers one message, and then those of another channel."""
    messages = [message]

    async def receive_next() -> Message:
        return messages.pop() if messages else await receive()

    return receive_next
