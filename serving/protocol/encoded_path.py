"""Item ids in paths: any text, URL-encoded.

Frameworks match routes against the decoded path, where an id with a slash looks like two segments. Here routes
are matched against the path as it was sent, and each parameter is decoded by itself.
"""

from __future__ import annotations

from urllib.parse import unquote

from starlette.convertors import Convertor, register_url_convertor
from starlette.types import ASGIApp, Receive, Scope, Send


class EncodedPath:
    """ASGI middleware: match routes against the encoded path."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "http":
            scope = {**scope, "path": scope["raw_path"].decode("ascii")}
        await self.app(scope, receive, send)


ENCODED = "encoded"
"""Name of the convertor, for routes: `{item_id:encoded}` is one segment of the encoded path."""


class _Encoded(Convertor[str]):
    regex = "[^/]+"

    def convert(self, value: str) -> str:
        """Bytes that are no UTF-8 become U+FFFD, an id that no catalog holds."""
        return unquote(value, errors="replace")

    def to_string(self, value: str) -> str:
        """Routes are not built from ids here."""
        raise NotImplementedError(value)


register_url_convertor(ENCODED, _Encoded())
