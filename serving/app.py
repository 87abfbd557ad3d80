"""The application: the look-up service behind FastAPI. No Keras, no Beam, no MLflow."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from recsys import Release, __version__
from recsys.config.sections import ServeConfig
from serving.live.live_release import Edition, Embed
from serving.live.loaded_releases import Shelf
from serving.live.replay import Replay
from serving.live.state import State
from serving.middleware import tracing
from serving.middleware.access import Guard
from serving.middleware.api_keys import Keys
from serving.middleware.metrics import Measured, Telemetry
from serving.middleware.rate_limit import Rates
from serving.protocol.encoded_path import EncodedPath
from serving.protocol.problem import CONTENT
from serving.routes import error_handlers as problems
from serving.routes import health
from serving.routes import items as changes
from serving.routes import similar as routes

REFUSALS = {
    400: "The body cannot be read.",
    401: "The server asks for an API key, and there is none that it knows.",
    403: "The API key may not do this.",
    413: "The body is too large.",
    429: "The API key was used too often. Retry-After says when to come back.",
    500: "Something is wrong in the server.",
    503: "The server is busy, or has no release yet. Come back later.",
}


def create(release: Release, config: ServeConfig, embed: Embed | None = None) -> FastAPI:
    """The application over one release that stays; with `embed` it takes new items by their features."""
    edition = Edition(release, embed, config.night_h)
    edition.warm()
    shelf = Shelf(config.keep_s)
    shelf.put(edition)
    return over(State(shelf, config, Telemetry(), embed=embed), Keys(None))


def over(state: State, keys: Keys, rates: Rates | None = None) -> FastAPI:
    """The application over a state that others may turn."""
    app = FastAPI(title="recsys", version=__version__, summary="More like this.", redirect_slashes=False)
    app.state.recsys = state
    refusals: dict[int | str, dict[str, Any]] = {
        status: {"description": told, "content": CONTENT} for status, told in REFUSALS.items()
    }
    app.include_router(routes.router, responses=refusals)
    app.include_router(changes.router, responses=refusals)
    app.include_router(health.router)
    problems.register(app)
    app.add_middleware(Replay, state=state)
    app.add_middleware(Guard, config=state.config, keys=keys, telemetry=state.telemetry, rates=rates)
    spans = tracing.tracer()
    if spans is not None:
        app.add_middleware(tracing.Traced, tracer=spans)
    app.add_middleware(Measured, telemetry=state.telemetry)
    app.add_middleware(EncodedPath)
    return app
