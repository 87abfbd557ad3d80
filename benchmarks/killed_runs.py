"""Kill nightly runs at random times, resume them, and compare the results with an undisturbed run.

    python -m benchmarks.killed_runs [--kills 20] [--rows 1000000] [--seed 0] --json OUT

Each run has its own workspace. Its process group is killed with SIGKILL, at times that are spread over the duration of
an undisturbed run. The run is then started again and completes. Its files are compared byte for byte with those of the
undisturbed run. Files that contain the time of writing or an id from MLflow are compared without these parts
(`recsys.testing.killed_runs.CONTENT`). The exit code is 1 if a run fails or a file differs.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.command import FIGURES, parser, temporary_folder, write
from recsys.testing.killed_runs import differences, outputs, run_nightly, write_data


def measure(folder: Path, kills: int, rows: int, seed: int) -> dict[str, Any]:
    """Kill and resume runs, compare each with the undisturbed run, and print a line per run."""
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    config = write_data(folder, rows)
    undisturbed = folder / "undisturbed"
    run_nightly(config, folder / "warm")  # not timed: the first run is slower, because it reads libraries from disk
    complete = run_nightly(config, undisturbed)
    if complete.exit_code:
        raise SystemExit(complete.stderr)
    repeat = differences(config, undisturbed, folder / "warm")
    print(f"{rows:,} rows, undisturbed: {complete.seconds:.1f} s; repeated: {'; '.join(repeat) or 'no difference'}")
    shutil.rmtree(folder / "warm")
    rng = random.Random(seed)  # noqa: S311 - not cryptography
    kills_report = []
    for number in range(kills):
        workspace = folder / f"killed-{number}"  # a unique name: MLflow keeps databases open by name
        kill_after_s = complete.seconds * (number + rng.random()) / kills
        # on a busy machine, durations vary, and a run can finish before it is killed
        while not (killed := run_nightly(config, workspace, kill_after_s)).exit_code:
            shutil.rmtree(workspace)
            kill_after_s *= 0.8
        resumed = run_nightly(config, workspace)
        problems = [f"exit code {resumed.exit_code}: {resumed.stderr[-500:]}"] if resumed.exit_code else []
        problems = problems or differences(config, undisturbed, workspace)
        shutil.rmtree(workspace)
        kills_report.append(
            {
                "killed_after_s": round(killed.seconds, 2),
                "phase": killed.phase,
                "resumed_s": round(resumed.seconds, 2),
                "differences": problems,
            }
        )
        print(
            f"{number + 1:>3}  killed after {killed.seconds:5.1f} s at {killed.phase:<9}  "
            f"resumed in {resumed.seconds:5.1f} s: {'; '.join(problems) or 'no difference'}",
            flush=True,
        )
    num_different = sum(bool(kill["differences"]) for kill in kills_report) + bool(repeat)
    return {
        "rows": rows,
        "undisturbed_s": round(complete.seconds, 2),
        "files": len(outputs(undisturbed)),
        "kills": kills_report,
        "runs_with_differences": num_different,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark as a program."""
    options = parser(__doc__, FIGURES)
    options.add_argument("--kills", type=int, default=20, help="number of runs to kill (default: %(default)s)")
    options.add_argument("--rows", type=int, default=1_000_000, help="number of interactions (default: %(default)s)")
    options.add_argument("--seed", type=int, default=0, help="seed of the times of the kills (default: %(default)s)")
    arguments = options.parse_args(argv)
    with temporary_folder() as folder:
        figures = measure(folder, arguments.kills, arguments.rows, arguments.seed)
        write(figures, arguments.json)
    print(f"{arguments.kills} runs killed, {figures['runs_with_differences']} with differences")
    sys.exit(bool(figures["runs_with_differences"]))


if __name__ == "__main__":
    main()
