"""Bodies of requests: JSON that can be answered in JSON."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from json import JSONDecodeError
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json


class _Strict(Request):
    async def json(self) -> Any:
        """The body. Python's own JSON takes halves of characters, which no answer could repeat, and any depth."""
        try:
            return from_json(await self.body())
        except ValueError as error:
            raise JSONDecodeError(str(error), "", 0) from None


class BodyRoute(APIRoute):
    """A route whose body is UTF-8, and whole characters where it is escaped too."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See FastAPI."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def handled(request: Request) -> Response:
            return await handle(_Strict(request.scope, request.receive))

        return handled
