"""Evaluate the tower and the baselines on a file of item sequences by the protocol of published results.

    python -m benchmarks.quality --sequences FILE [--attributes FILE] [--tune-minutes N] --json OUT

The stages of a run train and evaluate. The last item of a user is the test target. The history of each user is a query
against the complete catalog; the user's earlier items are excluded from the results. All choices are made on the
validation targets, which are items of users held out from a first fit; the test metrics come from the final fit.

The JSON file contains the metrics of the model and of all baselines: `{"model": {"validation": {…}, "test": {…}},
"baselines": {NAME: {"validation": {…}, "test": {…}}}, "settings": {…}, "seconds": {…}}`. `last_item` has the same
structure for last-item queries. These are the figures of the sense `next`; `likeness` has those of both senses, as the
stage `evaluate` measures them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.command import FIGURES, parser, temporary_folder, write
from pipelines.context.overrides import with_settings
from pipelines.context.progress import Progress
from pipelines.context.run_context import RunContext
from pipelines.orchestration.stage_table import STAGES
from recsys.config.loading import load_config
from recsys.data import datasets
from recsys.evaluation.likeness import AGREEMENT

ALL_USERS = 1_000_000_000
MEASURED_STAGES = (
    *("prepare", "train", "embed", "index"),
    *("train-similar", "embed-similar", "index-similar", "evaluate"),
)
PRINTED_METRICS = ("hr_at_5", "ndcg_at_5", "hr_at_10", "ndcg_at_10", "hr_at_20", "ndcg_at_20")
QUERY_KINDS = ("history", "last_item")


def measure(folder: Path, sequences: Path, attributes: Path | None, tune_minutes: float | None) -> dict[str, Any]:
    """Run the stages on a file of sequences, and return the metrics."""
    toml = datasets.sequences(sequences, attributes, folder)
    all_users = f"evaluate.users={ALL_USERS}"
    config = load_config(toml, [all_users])
    seconds, settings = {}, {}
    if tune_minutes is not None:
        from pipelines.tuning.tune import tune

        started = time.monotonic()
        config = load_config(toml, [all_users, f"tune.minutes={tune_minutes}"])
        context = RunContext.from_config(config, Progress())
        tuned = tune(config, context.run, context.inputs, context.progress, context.tracking.tracker)
        settings = tuned["settings"]
        config = with_settings(config, settings)
        seconds["tune"] = round(time.monotonic() - started, 1)
    context = RunContext.from_config(config, Progress())
    manifests = {}
    for name in MEASURED_STAGES:
        started = time.monotonic()
        manifests[name] = STAGES[name](context)
        seconds[name] = round(time.monotonic() - started, 1)
    figures, passes = manifests["evaluate"], manifests["train"]["passes"]
    results = {query_kind: _results(query_kind, figures) for query_kind in QUERY_KINDS}
    chosen = {"tuned": settings, "passes": passes, "recency": figures["history"]["recency"]}
    return {
        **results["history"],
        "last_item": results["last_item"],
        "likeness": figures["likeness"],
        "settings": {"model": {**chosen, **context.config.shaping()}, "baselines": figures["settings"]},
        "queries": figures["queries"],
        "seconds": seconds,
    }


def _results(query_kind: str, figures: dict[str, Any]) -> dict[str, Any]:
    """Return the metrics of the model and the baselines for one kind of query on both targets."""
    test = figures["history"] if query_kind == "history" else figures
    validation = figures["validation"]
    baselines = {
        name: {"validation": choices[query_kind], "test": test["baselines"][name]}
        for name, choices in validation["baselines"].items()
    }
    return {"model": {"validation": validation[query_kind], "test": test["model"]}, "baselines": baselines}


def _print_tables(result: dict[str, Any]) -> None:
    for query_kind, results in (("history", result), ("last-item", result["last_item"])):
        rows = {"siamese": results["model"], **results["baselines"]}
        print(f"\n{f'{query_kind} query, test':<28}" + "".join(f"{name:>12}" for name in PRINTED_METRICS))
        for name, figures in rows.items():
            print(f"{name:<28}" + "".join(f"{figures['test'][metric]:>12.4f}" for metric in PRINTED_METRICS))
        best = max(figures["test"]["ndcg_at_20"] for figures in results["baselines"].values())
        print(f"NDCG@20 relative to the best baseline: {results['model']['test']['ndcg_at_20'] / best:.3f}")
    likeness = result["likeness"]
    print(f"\n{'likeness':<28}{'agreement@10':>12}")
    named = {f"siamese, {sense}": report for sense, report in likeness["model"].items()}
    for name, report in (named | likeness["baselines"]).items():
        if AGREEMENT in report:
            print(f"{name:<28}{report[AGREEMENT]:>12.4f}")
    print(f"similar: {likeness['reason']}")
    print(f"\nseconds: {result['seconds']}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark as a program."""
    options = parser(__doc__, FIGURES)
    options.add_argument(
        "--sequences", type=Path, required=True, help="one line per user: user item item …, oldest item first"
    )
    options.add_argument("--attributes", type=Path, help="JSON object: item to list of attributes")
    options.add_argument("--tune-minutes", type=float, metavar="N", help="tune the settings for this time first")
    options.add_argument("--workspace", type=Path, help="folder of the run; it is not deleted")
    arguments = options.parse_args(argv)
    with temporary_folder() as folder:
        result = measure(
            arguments.workspace or folder, arguments.sequences, arguments.attributes, arguments.tune_minutes
        )
        write(result, arguments.json)
    _print_tables(result)


if __name__ == "__main__":
    main()
