"""Kill nightly runs at random moments, resume them, and compare the results with an undisturbed run.

    python -m benchmarks.killed [--kills 20] [--rows 1000000] [--seed 0] --json OUT

Each run begins in a workspace of its own, is killed with its whole process group (SIGKILL) at a moment drawn from its
own part of an undisturbed run's duration, and is then run again to the end. Its files are compared byte for byte with
those of the undisturbed run. Files that contain the time of writing or an id drawn by MLflow are compared without
them (`recsys.testing.killed_runs.CONTENT`). The exit code is 1 if anything differs.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.command import FIGURES, parser, working, write
from recsys.testing.killed_runs import differences, outputs, run_nightly, write_data


def measure(folder: Path, kills: int, rows: int, seed: int) -> dict[str, Any]:
    """Kill nights, go on with them, and compare; a line each."""
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    config = write_data(folder, rows)
    undisturbed = folder / "undisturbed"
    run_nightly(config, folder / "warm")  # the first reads programs from disk, and takes longer
    whole = run_nightly(config, undisturbed)
    if whole.exit_code:
        raise SystemExit(whole.stderr)
    again = differences(config, undisturbed, folder / "warm")
    print(f"{rows:,} rows, undisturbed: {whole.seconds:.1f} s; a second time: {'; '.join(again) or 'the same'}")
    shutil.rmtree(folder / "warm")
    rng = random.Random(seed)  # noqa: S311 - moments to be killed at
    told = []
    for number in range(kills):
        workspace = folder / f"killed-{number}"  # a name of its own: MLflow holds databases open by name
        moment = whole.seconds * (number + rng.random()) / kills
        while not (
            killed := run_nightly(config, workspace, moment)
        ).exit_code:  # it was over: nights of a busy machine differ
            shutil.rmtree(workspace)
            moment *= 0.8
        resumed = run_nightly(config, workspace)
        found = [f"exit code {resumed.exit_code}: {resumed.stderr[-500:]}"] if resumed.exit_code else []
        found = found or differences(config, undisturbed, workspace)
        shutil.rmtree(workspace)
        told.append(
            {
                "killed_after_s": round(killed.seconds, 2),
                "at": killed.phase,
                "resumed_s": round(resumed.seconds, 2),
                "differences": found,
            }
        )
        print(
            f"{number + 1:>3}  killed after {killed.seconds:5.1f} s at {killed.phase:<9}  "
            f"done {resumed.seconds:5.1f} s later: {'; '.join(found) or 'the same'}",
            flush=True,
        )
    wrong = sum(bool(kill["differences"]) for kill in told) + bool(again)
    return {
        "rows": rows,
        "undisturbed_s": round(whole.seconds, 2),
        "files": len(outputs(undisturbed)),
        "kills": told,
        "nights_that_differ": wrong,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """The benchmark as a program."""
    options = parser(__doc__, FIGURES)
    options.add_argument("--kills", type=int, default=20, help="nights that are killed (default: %(default)s)")
    options.add_argument("--rows", type=int, default=1_000_000, help="interactions (default: %(default)s)")
    options.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    asked = options.parse_args(argv)
    with working() as folder:
        figures = measure(folder, asked.kills, asked.rows, asked.seed)
        write(figures, asked.json)
    print(f"{asked.kills} nights killed, {figures['nights_that_differ']} with a difference")
    sys.exit(bool(figures["nights_that_differ"]))


if __name__ == "__main__":
    main()
