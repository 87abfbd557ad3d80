"""One table: what our code takes beside what plain code takes, as ratios, each beside its limit."""

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
    """Rows of one run; each is printed as soon as it is measured."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        print(f"{'':<{WIDTH}} {'ours':>9}     {'plain':>9}       ratio (least to most)  wanted", flush=True)

    def compare(
        self,
        name: str,
        limit: float | None,
        ours: Callable[[], float],
        plain: Callable[[], float],
        rounds: int = ROUNDS,
    ) -> None:
        """Median of both sides in seconds, and of the ratios ours / plain, over rounds in turn.

        Machines drift, ratios less.
        """

        def fresh(side: Callable[[], float]) -> float:
            gc.collect()  # or one side pays for what the other one left
            return side()

        fresh(ours), fresh(plain)  # warm caches, traces and pools
        taken = [(fresh(ours), fresh(plain)) for _ in range(rounds)]
        ours_s, plain_s = (statistics.median(side) for side in zip(*taken, strict=True))
        self.add(name, limit, ours_s, plain_s, ratios=[a / b for a, b in taken])

    def add(
        self,
        name: str,
        limit: float | None,
        ours: float,
        plain: float,
        *,
        ratios: Sequence[float] = (),
        unit: str = "s",
    ) -> None:
        """A row that was measured elsewhere; its ratio should be at most `limit`."""
        spread = sorted(ratios or [ours / plain])
        ratio = statistics.median(spread)
        self.rows.append(
            {"name": name, "unit": unit, "ours": ours, "plain": plain, "ratio": ratio, "spread": spread, "limit": limit}
        )
        digits = 5 if unit == "s" else 0
        wanted = "" if limit is None else f"at most {limit:.2f}{', not kept' if ratio > limit else ''}"
        print(
            f"{name:<{WIDTH}} {ours:>9.{digits}f} {unit:<3} {plain:>9.{digits}f} {unit:<3}  {ratio:>5.2f} "
            f"({spread[0]:.2f} to {spread[-1]:.2f})  {wanted}",
            flush=True,
        )

    def write(self, path: Path | None) -> None:
        """Keep the rows as JSON, if there is a path."""
        write({"rows": self.rows}, path)


def timed(work: Callable[[], object]) -> float:
    """Seconds that the work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
