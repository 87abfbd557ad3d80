"""Names of the request and response headers that select a release or a cached response."""

from __future__ import annotations

RELEASE = "Recsys-Release"
"""In a request: the release to answer from. In a response: the release that it comes from."""
STICKY_KEY = "Recsys-Sticky-Key"
IF_NONE_MATCH = "If-None-Match"


def encode(name: str) -> bytes:
    """Return a header name as ASGI represents it."""
    return name.lower().encode()
