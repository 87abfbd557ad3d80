"""A release asked in another process, as a service would: nothing of this one can answer for it.

    python -m recsys.release.smoke_test FOLDER K < ids.json

loads a release with what serving has, and prints its answers as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recsys.errors import RecsysError, ReleaseError
from recsys.release.bundle import Release

TIMEOUT_S = 600


def answers(release: Release, item_ids: Sequence[str], k: int) -> list[dict[str, Any]]:
    """What a release answers, ready for JSON."""
    return [release.similar(item_id, k).to_dict() for item_id in item_ids]


def ask(path: Path, item_ids: Sequence[str], k: int) -> list[dict[str, Any]]:
    """Load a release in another process and ask it about some items.

    Raises:
        ReleaseError: it does not load there, or does not answer in time.
    """
    command = [sys.executable, "-m", "recsys.release.smoke_test", str(path.resolve()), str(k)]
    try:
        done = subprocess.run(
            command, input=json.dumps(list(item_ids)), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise ReleaseError(
            f"release {path} must load and answer in another process. Received: no answer in {TIMEOUT_S} s."
        ) from None
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise ReleaseError(f"release {path} must load and answer in another process. Received: {said[0]}")
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def main() -> None:
    """The other process."""
    folder, k = sys.argv[1:]
    try:
        sys.stdout.write(json.dumps(answers(Release.load(folder), json.load(sys.stdin), int(k))))
    except RecsysError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
