"""The rate limit of an API key is shared by all workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.middleware.rate_limit import RateLimiter


def test_limits_each_key_over_all_workers(tmp_path: Path) -> None:
    """One second's worth at once, then one request per interval; other keys have their own limit."""
    now = 100.0
    workers = [RateLimiter(tmp_path / "rate_limit", 4, lambda: now) for _ in range(2)]
    assert [workers[number % 2].acquire("a") for number in range(5)] == [0, 0, 0, 0, pytest.approx(0.25)]
    assert workers[0].acquire("b") == 0
    now += 0.25
    assert [workers[1].acquire("a"), workers[0].acquire("a")] == [0, pytest.approx(0.25)]
    now -= 90  # the machine restarted: the file has times of another clock
    assert [workers[0].acquire("a") for _ in range(3)] == [pytest.approx(0.25)] * 3
    now += 1
    assert workers[0].acquire("a") == 0
    for worker in workers:
        worker.close()
