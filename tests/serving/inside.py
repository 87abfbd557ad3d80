"""An application asked in this process, without a network."""

from __future__ import annotations

from typing import Any

import httpx


def inside(app: Any) -> httpx.AsyncClient:
    """A client of an ASGI application."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
