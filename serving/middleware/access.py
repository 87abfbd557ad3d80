"""Who is let in, and how much of it: API keys, rates, concurrency, size and time of a request.

Probes and metrics are always let in: a server that is busy is alive.
"""

from __future__ import annotations

import asyncio
import math
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recsys.config.sections import ServeConfig
from serving.middleware.api_keys import Keys
from serving.middleware.metrics import Telemetry
from serving.middleware.rate_limit import Rates
from serving.protocol.problem import problem, response

GUARDED = "/v1/"
"""What begins so asks or changes; all else tells of the service, and depends on no release and no journal."""
WRITES = {"PUT", "DELETE", "PATCH"}
BEARER = "bearer "
BUSY_RETRY_S = 1


class RefusedRequest(Exception):  # noqa: N818 - told as it is
    """A request that is not let in."""

    def __init__(self, status: HTTPStatus, kind: str, detail: str, **headers: str) -> None:
        super().__init__(detail)
        self.status, self.kind, self.detail = status, kind, detail
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Guard:
    """ASGI middleware before the application.

    Args:
        app: what is guarded.
        config: the limits.
        keys: who is let in.
        telemetry: counts who is not.
        rates: how often; None without a limit.
    """

    def __init__(
        self, app: ASGIApp, config: ServeConfig, keys: Keys, telemetry: Telemetry, rates: Rates | None
    ) -> None:
        self.app = app
        self._config = config
        self._keys = keys
        self._telemetry = telemetry
        self._rates = rates
        self._inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http" or not scope["path"].startswith(GUARDED):
            await self.app(scope, receive, send)
            return
        self._inside += 1
        try:
            await self._let_in(scope, receive, send)
        except RefusedRequest as refused:
            self._telemetry.refused(refused.kind)
            told = problem(scope, refused.status, refused.kind, refused.detail)
            await response(told, refused.headers)(scope, receive, send)
        finally:
            self._inside -= 1

    async def _let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._inside > self._config.max_concurrent:
            raise RefusedRequest(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "busy",
                f"a worker answers at most {self._config.max_concurrent} requests at a time. Come back later.",
                Retry_After=str(BUSY_RETRY_S),
            )
        # answers take no turns: only here are all that came together counted, before the first of them is worked on
        await asyncio.sleep(0)
        self._admit(scope)
        begun = False

        async def observed(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            async with asyncio.timeout(self._config.timeout_s):
                receive = await self._whole_body(scope, receive)
                await self.app(scope, receive, observed)
        except TimeoutError:
            if begun:
                raise
            raise RefusedRequest(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "timeout",
                f"a request may take {self._config.timeout_s:g} seconds. It was given up.",
                Retry_After=str(BUSY_RETRY_S),
            ) from None

    def _admit(self, scope: Scope) -> None:
        """Check the key, what it may do, and how often."""
        writes = scope["method"] in WRITES
        if not (writes or self._keys.required):
            return
        if not self._keys.required:
            raise RefusedRequest(
                HTTPStatus.FORBIDDEN, "forbidden", "no API key is set that may write. Make one by: recsys keys new NAME"
            )
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"").decode("latin-1")
        key = self._keys.find(given[len(BEARER) :]) if given.lower().startswith(BEARER) else None
        if key is None:
            raise RefusedRequest(
                HTTPStatus.UNAUTHORIZED,
                "unauthorized",
                "a request must have the header Authorization: Bearer KEY, with a key that this server knows.",
                WWW_Authenticate="Bearer",
            )
        scope["recsys.key"] = key.name
        if writes and key.right != "write":
            raise RefusedRequest(HTTPStatus.FORBIDDEN, "forbidden", "this API key may ask, and not write.")
        wait_s = 0.0 if self._rates is None else self._rates.wait_s(key.name)
        if wait_s:
            raise RefusedRequest(
                HTTPStatus.TOO_MANY_REQUESTS,
                "rate",
                f"an API key has {self._config.rate:g} requests a second. Come back later.",
                Retry_After=str(math.ceil(wait_s)),
            )

    async def _whole_body(self, scope: Scope, receive: Receive) -> Receive:
        """Read the body; what comes after it is as before."""
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        if length == b"0" and b"transfer-encoding" not in headers:
            return receive
        limit = self._config.max_body_bytes
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return _first(message, receive)
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if max(len(body), int(length)) > limit:
                raise RefusedRequest(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too-large", f"a body must have at most {limit} bytes."
                )
        return _first({"type": "http.request", "body": body, "more_body": False}, receive)


def _first(message: Message, receive: Receive) -> Receive:
    """Receives one message, and then what there is."""
    messages = [message]

    async def received() -> Message:
        return messages.pop() if messages else await receive()

    return received
