"""Concurrent queries, promotions and item changes. `python -m benchmarks.service` runs longer and with more of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from recsys.testing.service_load import run_load

pytestmark = pytest.mark.slow


def test_queries_promotions_and_item_changes_run_concurrently(tmp_path: Path) -> None:
    """No request fails, no response mixes two releases or contains a hidden item, and no files stay open."""
    report = run_load(tmp_path, requests=600, swaps=8, items=400)
    assert report.failures == []
    assert report.answers >= 600
    assert report.swaps == 8
    assert report.deletions > 0
    assert report.puts > 0
    early, late = report.open_files
    assert late <= early + 8
