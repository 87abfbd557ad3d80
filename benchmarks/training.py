"""Training beside gensim's item2vec, on the same sequences, in one run; and its memory when the pairs grow.

    python -m benchmarks.training --config FILE [--set TABLE.KEY=VALUE] --json OUT

The clock of the tower starts with the pairs on disk and runs through compiling, training and the look-ups that
decide when to stop; it is read when the validation NDCG@20 first reaches 95% of its best: once for the look-up from
the last item, which is what item2vec is for, and once for the mean of that and the look-up from a history. The clock
of item2vec (Barkan and Koenigstein, 2016: skip-gram with negative sampling; 64 dimensions, 30 passes, 2 workers)
starts with the sequences in memory. Importing libraries is counted on neither side, and both see what is known before
the validation targets.

For memory, training runs one pass in a process of its own on made-up pairs, and on ten times as many.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.command import CONFIG, FIGURES, load, parser, working, write
from pipelines.context.progress import Progress
from pipelines.context.run_context import RunContext
from pipelines.prepare.stage import prepare
from pipelines.stages import train
from recsys.config.sections import Config, DataConfig, ItemsConfig, ResourcesConfig
from recsys.data import pairs
from recsys.evaluation.metrics import TARGET_METRIC, VALIDATION_SCORE, evaluate_last_item
from recsys.index.exact import ExactIndex
from recsys.model.fit_plan import PhaseName, validation_plan
from recsys.testing import synthetic

SHARE = 0.95
CLOCKS = (("last_item", f"validation_{TARGET_METRIC}"), ("both", VALIDATION_SCORE))
"""What a clock is stopped by, and the name of that figure of a pass."""

DIMENSION, PASSES, WORKERS = 64, 30, 2
PAIRS_ITEMS, PAIRS_AN_ITEM, GROWTH = 5_000, 400, 10


def race(config: Config) -> dict[str, Any]:
    """Seconds of both, and what they came to."""
    context = RunContext.from_config(config, Progress())
    prepare(context.config, context.run, context.inputs, context.progress)
    curve: list[dict[str, float]] = []
    from recsys.model import tower_fit  # noqa: F401 - seconds that are not the work

    started = time.perf_counter()

    def on_pass(phase: PhaseName, _: int, figures: dict[str, float]) -> None:
        if phase != "new_items":
            curve.append({"seconds": time.perf_counter() - started} | {name: figures[key] for name, key in CLOCKS})

    train.fit_tower(config, context.run, validation_plan(config), on_pass)
    best = {name: max(passed[name] for passed in curve) for name, _ in CLOCKS}
    ours = {
        name: next(passed["seconds"] for passed in curve if passed[name] >= SHARE * most_of_all)
        for name, most_of_all in best.items()
    }
    vectors, theirs = item2vec(context)
    split = train.load_split(context.run)
    figures = evaluate_last_item(ExactIndex(vectors), split.holdout("validation", config.evaluate.users))
    return {
        "seconds_to_95_percent": ours,
        "item2vec_seconds": theirs,
        "ratio": {name: seconds / theirs for name, seconds in ours.items()},
        "curve": curve,
        "item2vec_validation": figures,
    }


def item2vec(context: RunContext) -> tuple[np.ndarray, float]:
    """Unit vectors of the catalog by gensim, and the seconds it took; zeros for what it did not see."""
    from gensim.models import Word2Vec

    split = train.load_split(context.run)
    known, sequences = split.known_before("validation"), split.sequences
    sentences = [
        sequences.items[start:end][known[start:end]].astype(str).tolist()
        for start, end in zip(sequences.offsets[:-1], sequences.offsets[1:], strict=True)
    ]
    started = time.perf_counter()
    model = Word2Vec(
        sentences, vector_size=DIMENSION, window=context.config.prepare.window, min_count=1, sg=1, negative=5,
        workers=WORKERS, epochs=PASSES, seed=1,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    vectors = np.zeros((context.run.manifest("prepare")["num_items"], DIMENSION), np.float32)
    numbers = np.array([int(word) for word in model.wv.index_to_key])
    vectors[numbers] = model.wv.get_normed_vectors()
    return vectors, seconds


def memory() -> dict[str, Any]:
    """Peak memory of one pass over made-up pairs, and over ten times as many, in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for growth in (1, GROWTH):
            part = Path(folder) / f"part-{growth}.parquet"
            made_up(part, PAIRS_AN_ITEM * growth)
            program = f"from benchmarks.training import one_pass; print(one_pass({str(part)!r}))"
            done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
            found[f"peak_mib_{growth}x"] = float(done.stdout)
    return {**found, "ratio": found[f"peak_mib_{GROWTH}x"] / found["peak_mib_1x"]}


def made_up(path: Path, positives: int) -> None:
    """A file of pairs: every item with so many others, the next ones, at falling weights."""
    item = np.arange(PAIRS_ITEMS, dtype=np.int32)[:, None]
    others = np.sort((item + 1 + np.arange(positives)) % PAIRS_ITEMS, axis=1).astype(np.int32)
    weights = np.broadcast_to(1 / np.arange(1.0, positives + 1), others.shape).astype(np.float32)
    columns = {"positives": others, "weight": weights, "weight_before_validation": weights}
    lists = {name: pl.Series(name, value).arr.to_list() for name, value in columns.items()}
    rows = pl.DataFrame({"anchor": item.ravel(), **lists}).with_columns(
        size=pl.lit(positives, pl.Int32), left_out=pl.lit(0, pl.Int32)
    )
    pairs.write(rows, path)


def one_pass(part: str) -> float:
    """Train one pass, and give this process's peak memory in MiB."""
    from recsys.features.encoding import Features
    from recsys.model import tower
    from recsys.model.batches import PairBatches
    from recsys.model.optimizer import build_optimizer
    from recsys.model.siamese import Siamese
    from recsys.model.trainer import Trainer

    config = Config(data=DataConfig(interactions="none"))
    frame = synthetic.catalog(PAIRS_ITEMS)
    streamed = pairs.Pairs([Path(part)], PAIRS_ITEMS, "weight")
    small = config.model_copy(update={"resources": ResourcesConfig(memory_mb=PAIRS_ITEMS * 200 / 1_000)})
    features = Features.fit(frame, ItemsConfig(), config.tower, streamed.counts)
    model = tower.build(features, config.tower, seed=1)
    inputs = features.transform(frame)
    adam = build_optimizer(small.train, model, features, small.train.learning_rate)
    Trainer(Siamese(model, inputs, small), adam, PairBatches(streamed, small), inputs, small.train).fit(max_passes=1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(argv: Sequence[str] | None = None) -> None:
    """The benchmark as a program."""
    asked = parser(__doc__, CONFIG, FIGURES).parse_args(argv)
    with working() as folder:
        print(write({"race": race(load(asked, folder)), "memory": memory()}, asked.json))


if __name__ == "__main__":
    main()
