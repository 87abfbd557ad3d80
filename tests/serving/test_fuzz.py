"""Requests that nobody means well. Ten thousand of them are `python -m benchmarks.fuzz`."""

from __future__ import annotations

from pathlib import Path

import pytest

from recsys.testing.fuzz import fuzz

pytestmark = pytest.mark.slow


def test_requests_that_nobody_means_well_break_nothing(tmp_path: Path) -> None:
    """No answer is a 500 or otherwise than described, no worker ends, and no log holds what was sent."""
    done = fuzz(tmp_path, requests=700)
    assert done.failed == []
    assert done.logged == []
    assert done.survived
    assert done.requests >= 700
    assert set(done.statuses) >= {"200", "204", "400", "401", "404", "405", "413", "422"}
