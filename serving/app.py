"""The look-up service: a loaded release behind FastAPI. No Keras, no Beam, no MLflow."""

from __future__ import annotations

import uvicorn
from fastapi import FastAPI

from recsys import Release, __version__
from recsys.config import ServeConfig
from serving import problems, routes
from serving.paths import EncodedPath
from serving.state import State
from serving.telemetry import Measured, Telemetry


def create(release: Release, config: ServeConfig) -> FastAPI:
    """The application over one release."""
    telemetry = Telemetry(release.release_id, len(release.catalogue))
    app = FastAPI(title="recsys", version=__version__, summary="More like this.")
    app.state.recsys = State(release, config, telemetry)
    app.include_router(routes.router)
    problems.register(app)
    app.add_middleware(Measured, telemetry=telemetry)
    app.add_middleware(EncodedPath)
    return app


def run(release: Release, config: ServeConfig) -> None:
    """Serve until a signal says stop; requests that were begun are finished."""
    uvicorn.run(create(release, config), host=config.host, port=config.port, access_log=False)
