"""The look-up service: a loaded release behind FastAPI. No Keras, no Beam, no MLflow."""

from __future__ import annotations

import uvicorn
from fastapi import FastAPI

from recsys import Release, __version__
from recsys.config import ServeConfig
from serving import problems, routes
from serving.paths import EncodedPath
from serving.state import Embed, State
from serving.telemetry import Measured, Telemetry


def create(release: Release, config: ServeConfig, embed: Embed | None = None) -> FastAPI:
    """The application over one release; with `embed` it takes new items by their features."""
    release.similar(release.catalogue.item_ids[0])  # so that the first question does not wait
    telemetry = Telemetry(release.release_id, len(release.catalogue))
    app = FastAPI(title="recsys", version=__version__, summary="More like this.")
    app.state.recsys = State(release, config, telemetry, embed)
    app.include_router(routes.router)
    problems.register(app)
    app.add_middleware(Measured, telemetry=telemetry)
    app.add_middleware(EncodedPath)
    return app


def run(release: Release, config: ServeConfig, embed: Embed | None = None) -> None:
    """Serve until a signal says stop; requests that were begun are finished."""
    uvicorn.run(create(release, config, embed), host=config.host, port=config.port, access_log=False)
