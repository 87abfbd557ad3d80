"""The published protocol on any file of item sequences, through the product's own stages.

    python -m benchmarks.quality --sequences FILE [--attributes FILE] [--tune-minutes N] --json OUT

Leave-one-out on the position: the last item of a user is the test target, the one before it the validation
target. Every user is asked, by a look-up from the history, against the whole catalog, the user's earlier items
left out. All choices are made on the validation target; the test figures come from one final fit.

The JSON holds the model and every baseline: `{"model": {"validation": {…}, "test": {…}}, "baselines": {NAME:
{the same}}, "settings": {…}, "seconds": {…}}`. `last_item` holds the same for look-ups from one item.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.command import FIGURES, parser, working, write
from pipelines.context.overrides import with_settings
from pipelines.context.progress import Progress
from pipelines.context.run_context import RunContext
from pipelines.orchestration.stage_table import STAGES
from recsys.config.loading import load_config
from recsys.data import datasets

EVERYBODY = 1_000_000_000
MEASURED = ("prepare", "train", "embed", "index", "evaluate")
SHOWN = ("hr_at_5", "ndcg_at_5", "hr_at_10", "ndcg_at_10", "hr_at_20", "ndcg_at_20")
LOOK_UPS = ("history", "last_item")


def measure(folder: Path, sequences: Path, attributes: Path | None, tune_minutes: float | None) -> dict[str, Any]:
    """Run the stages on a file of sequences, and gather what they found."""
    toml = datasets.sequences(sequences, attributes, folder)
    everybody = [f"evaluate.users={EVERYBODY}", f"train.validation_users={EVERYBODY}"]
    config = load_config(toml, everybody)
    seconds, settings = {}, {}
    if tune_minutes is not None:
        from pipelines.tuning.tune import tune

        started = time.monotonic()
        config = load_config(toml, [*everybody, f"tune.minutes={tune_minutes}"])
        context = RunContext.from_config(config, Progress())
        tuned = tune(config, context.run, context.inputs, context.progress, context.tracking.tracker)
        settings = tuned["settings"]
        config = with_settings(config, settings)
        seconds["tune"] = round(time.monotonic() - started, 1)
    context = RunContext.from_config(config, Progress())
    manifests = {}
    for name in MEASURED:
        started = time.monotonic()
        manifests[name] = STAGES[name](context)
        seconds[name] = round(time.monotonic() - started, 1)
    figures, passes = manifests["evaluate"], manifests["train"]["passes"]
    found = {look_up: _of(look_up, figures) for look_up in LOOK_UPS}
    chosen = {"tuned": settings, "passes": passes, "recency": figures["history"]["recency"]}
    return {
        **found["history"],
        "last_item": found["last_item"],
        "settings": {"model": {**chosen, **context.config.shaping()}, "baselines": figures["settings"]},
        "queries": figures["queries"],
        "seconds": seconds,
    }


def _of(look_up: str, figures: dict[str, Any]) -> dict[str, Any]:
    """Model and baselines by one look-up, on both targets."""
    test = figures["history"] if look_up == "history" else figures
    validation = figures["validation"]
    baselines = {
        name: {"validation": choices[look_up], "test": test["baselines"][name]}
        for name, choices in validation["baselines"].items()
    }
    return {"model": {"validation": validation[look_up], "test": test["model"]}, "baselines": baselines}


def _tell(result: dict[str, Any]) -> None:
    for look_up, found in (("history", result), ("last item", result["last_item"])):
        rows = {"siamese": found["model"], **found["baselines"]}
        print(f"\n{f'look-up from {look_up}, test':<28}" + "".join(f"{name:>12}" for name in SHOWN))
        for name, figures in rows.items():
            print(f"{name:<28}" + "".join(f"{figures['test'][metric]:>12.4f}" for metric in SHOWN))
        best = max(figures["test"]["ndcg_at_20"] for figures in found["baselines"].values())
        print(f"NDCG@20 over the best baseline: {found['model']['test']['ndcg_at_20'] / best:.3f}")
    print(f"\nseconds: {result['seconds']}")


def main(argv: Sequence[str] | None = None) -> None:
    """The benchmark as a program."""
    options = parser(__doc__, FIGURES)
    options.add_argument("--sequences", type=Path, required=True, help="lines of user item item …, oldest first")
    options.add_argument("--attributes", type=Path, help="JSON: item to a list of attributes")
    options.add_argument("--tune-minutes", type=float, metavar="N", help="search settings so long")
    options.add_argument("--workspace", type=Path, help="keep the work here")
    asked = options.parse_args(argv)
    with working() as folder:
        result = measure(asked.workspace or folder, asked.sequences, asked.attributes, asked.tune_minutes)
        write(result, asked.json)
    _tell(result)


if __name__ == "__main__":
    main()
