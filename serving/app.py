"""The FastAPI application. It imports neither Keras nor Beam nor MLflow."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.types import ASGIApp

from recsys import Release, __version__
from recsys.config.sections import ServeConfig
from serving.live.live_release import Embed, LiveRelease
from serving.live.loaded_releases import LoadedReleases
from serving.live.response_cache import ResponseCacheMiddleware
from serving.live.state import State
from serving.middleware.access import AccessControlMiddleware
from serving.middleware.api_keys import ApiKeys
from serving.middleware.metrics import Metrics, MetricsMiddleware
from serving.middleware.rate_limit import RateLimiter
from serving.middleware.tracing import TracingMiddleware, create_tracer
from serving.protocol.encoded_path import EncodedPathMiddleware
from serving.protocol.problem import PROBLEM_CONTENT
from serving.routes import error_handlers, health, items, similar, together
from serving.routes.direct import DirectRoutes

COMMON_RESPONSES = {
    400: "The body cannot be read.",
    401: "The service requires a valid API key.",
    403: "The API key lacks the permission, or the service does not accept changes.",
    413: "The body is too large.",
    429: "The API key exceeded its rate limit. Retry after the seconds in Retry-After.",
    500: "Internal error.",
    503: "The service is busy, or has not loaded a release yet. Retry later.",
}


def create_app_for_release(release: Release, config: ServeConfig, embed: Embed | None = None) -> ASGIApp:
    """Return the application for one release; with `embed` it can search by features of new items."""
    live_release = LiveRelease(release, embed)
    live_release.warm_up()
    releases = LoadedReleases(config.keep_seconds)
    releases.replace(live_release)
    return create_app(State(releases, config, Metrics(), embed=embed), ApiKeys(None))


def create_app(state: State, keys: ApiKeys, rate_limiter: RateLimiter | None = None) -> ASGIApp:
    """Return the application for a state, whose releases may be replaced while it runs.

    The middleware is outside of FastAPI, so that a request that it answers passes no layer of FastAPI.
    """
    app: ASGIApp = DirectRoutes(create_api(state), similar.router)
    app = ResponseCacheMiddleware(app, state)
    app = AccessControlMiddleware(app, state.config, keys, state.metrics, rate_limiter)
    tracer = create_tracer()
    if tracer is not None:
        app = TracingMiddleware(app, tracer)
    return EncodedPathMiddleware(MetricsMiddleware(app, state.metrics))


class _Api(FastAPI):
    def build_middleware_stack(self) -> ASGIApp:
        """Return the layers of FastAPI except the response to unexpected errors; `MetricsMiddleware` sends it."""
        outermost = super().build_middleware_stack()
        return outermost.app if isinstance(outermost, ServerErrorMiddleware) else outermost


def create_api(state: State) -> FastAPI:
    """Return the routes and their description."""
    api = _Api(
        title="recsys",
        version=__version__,
        summary="Search for similar items.",
        redirect_slashes=False,
    )
    api.state.recsys = state
    responses: dict[int | str, dict[str, Any]] = {
        status: {"description": description, "content": PROBLEM_CONTENT}
        for status, description in COMMON_RESPONSES.items()
    }
    for router in (similar.router, together.router, items.router):
        api.include_router(router, responses=responses)
    api.include_router(health.router)
    error_handlers.register(api)
    return api
