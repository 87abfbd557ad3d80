"""What every request is answered from."""

from __future__ import annotations

from dataclasses import dataclass

from recsys import Release
from recsys.config import ServeConfig
from serving.telemetry import Telemetry


@dataclass(frozen=True)
class State:
    """A verified release, and how to serve it."""

    release: Release
    config: ServeConfig
    telemetry: Telemetry
