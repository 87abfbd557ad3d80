"""Routes that are described by FastAPI and called without it: its router and layers take longer than a search."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.protocol.problem import problem_response
from serving.routes.error_handlers import EXPECTED_ERRORS, problem_of


class DirectRoute(APIRoute):
    """A route whose endpoint parses the request. A `ValidationError` of pydantic is an error of its parameters."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the endpoint itself."""
        return self.endpoint


class DirectRoutes:
    """ASGI middleware that calls the endpoints of direct routes. All other requests are handled by FastAPI.

    Args:
        api: the application with all routes.
        routers: routers of the application that may have direct routes.
    """

    def __init__(self, api: FastAPI, *routers: APIRouter) -> None:
        self.app: ASGIApp = api
        routes = [route for router in routers for route in router.routes if isinstance(route, DirectRoute)]
        self._routes = {(method, route.path_regex): route for route in routes for method in route.methods or ()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response of a direct route, or that of FastAPI."""
        if scope["type"] == "http":
            for (method, pattern), route in self._routes.items():
                match = pattern.match(scope["path"]) if method == scope["method"] else None
                if match:
                    convertors = route.param_convertors
                    parameters = {name: convertors[name].convert(value) for name, value in match.groupdict().items()}
                    scope.update(app=self.app, route=route, path_params=parameters)
                    await _call(route, scope, receive, send)
                    return
        await self.app(scope, receive, send)


async def _call(route: DirectRoute, scope: Scope, receive: Receive, send: Send) -> None:
    try:
        response = await route.endpoint(Request(scope))
    except (*EXPECTED_ERRORS, ValidationError) as error:
        response = problem_response(problem_of(scope, error))
    await response(scope, receive, send)
