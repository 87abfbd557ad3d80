"""The description of the service as a file: `python -m serving.openapi > docs/openapi.json`."""

from __future__ import annotations

import json
import sys

from recsys.config.sections import ServeConfig
from serving.app import over
from serving.live.loaded_releases import Shelf
from serving.live.state import State
from serving.middleware.api_keys import Keys
from serving.middleware.metrics import Telemetry


def text() -> str:
    """OpenAPI, as JSON that people can compare."""
    state = State(Shelf(keep_s=0), ServeConfig(), Telemetry())
    return json.dumps(over(state, Keys(None)).openapi(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
