"""Inject eleven regressions into nightly runs, which the gate must reject, and retrain with other seeds.

    python -m benchmarks.regressions --config FILE [--set TABLE.KEY=VALUE] [--retrains N] --json OUT

The first run promotes a champion. Then one regression at a time is injected into the data, the training or the finished
release of another run, and the gate decides. Finally, the tower is trained on the same data with other seeds, run after
run; the gate must promote each release.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.command import CONFIG, FIGURES, load, parser, temporary_folder, write
from pipelines.context.progress import Progress
from pipelines.context.run_context import RunContext
from recsys.config.sections import Config
from recsys.errors import RejectedError
from recsys.testing.regressions import REGRESSIONS, inject, judge, publish, run_all_stages, with_settings


def measure(config: Config, folder: Path, retrains: int) -> dict[str, Any]:
    """Inject each regression, retrain, and return the decisions of the gate."""
    first = judge(config, run_all_stages)
    if not first.promoted:
        raise RejectedError(f"the first run must be promoted. Received: {first.error}")
    challenger = with_settings(config, [f"train.seed={config.train.seed + 1}"])
    report = Progress()
    publish(RunContext.from_config(challenger, report))
    figures: dict[str, Any] = {"regressions": {}, "retrains": []}
    for number, regression in enumerate(REGRESSIONS):
        copy = folder / f"regression-{number}"
        copy.mkdir()
        verdict = inject(regression, config, challenger, copy)
        shutil.rmtree(copy)
        report.write(f"{regression.name}: rejected by {', '.join(verdict.failed) or verdict.error}")
        figures["regressions"][regression.name] = {
            "rejected_as_expected": verdict.rejected_by(regression.expected),
            "expected": regression.expected,
            "failed": verdict.failed,
            "error": verdict.error[:300] if not verdict.failed else "",
        }
    for seed in range(retrains):
        verdict = judge(with_settings(config, [f"train.seed={config.train.seed + 1 + seed}"]), run_all_stages)
        report.write(f"retrain {seed + 1}: {'promoted' if verdict.promoted else verdict.error}")
        compared = ("ndcg_at_20_change", "agreement_at_10_change", "overlap_at_10")
        checks = [check for check in verdict.checks if check["name"] in compared]
        figures["retrains"].append({"promoted": verdict.promoted, "failed": verdict.failed, "checks": checks})
    return figures


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark as a program."""
    options = parser(__doc__, CONFIG, FIGURES)
    options.add_argument("--retrains", type=int, default=10, metavar="N", help="number of runs with other seeds")
    arguments = options.parse_args(argv)
    with temporary_folder() as folder:
        print(write(measure(load(arguments, folder / "workspace"), folder, arguments.retrains), arguments.json))


if __name__ == "__main__":
    main()
