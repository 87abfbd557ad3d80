"""Cost per unit of each part of a run, and of a log of another size: the tables of docs/explanation/scale.md.

    python -m benchmarks.costs [--interactions 1000000000] [--items 100000000] [--json OUT]

CPU seconds are those of the process and all its threads, so a busy machine changes them less than the clock.
Bytes are those of files. `project` holds the arithmetic, in proportion to the units but where it says otherwise.
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

from benchmarks.command import FIGURES, parser, working, write
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
from recsys.features.encoding import Features
from recsys.index import annoy_index
from recsys.index.recall import tune_search_k
from recsys.testing import synthetic

ROWS, EMBEDDED, INDEXED = 2_000_000, 500_000, 100_000
ASKED, K = 2_000, 20
CATALOGS = (5_000, 20), (20_000, 20)
"""Items of two catalogs to train on, and positives of each."""
WEIGHTS = "weight", "weight_before_validation"
PASSES = 10
"""Over the anchors, of both fits of a night together, as early stopping leaves them."""
CORES, GB_A_CORE = 8, 4
"""Cores that a stage on one machine keeps busy (assumed), and memory that comes with a core for hire."""
DIMENSION = TowerConfig().dimension

CPU_HOUR = 0.05
"""Assumed price of a core for an hour with its memory, in dollars."""
PHASES = ("interactions", "ranges", "catalog", "numbered", "sequences", "pairs", "labeled")
MILLION, GB = 1e6, 1e9


def cpu(work: Callable[[], object]) -> float:
    """CPU seconds that the work takes, in all threads."""
    started = time.process_time()
    work()
    return time.process_time() - started


def of_prepare(folder: Path) -> dict[str, float]:
    """CPU seconds and bytes of each phase, and bytes of each output, for a million interactions."""
    log = synthetic.interactions(folder / "log.parquet", ROWS, ROWS // USER_ROWS, ROWS // ITEM_ROWS)
    config = parse_config({"data": {"interactions": str(log), "workspace": str(folder / "workspace")}})
    context = RunContext.from_config(config)
    millions = ROWS / MILLION
    found = {"log, bytes": log.stat().st_size / millions}
    with phase_by_phase() as phases:
        whole = cpu(lambda: prepare.prepare(context.config, context.run, context.inputs, context.progress))
    for name, phase in phases.items():
        found |= {f"{name}, CPU s": phase.seconds / millions, f"{name}, bytes": phase.bytes / millions}
    found["rest, CPU s"] = (whole - sum(phase.seconds for phase in phases.values())) / millions
    found["files"] = sum(phase.files for phase in phases.values()) / millions
    for name in (prepare.SEQUENCES, prepare.PAIRS):
        found[f"output {name}, bytes"] = size_of(context.run.path(prepare.STAGE, name))[0] / millions
    found["pairs"] = context.run.manifest(prepare.STAGE)["num_pairs"] / millions
    return {f"prepare: {name}, per million interactions": value for name, value in found.items()}


class Spent(NamedTuple):
    """What a phase took, and what it left in its folder."""

    seconds: float
    """Of CPU."""
    bytes: int
    files: int


@contextmanager
def phase_by_phase() -> Iterator[dict[str, Spent]]:
    """What each phase takes that runs meanwhile."""
    found: dict[str, Spent] = {}
    run = runner.run

    def run_apart(phases: list[runner.Phase], config: BeamConfig, advance: Callable[..., None]) -> None:
        for phase in phases:
            stage = phase.done_file(0).parent.parent
            size, files = size_of(stage)
            seconds = cpu(partial(run, [phase], config, advance))
            larger, more = size_of(stage)
            found[phase.name] = Spent(seconds, larger - size, more - files)

    runner.run = run_apart
    try:
        yield found
    finally:
        runner.run = run


def size_of(folder: Path) -> tuple[int, int]:
    """Bytes of all files below a folder, and their number."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return sum(sizes), len(sizes)


def of_training(folder: Path) -> dict[str, float]:
    """CPU seconds of a step by what is in it, and by the size of the table of ids, which Adam moves as a whole."""
    small, large = (seconds_a_step(folder, items, positives) for items, positives in CATALOGS)
    grown = (CATALOGS[1][0] - CATALOGS[0][0]) / MILLION
    return {"train: CPU s, per step": small, "train: CPU s, per step and million items": (large - small) / grown}


def seconds_a_step(folder: Path, items: int, positives: int) -> float:
    """CPU seconds of a step over anchors of so many positives, candidates sampled as for a large catalog."""
    from recsys.model import tower
    from recsys.model.batches import PairBatches
    from recsys.model.optimizer import build_optimizer
    from recsys.model.siamese import Siamese
    from recsys.model.trainer import Trainer

    item = np.arange(items, dtype=np.int32)[:, None]
    others = np.sort((item + 1 + np.arange(positives)) % items, axis=1).astype(np.int32)
    lists = {name: pl.Series(name, np.ones_like(others, np.float32)).arr.to_list() for name in WEIGHTS}
    rows = pl.DataFrame({"anchor": item.ravel(), "positives": pl.Series(others).arr.to_list(), **lists})
    part = folder / "pairs.parquet"
    pairs.write(rows.with_columns(size=pl.lit(positives, pl.Int32)), part)
    config = parse_config({"data": {"interactions": "none"}, "candidates": {"kind": "sampled"}})
    frame = pl.DataFrame({"item_id": [f"item-{number:08d}" for number in range(items)]})
    streamed = pairs.Pairs([part], items, WEIGHTS[0])
    features = Features.fit(frame, ItemsConfig(), config.tower, streamed.counts)

    def fit(passes: int) -> None:
        model = tower.build(features, config.tower, seed=1)
        inputs, batches = features.transform(frame), PairBatches(streamed, config)
        adam = build_optimizer(config.train, model, features, config.train.learning_rate)
        Trainer(Siamese(model, inputs, config), adam, batches, inputs, config.train).fit(passes)

    seconds = -cpu(lambda: fit(1)) + cpu(lambda: fit(3))  # without building and tracing
    return seconds / 2 / math.ceil(items / config.train.batch_size)


def of_items(folder: Path) -> dict[str, float]:
    """CPU seconds and bytes of what is done for each item: embed, index, neighbors."""
    from recsys.model import tower

    columns = ItemsConfig(title="title", categorical=("category",), multi_categorical=("tags",), numeric=("price",))
    frame = synthetic.catalog(EMBEDDED).with_columns(interactions=pl.lit(1, pl.Int64))
    features = Features.fit(frame, columns, TowerConfig(), np.ones(EMBEDDED, np.int64))
    catalog, saved, vocabularies = folder / "catalog.parquet", folder / "tower.keras", folder / "features.json"
    frame.write_parquet(catalog)
    features.save(vocabularies)
    tower.build(features, TowerConfig(), seed=1).save(saved)
    found = {
        "catalog, bytes": catalog.stat().st_size / EMBEDDED,
        "tower, bytes": saved.stat().st_size / EMBEDDED,
        "vocabularies, bytes": vocabularies.stat().st_size / EMBEDDED,
    }
    with tempfile.TemporaryDirectory(dir=folder) as name:
        out = Path(name)
        job = embed.Job(catalog, saved, vocabularies, out, out / "embeddings.npy", ResourcesConfig().embedded_items)
        seconds = cpu(lambda: embed.embed_items(job, EMBEDDED, DIMENSION, BeamConfig(), lambda *_: None))
        found |= {"embed, CPU s": seconds / EMBEDDED, "embeddings, bytes": job.out.stat().st_size / EMBEDDED}
    vectors, path = synthetic.vectors(INDEXED, DIMENSION), folder / "index.ann"
    built: list[annoy_index.Index] = []
    found["index, CPU s"] = cpu(lambda: built.append(annoy_index.build(vectors, IndexConfig(), path))) / INDEXED
    found["index, bytes"] = path.stat().st_size / INDEXED
    tune_search_k(built[0], vectors, IndexConfig())
    found["neighbors, CPU s"] = cpu(lambda: [built[0].nearest(number, K) for number in range(ASKED)]) / ASKED
    return {f"{name}, per item": value for name, value in found.items()}


def measure(folder: Path) -> dict[str, float]:
    """All unit costs."""
    return of_prepare(folder) | of_training(folder) | of_items(folder)


def project(costs: dict[str, float], interactions: int, items: int) -> dict[str, dict[str, float]]:
    """What a night of this size takes: CPU hours, GB of disk and memory, units, files and dollars of each part.

    In proportion to interactions and items, but for two: a step of training grows with the items, and so does
    their number; the trees of the index grow deeper by the logarithm.
    """
    units = max(1, round(interactions / ResourcesConfig().rows_per_unit))
    steps = PASSES * items / TrainConfig().batch_size
    step = costs["train: CPU s, per step"] + costs["train: CPU s, per step and million items"] * items / MILLION
    deeper = math.log2(max(items, 2)) / math.log2(INDEXED)

    def rows(name: str) -> float:
        return costs[f"prepare: {name}, per million interactions"] * interactions / MILLION

    def each(name: str) -> float:
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
            "disk, GB": each("tower, bytes") / GB,
            "memory, GB": 3 * each("embeddings, bytes") / GB,  # the table, and Adam's two moments
        },
        "embed": {
            "CPU h": each("embed, CPU s") / 3600,
            "disk, GB": each("embeddings, bytes") / GB,
            "memory, GB": each("tower, bytes") / GB,
            "units": math.ceil(items / ResourcesConfig().embedded_items),
        },
        "index": {
            "CPU h": each("index, CPU s") * deeper / 3600,
            "disk, GB": each("index, bytes") / GB,
            "memory, GB": each("index, bytes") / GB,
        },
        "neighbors": {
            "CPU h": each("neighbors, CPU s") * deeper / 3600,
            "memory, GB": each("index, bytes") / GB,
            "units": math.ceil(items / ResourcesConfig().exported_items),
        },
        "catalog": {"disk, GB": (each("catalog, bytes") + each("vocabularies, bytes")) / GB},
    }
    for part in parts.values():
        hours = part.get("CPU h", 0)
        part["dollars"] = hours * CPU_HOUR * max(1, part.get("memory, GB", 0) / GB_A_CORE / CORES)
    return parts


def show(costs: dict[str, float], parts: dict[str, dict[str, float]]) -> str:
    """Both tables as Markdown."""
    columns = ("CPU h", "disk, GB", "memory, GB", "units", "files", "dollars")
    lines = ["| measured | |", "|---|---|", *(f"| {name} | {value:,.4g} |" for name, value in costs.items())]
    lines += ["", f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, part in parts.items():
        cells = (f"{part[column]:,.{0 if part[column] > 10 else 2}f}" if column in part else "" for column in columns)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """The benchmark as a program."""
    options = parser(__doc__, FIGURES)
    options.add_argument("--interactions", type=int, default=10**9, help="of the projection (default: %(default)s)")
    options.add_argument("--items", type=int, default=10**8, help="of the projection (default: %(default)s)")
    asked = options.parse_args(argv)
    with working() as folder:
        costs = measure(folder)
    parts: dict[str, Any] = project(costs, asked.interactions, asked.items)
    write({"costs": costs, "projection": parts}, asked.json)
    print(show(costs, parts))


if __name__ == "__main__":
    main()
