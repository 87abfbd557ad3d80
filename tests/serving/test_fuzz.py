"""Malformed and hostile requests. `python -m benchmarks.fuzz` sends ten thousand."""

from __future__ import annotations

from pathlib import Path

import pytest

from recsys.testing.fuzz import fuzz

pytestmark = pytest.mark.slow


def test_survives_malformed_and_hostile_requests(tmp_path: Path) -> None:
    """Every response conforms to the OpenAPI and none is a 500, no worker ends, and no log contains sent values."""
    report = fuzz(tmp_path, requests=700)
    assert report.failed == []
    assert report.logged == []
    assert report.survived
    assert report.requests >= 700
    assert set(report.statuses) >= {"200", "204", "400", "401", "404", "405", "413", "422"}
