"""What every request is answered from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys import Release
from recsys.config import ServeConfig
from serving.telemetry import Telemetry

Embed = Callable[[Release, Mapping[str, Any]], NDArray[np.float32]]
"""The place of an item by its features, float32 [dimension]; see `recsys.newcomer`."""


@dataclass(frozen=True)
class State:
    """A verified release, and how to serve it."""

    release: Release
    config: ServeConfig
    telemetry: Telemetry
    embed: Embed | None = None
    """None where the server was started without the tower."""

    def loaded(self, release_id: str | None) -> Release | None:
        """The release of this id, if it is loaded; the one in service, if it is None."""
        return self.release if release_id in (None, self.release.release_id) else None
