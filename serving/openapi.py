"""Print the OpenAPI description of the service: `python -m serving.openapi > docs/openapi.json`."""

from __future__ import annotations

import json
import sys

from recsys.config.sections import ServeConfig
from serving.app import create_api
from serving.live.loaded_releases import LoadedReleases
from serving.live.state import State
from serving.middleware.metrics import Metrics


def openapi_json() -> str:
    """Return the OpenAPI description as indented JSON."""
    state = State(LoadedReleases(keep_previous_s=0), ServeConfig(), Metrics())
    return json.dumps(create_api(state).openapi(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(openapi_json())
