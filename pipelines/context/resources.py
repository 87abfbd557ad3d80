"""What a stage takes of the machine, as the operating system counts it."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

WHO = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
"""This process, and those of its children that ended."""
BYTES = 1 if sys.platform == "darwin" else 1024
"""Of one unit of `ru_maxrss`."""


@contextmanager
def measured(taken: dict[str, float]) -> Iterator[None]:
    """Fill in what is taken inside, however it ends.

    Args:
        taken: gets `seconds`, `cpu_seconds`, and `peak_memory_mb`: the largest resident set so far, of this process or
            of a child, in units of 2**20 bytes.
    """
    started, cpu = time.monotonic(), _cpu_seconds()
    try:
        yield
    finally:
        taken["seconds"] = round(time.monotonic() - started, 3)
        taken["cpu_seconds"] = round(_cpu_seconds() - cpu, 3)
        taken["peak_memory_mb"] = round(max(resource.getrusage(who).ru_maxrss for who in WHO) * BYTES / 2**20, 1)


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in WHO]
    return sum(each.ru_utime + each.ru_stime for each in used)
