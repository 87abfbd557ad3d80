"""Time and memory that a stage uses, measured by the operating system."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

PROCESSES = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
"""This process, and its child processes that have ended."""
MAXRSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024


@contextmanager
def measure(usage: dict[str, float]) -> Iterator[None]:
    """Measure the time and memory of the `with` block, also if it raises.

    Args:
        usage: receives `seconds`, `cpu_seconds`, and `peak_memory_mb`, the largest resident set size so far of this
            process or of one child, in MiB.
    """
    started, cpu_before = time.monotonic(), _cpu_seconds()
    try:
        yield
    finally:
        peak = max(resource.getrusage(who).ru_maxrss for who in PROCESSES)
        usage["seconds"] = round(time.monotonic() - started, 3)
        usage["cpu_seconds"] = round(_cpu_seconds() - cpu_before, 3)
        usage["peak_memory_mb"] = round(peak * MAXRSS_UNIT_BYTES / 2**20, 1)


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in PROCESSES]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
