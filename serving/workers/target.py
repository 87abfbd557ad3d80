"""What is to be served: a small file in the service's folder that its workers follow.

One process finds out which release is the champion and fetches it; the workers read where it lies on this machine.
The file stays, so a service that starts while nobody can tell the champion starts with the last one it was told.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from recsys.errors import ReleaseError

WANTED = "wanted.json"
"""What the workers shall serve."""
SERVED = "served.json"
"""What a worker did serve, and so loads: where what is wanted does not."""


class Wanted(BaseModel):
    """Releases by their folder or URL."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    champion: str
    challenger: str | None = None
    trouble: str | None = None
    """Why nobody can tell at the moment whether this still holds."""


def read(path: Path) -> Wanted:
    """Read what `write` wrote, or what a person did.

    Raises:
        ReleaseError: there is none, or it is something else.
    """
    try:
        return Wanted.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ReleaseError(f"{path} must name the release to serve. Received: no such file.") from None
    except (OSError, ValidationError) as error:
        raise ReleaseError(
            f'{path} must be JSON like {{"champion": "releases/0123456789ab"}}. Received: {error}.'
        ) from None


def write(path: Path, wanted: Wanted) -> None:
    """Replace the file in one step. Each process by a draft of its own: all workers say what they serve at once."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("w", encoding="utf-8") as file:
        file.write(wanted.model_dump_json(indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
