"""Headers that select a release or a cached response, and the headers of a request by name."""

from __future__ import annotations

from starlette.types import Scope

RELEASE = "Recsys-Release"
"""In a request: the release to answer from. In a response: the release that it comes from."""
STICKY_KEY = "Recsys-Sticky-Key"
IF_NONE_MATCH = "If-None-Match"
RECEIVED = "recsys.headers"
"""Key of the scope with the headers of the request."""


def encode(name: str) -> bytes:
    """Return a header name as ASGI represents it."""
    return name.lower().encode()


def received(scope: Scope) -> dict[bytes, bytes]:
    """Return the headers of a request by name, of a repeated header the first; computed once per request."""
    values: dict[bytes, bytes] | None = scope.get(RECEIVED)
    if values is None:
        values = scope[RECEIVED] = dict(reversed(scope["headers"]))
    return values
