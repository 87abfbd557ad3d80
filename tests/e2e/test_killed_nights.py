"""A night that is killed at random moments, again and again, ends as one that nobody disturbed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from recsys.testing import killed_runs as killed

pytestmark = pytest.mark.e2e

ROWS, KILLS = 5_000, 3


def test_it_ends_with_the_same_files_and_one_version_in_service(tmp_path: Path) -> None:
    """Wherever the kills fall: each night goes on where the one before it was killed, and the last one to the end."""
    config = killed.world(tmp_path, ROWS)
    undisturbed, workspace = tmp_path / "undisturbed", tmp_path / "killed"
    whole = killed.night(config, undisturbed)
    assert whole.code == 0, whole.said
    moments = [random.uniform(0.2, 0.8) * whole.seconds for _ in range(KILLS)]  # noqa: S311 - moments to be killed at
    hit = [killed.night(config, workspace, moment).at for moment in moments]
    last = killed.night(config, workspace)
    assert last.code == 0, f"killed at {hit}: {last.said}"
    assert killed.differences(config, undisturbed, workspace) == [], f"killed at {hit}"
