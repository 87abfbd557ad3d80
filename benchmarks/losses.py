"""Compare all losses and distances on one data set, as in the table of `docs/explanation/losses.md`.

    python -m benchmarks.losses --config FILE [--set TABLE.KEY=VALUE]

Each variant is trained and evaluated by the stages of a run.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from benchmarks.command import CONFIG, load, parser, temporary_folder
from pipelines.context.run_context import RunContext
from pipelines.prepare.stage import prepare
from pipelines.stages.embed import embed
from pipelines.stages.evaluate import evaluate
from pipelines.stages.index import index
from pipelines.stages.train import train

VARIANTS = {
    "cross-entropy": ['train.loss="cross_entropy"'],
    "cross-entropy, candidates sampled": [
        'candidates.kind="sampled"',
        "candidates.negatives=256",
        "candidates.max_positives=256",
    ],
    "cross-entropy, candidates in batch": ['candidates.kind="in_batch"'],
    "cross-entropy, candidates mixed": ['candidates.kind="mixed"', "candidates.negatives=256"],
    "contrastive": ['train.loss="contrastive"'],
    "triplet, semi-hard": ['train.loss="triplet"', 'train.mining="semi_hard"'],
    "triplet, hard": ['train.loss="triplet"', 'train.mining="hard"'],
    "triplet, soft margin": ['train.loss="triplet"', 'train.mining="soft_margin"'],
    "cross-entropy, Euclidean": ['tower.distance="euclidean"'],
    "cross-entropy, Manhattan": ['tower.distance="manhattan"'],
}
BASELINES = ("popularity", "co_occurrence", "windowed_item_knn")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark as a program. It prints a row of a Markdown table for each variant."""
    arguments = parser(__doc__, CONFIG).parse_args(argv)
    print("| | NDCG@20, last item | NDCG@10, history | coverage@10 | passes | training |\n|---|---|---|---|---|---|")
    for name, settings in VARIANTS.items():
        with temporary_folder() as folder:
            context = RunContext.from_config(load(arguments, folder, settings))
            prepare(context.config, context.run, context.inputs, context.progress)
            started = time.monotonic()
            passes = train(context.config, context.run, context.progress, context.tracking.metrics)["passes"]["pairs"]
            seconds = time.monotonic() - started
            embed(context.config, context.run, context.progress), index(context.config, context.run, context.progress)
            figures = evaluate(context.config, context.run, context.progress)
        _print_row(name, figures["model"], figures["history"]["model"], f"{passes}", f"{seconds:.0f} s")
    for name in BASELINES:
        _print_row(name.replace("_", " "), figures["baselines"][name], figures["history"]["baselines"][name], "", "")


def _print_row(name: str, last_item: dict[str, float], history: dict[str, float], passes: str, seconds: str) -> None:
    print(
        f"| {name} | {last_item['ndcg_at_20']:.4f} | {history['ndcg_at_10']:.4f} | {last_item['coverage_at_10']:.2f} "
        f"| {passes} | {seconds} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
