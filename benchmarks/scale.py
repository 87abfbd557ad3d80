"""Measure jobs at scale: prepare of ten million interactions, embed and neighbor table of a million items.

    python -m benchmarks.scale [--rows 10000000] [--items 1000000] [--json OUT]

prepare: synthetic interactions with item popularity by Zipf's law. The job is compared with plain Polars, and with the
same job on a tenth of the interactions. Each measurement runs in its own process. Imports are not timed, but they are
included in the peak memory.

embed: the complete catalog, compared with a plain loop over the traced tower.

neighbors: several units of the neighbor table, compared with a pool of as many threads that query Annoy for the same
number of neighbors with the same search_k. The job runs on Beam and writes its rows; the pool stores the results in
memory. On both sides the index is in the page cache. Its build is not measured, so it has only a small number of trees.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from annoy import AnnoyIndex

from benchmarks import own_process
from benchmarks.command import FIGURES, parser, temporary_folder
from benchmarks.speed import embed_against_loop, plain_prepare
from benchmarks.table import Table, timed
from pipelines.beam import runner
from pipelines.context.libraries import quiet_libraries
from pipelines.context.run_context import RunContext
from pipelines.prepare import stage as prepare
from pipelines.stages import index as indexing
from recsys.config.loading import parse_config
from recsys.config.sections import BeamConfig, IndexConfig, PrepareConfig, ResourcesConfig
from recsys.index import annoy_index, embeddings, neighbors
from recsys.index.distances import COSINE
from recsys.index.recall import tune_search_k
from recsys.index.shards import INDEX_FILE, plan_shards
from recsys.release.formats import EMBEDDINGS, NEIGHBORS
from recsys.testing import synthetic

ROWS, GROWTH = 10_000_000, 10
USER_ROWS, ITEM_ROWS = 20, 50
"""Rows per user and rows per item."""

ITEMS, ROUNDS = 1_000_000, 3
DIMENSION = 64
SEARCHED_UNITS = 4
INDEX = IndexConfig(n_trees=10, recall_target=0.9, recall_floor=0.5)


def prepare_at_size(table: Table, folder: Path, rows: int) -> None:
    """Add time and peak memory of `prepare`, compared with plain code and with a smaller input."""
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for name, size in (("small", rows // GROWTH), ("large", rows)):
        log = synthetic.interactions(folder / f"{name}.parquet", size, size // USER_ROWS, rows // ITEM_ROWS)
        figures[name] = {
            side: own_process.run("benchmarks.scale", "measure_prepare", side, str(log))
            for side in ("library", "plain")
        }
        log.unlink()
    small, large, plain = figures["small"]["library"], figures["large"]["library"], figures["large"]["plain"]
    name = f"prepare, {rows:,} interactions"
    table.add(name, 3, large["seconds"], plain["seconds"])
    table.add(f"{name}, peak memory", None, large["peak_mib"], plain["peak_mib"], unit="MiB")
    table.add(f"{name}, peak memory relative to 2 GB", 1, large["peak_mib"], 2e9 / 2**20, unit="MiB")
    growth = f"{name}, relative to {rows // GROWTH:,}"
    table.add(growth, 11, large["seconds"], small["seconds"])
    table.add(f"{growth}, peak memory", 1.3, large["peak_mib"], small["peak_mib"], unit="MiB")


def measure_prepare(side: str, log: str) -> dict[str, float]:
    """Return the seconds and the peak memory of one side."""
    quiet_libraries()
    with tempfile.TemporaryDirectory(dir=Path(log).parent) as out:
        if side == "library":
            context = RunContext.from_config(parse_config({"data": {"interactions": log, "workspace": out}}))
            import apache_beam  # noqa: F401 - the import is not measured

            started = time.perf_counter()
            prepare.prepare(context.config, context.run, context.inputs, context.progress)
        else:
            started = time.perf_counter()
            plain_prepare(Path(log), PrepareConfig().window, Path(out))
        seconds = time.perf_counter() - started
    return {"seconds": round(seconds, 2), "peak_mib": round(own_process.peak_mib())}


def neighbors_against_annoy(table: Table, folder: Path, items: int) -> None:
    """Compare units of the neighbor table with a pool of threads that query Annoy for the same items."""
    vectors, k, unit = synthetic.vectors(items, DIMENSION), neighbors.width(items), ResourcesConfig().exported_items
    embeddings.save(vectors, folder / EMBEDDINGS)
    shards = plan_shards(items, items)
    index = annoy_index.build(vectors, INDEX, folder / INDEX_FILE)
    search_k = tune_search_k(index, vectors, INDEX, k=k).search_k
    job = indexing.Job(INDEX, COSINE, folder / EMBEDDINGS, shards, folder, unit, search_k)
    job.finished(0).parent.mkdir()
    np.lib.format.open_memmap(job.table, mode="w+", dtype=np.int32, shape=(items, k))
    num_queries = min(items, SEARCHED_UNITS * unit)
    ranges = [range(start, min(start + unit, num_queries)) for start in range(0, num_queries, unit)]
    plain_index = AnnoyIndex(DIMENSION, COSINE.metric)
    plain_index.load(os.fspath(folder / INDEX_FILE))

    def library() -> float:
        units = list(range(len(ranges)))
        for number in units:
            job.finished(number).unlink(missing_ok=True)
        phase = runner.Phase(NEIGHBORS, units, partial(indexing.search_neighbors, job), job.finished)
        return timed(lambda: runner.run([phase], BeamConfig(), _ignore))

    def plain() -> float:
        def search(numbers: range) -> list[tuple[list[int], list[float]]]:
            return [plain_index.get_nns_by_item(number, k + 1, search_k, True) for number in numbers]

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return timed(lambda: list(pool.map(search, ranges)))

    name = f"neighbors, top {k} of {num_queries:,} among {items:,}, search_k {search_k}"
    table.compare(name, 1 / 0.85, library, plain, ROUNDS)


def _ignore(*_: object) -> None:
    """Ignore progress."""


def fill(table: Table, folder: Path, rows: int = ROWS, items: int = ITEMS) -> None:
    """Add all rows to the table."""
    prepare_at_size(table, folder, rows)
    embed_against_loop(table, folder, items, 1 / 0.8, ROUNDS)
    neighbors_against_annoy(table, folder, items)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark as a program."""
    options = parser(__doc__, FIGURES)
    options.add_argument(
        "--rows", type=int, default=ROWS, help="number of interactions for prepare (default: %(default)s)"
    )
    options.add_argument(
        "--items", type=int, default=ITEMS, help="number of items of the catalog (default: %(default)s)"
    )
    arguments = options.parse_args(argv)
    with temporary_folder() as folder:
        table = Table()
        fill(table, folder, arguments.rows, arguments.items)
        table.write(arguments.json)


if __name__ == "__main__":
    main()
