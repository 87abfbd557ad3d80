"""HTTP client of an application in the process of the test."""

from __future__ import annotations

from typing import Any

import httpx


def asgi_client(app: Any) -> httpx.AsyncClient:
    """Return a client of an ASGI application; it uses no network."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
