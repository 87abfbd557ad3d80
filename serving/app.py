"""The FastAPI application. It imports neither Keras nor Beam nor MLflow."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

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

COMMON_RESPONSES = {
    400: "The body cannot be read.",
    401: "The service requires a valid API key.",
    403: "The API key lacks the permission, or the service does not accept changes.",
    413: "The body is too large.",
    429: "The API key exceeded its rate limit. Retry after the seconds in Retry-After.",
    500: "Internal error.",
    503: "The service is busy, or has not loaded a release yet. Retry later.",
}


def create_app_for_release(release: Release, config: ServeConfig, embed: Embed | None = None) -> FastAPI:
    """Return the application for one release; with `embed` it can search by features of new items."""
    live_release = LiveRelease(release, embed)
    live_release.warm_up()
    releases = LoadedReleases(config.keep_seconds)
    releases.replace(live_release)
    return create_app(State(releases, config, Metrics(), embed=embed), ApiKeys(None))


def create_app(state: State, keys: ApiKeys, rate_limiter: RateLimiter | None = None) -> FastAPI:
    """Return the application for a state, whose releases may be replaced while it runs."""
    app = FastAPI(
        title="recsys",
        version=__version__,
        summary="Search for similar items.",
        redirect_slashes=False,
    )
    app.state.recsys = state
    responses: dict[int | str, dict[str, Any]] = {
        status: {"description": description, "content": PROBLEM_CONTENT}
        for status, description in COMMON_RESPONSES.items()
    }
    app.include_router(similar.router, responses=responses)
    app.include_router(together.router, responses=responses)
    app.include_router(items.router, responses=responses)
    app.include_router(health.router)
    error_handlers.register(app)
    # the middleware that is added last runs first
    app.add_middleware(ResponseCacheMiddleware, state=state)
    app.add_middleware(
        AccessControlMiddleware, config=state.config, keys=keys, metrics=state.metrics, rate_limiter=rate_limiter
    )
    tracer = create_tracer()
    if tracer is not None:
        app.add_middleware(TracingMiddleware, tracer=tracer)
    app.add_middleware(MetricsMiddleware, metrics=state.metrics)
    app.add_middleware(EncodedPathMiddleware)
    return app
