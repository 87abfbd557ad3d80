"""Item ids in paths: any text, percent-encoded.

Starlette matches routes against the decoded path, in which an id with a slash looks like two segments. With this
middleware it matches against the encoded path, and each path parameter is decoded separately.
"""

from __future__ import annotations

from urllib.parse import unquote

from starlette.convertors import Convertor, register_url_convertor
from starlette.types import ASGIApp, Receive, Scope, Send


class EncodedPathMiddleware:
    """ASGI middleware that matches routes against the encoded path."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Replace the decoded path of an HTTP request by the encoded one."""
        if scope["type"] == "http":
            scope["path"] = scope["raw_path"].decode("ascii")
        await self.app(scope, receive, send)


ENCODED = "encoded"
"""Name of the path convertor: `{item_id:encoded}` matches one segment of the encoded path."""


class _EncodedConvertor(Convertor[str]):
    regex = "[^/]+"

    def convert(self, value: str) -> str:
        """Decode a segment. Bytes that are not UTF-8 become U+FFFD, so the id is not in any catalog."""
        return unquote(value, errors="replace") if "%" in value else value

    def to_string(self, value: str) -> str:
        """Not supported: the service does not build URLs from ids."""
        raise NotImplementedError(value)


register_url_convertor(ENCODED, _EncodedConvertor())
