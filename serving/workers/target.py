"""The target file: it names the releases to serve, is written by the supervisor and read by all workers.

The file persists. If the champion cannot be determined when the service starts, the champion in the file is served.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from recsys.errors import ReleaseError

TARGET_FILE = "target.json"
"""File with the releases that the workers should serve."""
LAST_SERVED_FILE = "last_served.json"
"""File with the last champion of a worker; used if the target cannot be loaded when the service starts."""


class Target(BaseModel):
    """Releases to serve, as folders or URLs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    champion: str
    challenger: str | None = None
    error: str | None = None
    """Error of the last attempt to determine the releases."""


def read_target(path: Path) -> Target:
    """Read a target file, written by `write_target` or by hand.

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
    """Replace a target file atomically; uses one temporary file per process, because all workers may write at once."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(target.model_dump_json(indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
