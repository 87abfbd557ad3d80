"""A table of measurements of this library and of plain code that does the same work, with ratios and their limits."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.command import write

ROUNDS = 5
WIDTH = 72


class Table:
    """Rows of measurements. Each row is printed as soon as it is added."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        print(f"{'':<{WIDTH}} {'recsys':>9}     {'plain':>9}       ratio (min to max)  limit", flush=True)

    def compare(
        self,
        name: str,
        limit: float | None,
        library: Callable[[], float],
        plain: Callable[[], float],
        rounds: int = ROUNDS,
    ) -> None:
        """Measure both sides, and add a row with their median times in seconds and the median of their ratios.

        The sides are measured in turn: on a busy machine, ratios vary less than times.
        """

        def collect_and_run(side: Callable[[], float]) -> float:
            gc.collect()  # otherwise one side would collect the garbage of the other
            return side()

        collect_and_run(library), collect_and_run(plain)  # fills caches, traces functions and starts thread pools
        times = [(collect_and_run(library), collect_and_run(plain)) for _ in range(rounds)]
        library_s, plain_s = (statistics.median(side) for side in zip(*times, strict=True))
        self.add(name, limit, library_s, plain_s, ratios=[a / b for a, b in times])

    def add(
        self,
        name: str,
        limit: float | None,
        library: float,
        plain: float,
        *,
        ratios: Sequence[float] = (),
        unit: str = "s",
    ) -> None:
        """Add a row of measured values. The ratio should be at most `limit`, unless it is None."""
        spread = sorted(ratios or [library / plain])
        ratio = statistics.median(spread)
        self.rows.append(
            {
                "name": name,
                "unit": unit,
                "recsys": library,
                "plain": plain,
                "ratio": ratio,
                "spread": spread,
                "limit": limit,
            }
        )
        digits = 5 if unit == "s" else 0
        limit_text = "" if limit is None else f"at most {limit:.2f}{', exceeded' if ratio > limit else ''}"
        print(
            f"{name:<{WIDTH}} {library:>9.{digits}f} {unit:<3} {plain:>9.{digits}f} {unit:<3}  {ratio:>5.2f} "
            f"({spread[0]:.2f} to {spread[-1]:.2f})  {limit_text}",
            flush=True,
        )

    def write(self, path: Path | None) -> None:
        """Write the rows as JSON to `path`, unless it is None."""
        write({"rows": self.rows}, path)


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that the work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
