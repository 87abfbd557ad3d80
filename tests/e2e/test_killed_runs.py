"""A nightly run that is killed at random times and restarted gives the result of an undisturbed run."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from recsys.testing import killed_runs

pytestmark = pytest.mark.e2e

ROWS, KILLS = 5_000, 3


def test_restarted_run_has_the_files_of_an_undisturbed_run_and_one_champion(tmp_path: Path) -> None:
    """Each run resumes where the previous one was killed; the last one is completed."""
    config = killed_runs.write_data(tmp_path, ROWS)
    undisturbed, workspace = tmp_path / "undisturbed", tmp_path / "killed"
    complete = killed_runs.run_nightly(config, undisturbed)
    assert complete.exit_code == 0, complete.stderr
    times = [random.uniform(0.2, 0.8) * complete.seconds for _ in range(KILLS)]  # noqa: S311 - not cryptography
    stages = [killed_runs.run_nightly(config, workspace, seconds).phase for seconds in times]
    last = killed_runs.run_nightly(config, workspace)
    assert last.exit_code == 0, f"killed in {stages}: {last.stderr}"
    assert killed_runs.differences(config, undisturbed, workspace) == [], f"killed in {stages}"
