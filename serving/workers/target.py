"""The releases to serve: a small file in the folder of the service, written by one process and read by all workers.

The file persists. If the champion cannot be determined when the service starts, it starts with the last one.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from recsys.errors import ReleaseError

TARGET_FILE = "target.json"
"""The releases that the workers should serve."""
LAST_SERVED_FILE = "last_served.json"
"""The releases that a worker last served; used if those of the target cannot be loaded at the start."""


class Target(BaseModel):
    """Releases to serve, each by its folder or URL."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    champion: str
    challenger: str | None = None
    error: str | None = None
    """Why the last attempt to determine the releases failed."""


def read_target(path: Path) -> Target:
    """Read a target, written by `write_target` or by hand.

    Raises:
        ReleaseError: the file is missing or invalid.
    """
    try:
        return Target.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ReleaseError(f"{path} must name the release to serve. Received: no such file.") from None
    except (OSError, ValidationError) as error:
        raise ReleaseError(
            f'{path} must be JSON like {{"champion": "releases/0123456789ab"}}. Received: {error}.'
        ) from None


def write_target(path: Path, target: Target) -> None:
    """Replace the file atomically. Each process uses its own temporary file, because all workers write at once."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(target.model_dump_json(indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
