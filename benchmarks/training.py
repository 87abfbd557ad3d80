"""Compare the training time with gensim's item2vec, and measure growth with the numbers of items and pairs.

    python -m benchmarks.training --config FILE [--set TABLE.KEY=VALUE] --json OUT

The time of the tower starts with the pairs on disk and includes compilation, training and validation. It ends when the
validation NDCG@20 first reaches 95% of its maximum. Two times are reported: by last-item queries, for which item2vec is
trained, and by the mean of last-item and history queries. The time of item2vec (Barkan and Koenigstein, 2016: skip-gram
with negative sampling; 64 dimensions, 30 passes, 2 workers) starts with the sequences in memory. Imports are not
measured. Both models are trained on the interactions of the users who are not held out.

The time of a step, with the drawing of its batch, is measured in a catalog of 10,000 items and in one of a million, in
turn. The items have an id and four of a thousand tags.

The memory is the peak of a process that trains one pass over synthetic pairs, and of another with ten times as many.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks import own_process
from benchmarks.command import CONFIG, FIGURES, load, parser, temporary_folder, write
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
TARGETS = (("last_item", f"validation_{TARGET_METRIC}"), ("both", VALIDATION_SCORE))
"""Name of each reported time, and the validation metric that ends it."""

DIMENSION, PASSES, WORKERS = 64, 30, 2
PAIRS_ITEMS, PAIRS_PER_ITEM, GROWTH = 5_000, 400, 10
STEP_ITEMS, STEP_POSITIVES, STEPS, STEP_ROUNDS = (10_000, 1_000_000), 20, 20, 5


def compare(config: Config) -> dict[str, Any]:
    """Return the training times and the validation metrics of both models."""
    context = RunContext.from_config(config, Progress())
    prepare(context.config, context.run, context.inputs, context.progress)
    curve: list[dict[str, float]] = []
    from recsys.model import tower_fit  # noqa: F401 - the import is not measured

    started = time.perf_counter()

    def on_pass(phase: PhaseName, _: int, figures: dict[str, float]) -> None:
        if phase != "new_items":
            curve.append({"seconds": time.perf_counter() - started} | {name: figures[key] for name, key in TARGETS})

    train.fit_tower(config, context.run, validation_plan(config), on_pass)
    best = {name: max(point[name] for point in curve) for name, _ in TARGETS}
    tower_seconds = {
        name: next(point["seconds"] for point in curve if point[name] >= SHARE * maximum)
        for name, maximum in best.items()
    }
    vectors, item2vec_seconds = item2vec(context)
    split = train.load_split(context.run)
    figures = evaluate_last_item(ExactIndex(vectors), split.holdout("validation", config.evaluate.users))
    return {
        "seconds_to_95_percent": tower_seconds,
        "item2vec_seconds": item2vec_seconds,
        "ratio": {name: seconds / item2vec_seconds for name, seconds in tower_seconds.items()},
        "curve": curve,
        "item2vec_validation": figures,
    }


def item2vec(context: RunContext) -> tuple[np.ndarray, float]:
    """Return the normalized vectors of all items, zeros for items without interactions, and the training time."""
    from gensim.models import Word2Vec

    split = train.load_split(context.run)
    included, sequences = split.training_mask("validation"), split.sequences
    sentences = [
        sequences.items[start:end][included[start:end]].astype(str).tolist()
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
    """Return the peak memory in MiB of one pass over synthetic pairs, and over ten times as many."""
    with tempfile.TemporaryDirectory() as folder:
        peaks = {}
        for growth in (1, GROWTH):
            part = Path(folder) / f"part-{growth}.parquet"
            write_pairs(part, PAIRS_ITEMS, PAIRS_PER_ITEM * growth)
            peaks[f"peak_mib_{growth}x"] = own_process.run("benchmarks.training", "one_pass", str(part))
    return {**peaks, "ratio": peaks[f"peak_mib_{GROWTH}x"] / peaks["peak_mib_1x"]}


def write_pairs(path: Path, items: int, positives: int) -> None:
    """Write pairs of each item with the next items by number, with decreasing weights."""
    item = np.arange(items, dtype=np.int32)[:, None]
    neighbors = np.sort((item + 1 + np.arange(positives)) % items, axis=1).astype(np.int32)
    weights = np.broadcast_to(1 / np.arange(1.0, positives + 1), neighbors.shape).astype(np.float32)
    columns = {"positives": neighbors, "weight": weights, "validation_weight": weights}
    lists = {name: pl.Series(name, value).arr.to_list() for name, value in columns.items()}
    rows = pl.DataFrame({"anchor": item.ravel(), **lists}).with_columns(
        size=pl.lit(positives, pl.Int32), dropped_positives=pl.lit(0, pl.Int32)
    )
    pairs.write(rows, path)


def steps() -> dict[str, Any]:
    """Return the seconds of a step in a small and in a large catalog, and their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        run_steps = [_steps(Path(folder), items) for items in STEP_ITEMS]
        for run in run_steps:
            run()  # traces the step and fills caches
        rounds = [[run() for run in run_steps] for _ in range(STEP_ROUNDS)]
    small, large = (statistics.median(seconds) / STEPS for seconds in zip(*rounds, strict=True))
    return {"items": STEP_ITEMS, "step_s": [small, large], "ratio": statistics.median(b / a for a, b in rounds)}


def _steps(folder: Path, items: int) -> Callable[[], float]:
    """Return a function that runs some steps in a catalog of this size, and returns the seconds."""
    from recsys.features.encoding import Features
    from recsys.model import tower
    from recsys.model.batches import PairBatches
    from recsys.model.optimizer import build_optimizer
    from recsys.model.siamese import Siamese

    config = Config(data=DataConfig(interactions="none"))
    tags = np.random.default_rng(0).integers(0, 1_000, (items, 4)).astype(str).tolist()
    frame = pl.DataFrame({"item_id": [str(number) for number in range(items)], "tags": tags})
    write_pairs(folder / f"{items}.parquet", items, STEP_POSITIVES)
    written = pairs.Pairs([folder / f"{items}.parquet"], items, "weight")
    features = Features.fit(frame, ItemsConfig(multi_categorical=("tags",)), config.tower, written.counts)
    model = Siamese(tower.build(features, config.tower, seed=1), features.transform(frame), config)
    adam = build_optimizer(config.train, model.tower, features, config.train.learning_rate)
    model.compile(optimizer=adam, jit_compile=False)
    batches = PairBatches(written, config)
    drawn = chain.from_iterable(batches.one_pass() for _ in count())

    def run() -> float:
        started = time.perf_counter()
        for batch in islice(drawn, STEPS):
            model.train_on_batch(batch)
        return time.perf_counter() - started

    return run


def one_pass(part: str) -> float:
    """Train one pass, and return the peak memory of the process in MiB."""
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
    return own_process.peak_mib()


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark as a program."""
    arguments = parser(__doc__, CONFIG, FIGURES).parse_args(argv)
    with temporary_folder() as folder:
        print(
            write(
                {"comparison": compare(load(arguments, folder)), "steps": steps(), "memory": memory()}, arguments.json
            )
        )


if __name__ == "__main__":
    main()
