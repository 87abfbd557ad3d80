"""Everything at once: questions, swaps, take-downs and puts. The whole day is `python -m benchmarks.service`."""

from __future__ import annotations

from pathlib import Path

import pytest

from recsys.testing.busy_day import day

pytestmark = pytest.mark.slow


def test_a_day_in_which_everything_happens_at_once(tmp_path: Path) -> None:
    """No answer fails, mixes two releases or shows what was taken down; nothing grows but by what was written."""
    done = day(tmp_path, requests=600, swaps=8, items=400)
    assert done.failed == []
    assert done.answers >= 600
    assert done.swaps == 8
    assert done.take_downs > 0
    assert done.puts > 0
    early, late = done.open_files
    assert late <= early + 8
