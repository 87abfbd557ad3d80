"""prepare at size: beside plain Polars, and its time and memory when the log is ten times as long.

    python -m benchmarks.scale [--rows 10000000] --json OUT

Made-up interactions, items by Zipf's law: a user for every 20 rows, an item for every 50. Each measurement is a
process of its own, which starts with everything imported; its peak memory is that of the whole process.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import synthetic
from benchmarks.command import FIGURES, parser, working, write
from benchmarks.speed import plain_prepare
from pipelines import prepare
from pipelines.night import Night, calm
from recsys import config as configuration
from recsys.config import PrepareConfig

GROWTH = 10
USER_ROWS, ITEM_ROWS = 20, 50
"""Rows for each user, and for each item."""


def measure(folder: Path, rows: int) -> dict[str, Any]:
    """Seconds and peak memory of both at both sizes, and their ratios."""
    found: dict[str, Any] = {}
    for name, size in (("small", rows // GROWTH), ("large", rows)):
        log = synthetic.interactions(folder / f"{name}.parquet", size, size // USER_ROWS, rows // ITEM_ROWS)
        found[name] = {"rows": size} | {side: _apart(side, log) for side in ("ours", "plain")}
        print(f"{size:>12,} rows  {found[name]}", flush=True)
    small, large = found["small"]["ours"], found["large"]["ours"]
    return found | {
        "time_over_plain": large["seconds"] / found["large"]["plain"]["seconds"],
        "time_growth": large["seconds"] / small["seconds"],
        "memory_growth": large["peak_mib"] / small["peak_mib"],
    }


def _apart(side: str, log: Path) -> dict[str, float]:
    """What `_alone` finds in a process of its own."""
    program = f"from benchmarks import scale; scale._alone({side!r}, {str(log)!r})"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def _alone(side: str, log: str) -> None:
    """Print seconds and peak memory of one side as JSON."""
    calm()
    with tempfile.TemporaryDirectory(dir=Path(log).parent) as out:
        if side == "ours":
            night = Night.of(configuration.parse({"data": {"interactions": log, "workspace": out}}))
            import apache_beam  # noqa: F401 - seconds that are not the work

            started = time.perf_counter()
            prepare.prepare(night)
        else:
            started = time.perf_counter()
            plain_prepare(Path(log), PrepareConfig().window, Path(out))
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": round(seconds, 2), "peak_mib": round(peak)}))


def main(argv: Sequence[str] | None = None) -> None:
    """The benchmark as a program."""
    options = parser(__doc__, FIGURES)
    options.add_argument("--rows", type=int, default=10_000_000, help="of the longer log (default: %(default)s)")
    asked = options.parse_args(argv)
    with working() as folder:
        print(write(measure(folder, asked.rows), asked.json))


if __name__ == "__main__":
    main()
