"""Measure the unit costs of each part of a run and project them to another size, as in docs/explanation/scale.md.

    python -m benchmarks.costs [--interactions 1000000000] [--items 100000000] [--json OUT]

CPU seconds are of the process with all its threads; they depend less on other work of the machine than wall time.
Bytes are of files. `project` describes how the costs grow with the size.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from benchmarks.command import FIGURES, parser, temporary_folder, write
from benchmarks.scale import ITEM_ROWS, USER_ROWS
from pipelines.beam import runner
from pipelines.context.run_context import RunContext
from pipelines.prepare import stage as prepare
from pipelines.stages import embed
from recsys.config.loading import parse_config
from recsys.config.sections import (
    BeamConfig,
    IndexConfig,
    ItemsConfig,
    ResourcesConfig,
    TowerConfig,
    TrainConfig,
)
from recsys.data import pairs
from recsys.data.splits import WEIGHTS
from recsys.features.encoding import Features
from recsys.index import annoy_index
from recsys.index.recall import tune_search_k
from recsys.testing import synthetic

ROWS, EMBEDDED, INDEXED = 2_000_000, 500_000, 100_000
NUM_QUERIES, K = 2_000, 20
CATALOGS = (5_000, 20), (20_000, 20)
"""Two catalogs for training: number of items, and number of positives per item."""
PASSES = 10
"""Passes over the anchors in both fits of a run together; a typical number with early stopping."""
CORES, GB_PER_CORE = 8, 4
"""Assumed number of cores that a stage uses on one machine, and GB of memory per core."""
DIMENSION = TowerConfig().dimension

CPU_HOUR = 0.05
"""Assumed price of one core with its memory, in dollars per hour."""
PHASES = ("interactions", "ranges", "catalog", "numbered", "sequences", "pairs", "labeled")
MILLION, GB = 1e6, 1e9


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the CPU seconds that the work takes in all threads."""
    started = time.process_time()
    work()
    return time.process_time() - started


def prepare_costs(folder: Path) -> dict[str, float]:
    """Return CPU seconds and bytes of each phase, and bytes of each output, per million interactions."""
    log = synthetic.interactions(folder / "log.parquet", ROWS, ROWS // USER_ROWS, ROWS // ITEM_ROWS)
    config = parse_config({"data": {"interactions": str(log), "workspace": str(folder / "workspace")}})
    context = RunContext.from_config(config)
    millions = ROWS / MILLION
    costs = {"log, bytes": log.stat().st_size / millions}
    with measure_phases() as phases:
        total = cpu_seconds(lambda: prepare.prepare(context.config, context.run, context.inputs, context.progress))
    for name, phase in phases.items():
        costs |= {f"{name}, CPU s": phase.seconds / millions, f"{name}, bytes": phase.bytes / millions}
    costs["rest, CPU s"] = (total - sum(phase.seconds for phase in phases.values())) / millions
    costs["files"] = sum(phase.files for phase in phases.values()) / millions
    for name in (prepare.SEQUENCES, prepare.PAIRS):
        costs[f"output {name}, bytes"] = folder_size(context.run.path(prepare.STAGE, name))[0] / millions
    costs["pairs"] = context.run.manifest(prepare.STAGE)["num_pairs"] / millions
    return {f"prepare: {name}, per million interactions": value for name, value in costs.items()}


class PhaseCost(NamedTuple):
    """Cost of a phase, and the files that it wrote."""

    seconds: float
    """CPU seconds."""
    bytes: int
    files: int


@contextmanager
def measure_phases() -> Iterator[dict[str, PhaseCost]]:
    """Yield the costs of the phases that run inside the context, by the name of the phase."""
    costs: dict[str, PhaseCost] = {}
    run = runner.run

    def run_measured(phases: list[runner.Phase], config: BeamConfig, advance: Callable[..., None]) -> None:
        for phase in phases:
            stage = phase.done_file(0).parent.parent
            size, files = folder_size(stage)
            seconds = cpu_seconds(partial(run, [phase], config, advance))
            new_size, new_files = folder_size(stage)
            costs[phase.name] = PhaseCost(seconds, new_size - size, new_files - files)

    runner.run = run_measured
    try:
        yield costs
    finally:
        runner.run = run


def folder_size(folder: Path) -> tuple[int, int]:
    """Return the size in bytes and the number of all files below a folder."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return sum(sizes), len(sizes)


def training_costs(folder: Path) -> dict[str, float]:
    """Return the CPU seconds of a training step, and their growth with the size of the id table, which Adam updates."""
    small, large = (seconds_per_step(folder, items, positives) for items, positives in CATALOGS)
    added_millions = (CATALOGS[1][0] - CATALOGS[0][0]) / MILLION
    return {
        "train: CPU s, per step": small,
        "train: CPU s, per step and million items": (large - small) / added_millions,
    }


def seconds_per_step(folder: Path, items: int, positives: int) -> float:
    """Return the CPU seconds of a training step with sampled candidates, as for a large catalog."""
    from recsys.model import tower
    from recsys.model.batches import PairBatches
    from recsys.model.optimizer import build_optimizer
    from recsys.model.siamese import Siamese
    from recsys.model.trainer import Trainer

    item = np.arange(items, dtype=np.int32)[:, None]
    neighbors = np.sort((item + 1 + np.arange(positives)) % items, axis=1).astype(np.int32)
    lists = {name: pl.Series(name, np.ones_like(neighbors, np.float32)).arr.to_list() for name in WEIGHTS.values()}
    rows = pl.DataFrame({"anchor": item.ravel(), "positives": pl.Series(neighbors).arr.to_list(), **lists})
    part = folder / "pairs.parquet"
    pairs.write(rows.with_columns(size=pl.lit(positives, pl.Int32), dropped_positives=pl.lit(0, pl.Int32)), part)
    config = parse_config({"data": {"interactions": "none"}, "candidates": {"kind": "sampled"}})
    frame = pl.DataFrame({"item_id": [f"item-{number:08d}" for number in range(items)]})
    streamed = pairs.Pairs([part], items, WEIGHTS["test"])
    features = Features.fit(frame, ItemsConfig(), config.tower, streamed.counts)

    def fit(passes: int) -> None:
        model = tower.build(features, config.tower, seed=1)
        inputs, batches = features.transform(frame), PairBatches(streamed, config)
        adam = build_optimizer(config.train, model, features, config.train.learning_rate)
        Trainer(Siamese(model, inputs, config), adam, batches, inputs, config.train).fit(passes)

    seconds = -cpu_seconds(lambda: fit(1)) + cpu_seconds(lambda: fit(3))  # the difference excludes building and tracing
    return seconds / 2 / math.ceil(items / config.train.batch_size)


def item_costs(folder: Path) -> dict[str, float]:
    """Return CPU seconds and bytes per item of the stages embed and index, and of exported neighbors."""
    from recsys.model import tower

    columns = ItemsConfig(title="title", categorical=("category",), multi_categorical=("tags",), numeric=("price",))
    frame = synthetic.catalog(EMBEDDED).with_columns(interactions=pl.lit(1, pl.Int64))
    features = Features.fit(frame, columns, TowerConfig(), np.ones(EMBEDDED, np.int64))
    catalog, saved, vocabularies = folder / "catalog.parquet", folder / "tower.keras", folder / "features.json"
    frame.write_parquet(catalog)
    features.save(vocabularies)
    tower.build(features, TowerConfig(), seed=1).save(saved)
    costs = {
        "catalog, bytes": catalog.stat().st_size / EMBEDDED,
        "tower, bytes": saved.stat().st_size / EMBEDDED,
        "vocabularies, bytes": vocabularies.stat().st_size / EMBEDDED,
    }
    with tempfile.TemporaryDirectory(dir=folder) as name:
        out = Path(name)
        job = embed.Job(catalog, saved, vocabularies, out, out / "embeddings.npy", ResourcesConfig().embedded_items)
        seconds = cpu_seconds(lambda: embed.embed_items(job, EMBEDDED, DIMENSION, BeamConfig(), lambda *_: None))
        costs |= {"embed, CPU s": seconds / EMBEDDED, "embeddings, bytes": job.out.stat().st_size / EMBEDDED}
    vectors, path = synthetic.vectors(INDEXED, DIMENSION), folder / "index.ann"
    built: list[annoy_index.Index] = []
    costs["index, CPU s"] = cpu_seconds(lambda: built.append(annoy_index.build(vectors, IndexConfig(), path))) / INDEXED
    costs["index, bytes"] = path.stat().st_size / INDEXED
    tune_search_k(built[0], vectors, IndexConfig())
    costs["neighbors, CPU s"] = (
        cpu_seconds(lambda: [built[0].nearest(number, K) for number in range(NUM_QUERIES)]) / NUM_QUERIES
    )
    return {f"{name}, per item": value for name, value in costs.items()}


def measure(folder: Path) -> dict[str, float]:
    """Return all unit costs."""
    return prepare_costs(folder) | training_costs(folder) | item_costs(folder)


def project(costs: dict[str, float], interactions: int, items: int) -> dict[str, dict[str, float]]:
    """Return CPU hours, GB of disk and memory, units, files and dollars of each part of a run.

    Costs are proportional to the number of interactions or of items, with two exceptions. The number of training steps
    and the cost of a step both grow with the number of items; and the depth of the trees of the index grows with its
    logarithm.
    """
    units = max(1, round(interactions / ResourcesConfig().rows_per_unit))
    steps = PASSES * items / TrainConfig().batch_size
    step = costs["train: CPU s, per step"] + costs["train: CPU s, per step and million items"] * items / MILLION
    depth_ratio = math.log2(max(items, 2)) / math.log2(INDEXED)

    def rows(name: str) -> float:
        return costs[f"prepare: {name}, per million interactions"] * interactions / MILLION

    def per_item(name: str) -> float:
        return costs[f"{name}, per item"] * items

    parts = {
        "prepare": {
            "CPU h": sum(rows(f"{phase}, CPU s") for phase in (*PHASES, "rest")) / 3600,
            "disk, GB": sum(rows(f"{phase}, bytes") for phase in PHASES) / GB,
            "units": units,
            "files": rows("files"),
        },
        "train": {
            "CPU h": steps * step / 3600,
            "disk, GB": per_item("tower, bytes") / GB,
            "memory, GB": 3 * per_item("embeddings, bytes") / GB,  # the id table and Adam's two moments
        },
        "embed": {
            "CPU h": per_item("embed, CPU s") / 3600,
            "disk, GB": per_item("embeddings, bytes") / GB,
            "memory, GB": per_item("tower, bytes") / GB,
            "units": math.ceil(items / ResourcesConfig().embedded_items),
        },
        "index": {
            "CPU h": per_item("index, CPU s") * depth_ratio / 3600,
            "disk, GB": per_item("index, bytes") / GB,
            "memory, GB": per_item("index, bytes") / GB,
        },
        "neighbors": {
            "CPU h": per_item("neighbors, CPU s") * depth_ratio / 3600,
            "memory, GB": per_item("index, bytes") / GB,
            "units": math.ceil(items / ResourcesConfig().exported_items),
        },
        "catalog": {"disk, GB": (per_item("catalog, bytes") + per_item("vocabularies, bytes")) / GB},
    }
    for part in parts.values():
        hours = part.get("CPU h", 0)
        part["dollars"] = hours * CPU_HOUR * max(1, part.get("memory, GB", 0) / GB_PER_CORE / CORES)
    return parts


def to_markdown(costs: dict[str, float], parts: dict[str, dict[str, float]]) -> str:
    """Return both tables as Markdown."""
    columns = ("CPU h", "disk, GB", "memory, GB", "units", "files", "dollars")
    lines = ["| measured | |", "|---|---|", *(f"| {name} | {value:,.4g} |" for name, value in costs.items())]
    lines += ["", f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, part in parts.items():
        cells = (f"{part[column]:,.{0 if part[column] > 10 else 2}f}" if column in part else "" for column in columns)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark as a program."""
    options = parser(__doc__, FIGURES)
    options.add_argument(
        "--interactions", type=int, default=10**9, help="projected interactions (default: %(default)s)"
    )
    options.add_argument("--items", type=int, default=10**8, help="projected items (default: %(default)s)")
    arguments = options.parse_args(argv)
    with temporary_folder() as folder:
        costs = measure(folder)
    parts: dict[str, Any] = project(costs, arguments.interactions, arguments.items)
    write({"costs": costs, "projection": parts}, arguments.json)
    print(to_markdown(costs, parts))


if __name__ == "__main__":
    main()
