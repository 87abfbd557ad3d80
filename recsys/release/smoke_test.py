"""Smoke test of a release: another process loads it and answers queries, as a service would.

    python -m recsys.release.smoke_test FOLDER K < ids.json

prints the results as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recsys.config.senses import SENSES
from recsys.errors import RecsysError, ReleaseError
from recsys.release.bundle import Release
from recsys.release.check import Check, at_least

TIMEOUT_S = 600
QUERIES, K = 20, 10
"""Number of queries in each sense, and of neighbors of each."""
CHECK = "answers_in_new_process"


def answers_check(release: Release) -> Check:
    """Check that another process loads the release and returns the same results as this one, to the last digit."""
    ids = release.catalog.item_ids
    query_ids = [ids[query * len(ids) // QUERIES] for query in range(QUERIES)]
    try:
        results = search_in_new_process(release.path, query_ids, K)
    except ReleaseError as error:
        return at_least(CHECK, 0, 1, str(error))
    equal = [result == expected for result, expected in zip(results, search(release, query_ids, K), strict=True)]
    return at_least(CHECK, sum(equal) / len(equal), 1)


def require_answers(release: Release) -> None:
    """Reject a release that another process cannot load and query.

    Raises:
        ReleaseError: the smoke test failed.
    """
    check = answers_check(release)
    if not check.passed:
        raise ReleaseError(f"release {release.release_id} must pass the smoke test. Received: {check}.")


def search(release: Release, item_ids: Sequence[str], k: int) -> list[dict[str, Any]]:
    """Return the search results of the items in each sense, ready for JSON."""
    return [release.similar(item_id, k, sense).to_dict() for sense in SENSES for item_id in item_ids]


def search_in_new_process(path: Path, item_ids: Sequence[str], k: int) -> list[dict[str, Any]]:
    """Load a release in another process, and return its search results of the items in each sense.

    Raises:
        ReleaseError: the process cannot load the release, or does not answer in time.
    """
    command = [sys.executable, "-m", "recsys.release.smoke_test", str(path.resolve()), str(k)]
    try:
        process = subprocess.run(
            command, input=json.dumps(list(item_ids)), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise ReleaseError(
            f"release {path} must load and answer in another process. Received: no answer in {TIMEOUT_S} s."
        ) from None
    if process.returncode:
        last_line = process.stderr.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
        raise ReleaseError(f"release {path} must load and answer in another process. Received: {last_line[0]}")
    return json.loads(process.stdout)  # type: ignore[no-any-return]


def main() -> None:
    """Run as the other process."""
    folder, k = sys.argv[1:]
    try:
        sys.stdout.write(json.dumps(search(Release.load(folder), json.load(sys.stdin), int(k))))
    except RecsysError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
