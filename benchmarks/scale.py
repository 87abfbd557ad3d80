"""Measure jobs at scale: prepare of ten million interactions, embed and export of a million items.

    python -m benchmarks.scale [--rows 10000000] [--items 1000000] [--json OUT]

prepare: synthetic interactions with item popularity by Zipf's law. The job is compared with plain Polars, and with the
same job on a tenth of the interactions. Each measurement runs in its own process. Imports are not timed, but they are
included in the peak memory.

embed: the complete catalog, compared with a plain loop over the traced tower.

neighbors: the `K` nearest neighbors of several units of items, compared with a pool of as many threads that query Annoy
directly with the same search_k. The job runs on Beam and writes its parts; the pool stores the results in memory. On
both sides the release is loaded and the index is in the page cache. The build of the index is not measured, so it has
only a small number of trees.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from annoy import AnnoyIndex

from benchmarks import own_process
from benchmarks.command import FIGURES, parser, temporary_folder
from benchmarks.speed import embed_against_loop, plain_prepare
from benchmarks.table import Table, timed
from pipelines.beam import runner
from pipelines.context.libraries import quiet_libraries
from pipelines.context.run_context import RunContext
from pipelines.export import job as export_job
from pipelines.prepare import stage as prepare
from recsys.config.loading import parse_config
from recsys.config.sections import BeamConfig, Config, DataConfig, IndexConfig, PrepareConfig, ResourcesConfig
from recsys.data import followers, item_users
from recsys.data.catalog import Catalog
from recsys.index import annoy_index, embeddings, neighbors
from recsys.index.annoy_index import N_JOBS, RECALL_K, SEED
from recsys.index.distances import COSINE
from recsys.index.recall import tune_search_k
from recsys.index.shards import INDEX_FILE, plan_shards
from recsys.release import formats, writer
from recsys.release.bundle import Release
from recsys.release.manifest import SpaceEntry
from recsys.retrieval.bulk import NeighborFilter
from recsys.testing import synthetic

ROWS, GROWTH = 10_000_000, 10
USER_ROWS, ITEM_ROWS = 20, 50
"""Rows per user and rows per item."""

ITEMS, ROUNDS = 1_000_000, 3
DIMENSION, K = 64, 50
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
    """Compare units of the export on Beam with a pool of threads that query Annoy for the same items."""
    loaded = write_release(items, folder)
    space = loaded.space("similar")
    unit, beam = ResourcesConfig().exported_items, BeamConfig(profile="local-threads")
    num_queries = min(items, SEARCHED_UNITS * unit)
    ranges = [range(start, min(start + unit, num_queries)) for start in range(0, num_queries, unit)]
    plain_index = AnnoyIndex(DIMENSION, "angular")
    plain_index.load(os.fspath(space.path / INDEX_FILE))

    def library() -> float:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            job = export_job.Job(loaded.path, "similar", K, NeighborFilter(), unit, Path(out))
            export_job.cache_release(job, loaded)
            work = partial(export_job.search_unit, job)
            phase = runner.Phase(export_job.NAME, list(range(len(ranges))), work, job.entry)
            return timed(lambda: runner.run([phase], beam, _ignore))

    def plain() -> float:
        def search(numbers: range) -> list[tuple[list[int], list[float]]]:
            return [plain_index.get_nns_by_item(number, K + 1, space.entry.search_k, True) for number in numbers]

        with ThreadPoolExecutor(beam.workers) as pool:
            return timed(lambda: list(pool.map(search, ranges)))

    name = f"neighbors, top {K} of {num_queries:,} among {items:,}, search_k {space.entry.search_k}"
    table.compare(name, 1 / 0.85, library, plain, ROUNDS)


def write_release(items: int, folder: Path) -> Release:
    """Write a release of synthetic vectors with a tuned search_k; tower and features are placeholders."""
    vectors = synthetic.vectors(items, DIMENSION)
    frame = pl.DataFrame({"item_id": [f"item-{number:08d}" for number in range(items)]})
    catalog = Catalog(frame.with_columns(title=pl.lit(None, pl.String), interactions=pl.lit(1, pl.Int64)))
    sources = {name: folder / name for name in (*formats.SHARED_FILES, *formats.SPACE_FILES, INDEX_FILE)}
    for name in (formats.TOWER, formats.FEATURES, formats.EVALUATION):
        sources[name].write_text("{}")
    sources[formats.CALIBRATION].write_text('{"calibration": null}')
    item_users.build([], items, sources[formats.ITEM_USERS])
    no_pairs = pl.DataFrame(schema={"item": pl.Int32, "follower": pl.Int32, "users": pl.Int32})
    followers.group_by_item(no_pairs, np.ones(items, np.int64), 0).write_parquet(folder / "followers.parquet")
    followers.save(1, [folder / "followers.parquet"], sources[formats.FOLLOWERS])
    catalog.save(sources[formats.CATALOG])
    embeddings.save(vectors, sources[formats.EMBEDDINGS])
    neighbors.save_exact(vectors, sources[formats.NEIGHBORS], COSINE)
    tuned = tune_search_k(annoy_index.build(vectors, INDEX, sources[INDEX_FILE]), vectors, INDEX)
    manifest: dict[str, Any] = {
        "release_id": "benchmark",
        "created_at": "2024-01-31T02:00:00+00:00",
        "num_items": items,
        "dimension": DIMENSION,
        "metric": "angular",
        "distance": "cosine",
        "n_trees": INDEX.n_trees,
        "seed": SEED,
        "n_jobs": N_JOBS,
        "recall_k": RECALL_K,
        "spaces": {
            "next": SpaceEntry(
                index=tuple(plan_shards(items, items)),
                search_k=tuned.search_k,
                index_recall=tuned.recall,
                recency=None,
            )
        },
        "catalog_fingerprint": catalog.fingerprint,
        "data_snapshot": "0" * 64,
        "code_version": "benchmark",
        "parent_release": None,
        "mlflow_run": None,
        "config": Config(data=DataConfig(interactions="none.csv")).shaping(),
    }
    files = {name if name in formats.SHARED_FILES else f"next/{name}": path for name, path in sources.items()}
    return Release.load(writer.write_release(files, manifest, folder / "releases"))


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
