"""The jobs at size: prepare when the log is ten times as long, embed and neighbors of a million items.

    python -m benchmarks.scale [--rows 10000000] [--items 1000000] [--json OUT]

prepare: made-up interactions, items by Zipf's law, beside plain Polars. Each measurement is a process of its own,
which starts with everything imported; its peak memory is that of the whole process.

embed: the whole catalog, beside a plain loop over the traced tower.

neighbors: the nearest `K` of a sample of the items, whole units of them, beside a pool of as many threads, each
of which asks bare Annoy with the same search_k. The job runs over Beam and writes its parts; the pool keeps what
it finds in memory. The release is loaded and the index in the cache on both sides. The index has few trees, since
building it is not what is measured.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
from annoy import AnnoyIndex

from benchmarks.command import FIGURES, parser, working
from benchmarks.speed import embed_against_loop, plain_prepare
from benchmarks.table import Table, timed
from pipelines.beam import runner
from pipelines.context.libraries import quiet_libraries
from pipelines.context.run_context import RunContext
from pipelines.export import job as export_job
from pipelines.prepare import stage as prepare
from recsys.config.loading import parse_config
from recsys.config.sections import BeamConfig, Config, DataConfig, IndexConfig, PrepareConfig, ResourcesConfig
from recsys.data import item_users
from recsys.data.catalog import Catalog
from recsys.index import annoy_index, embeddings
from recsys.index.annoy_index import N_JOBS, RECALL_K, SEED
from recsys.index.recall import tune_search_k
from recsys.index.shards import INDEX_FILE, plan_shards
from recsys.release import formats, writer
from recsys.release.bundle import Release
from recsys.retrieval.bulk import NeighborFilter
from recsys.testing import synthetic

ROWS, GROWTH = 10_000_000, 10
USER_ROWS, ITEM_ROWS = 20, 50
"""Rows for each user, and for each item."""

ITEMS, ROUNDS = 1_000_000, 3
DIMENSION, K = 64, 50
ASKED_UNITS = 4
INDEX = IndexConfig(n_trees=10, recall_target=0.9, recall_floor=0.5)


def prepare_at_size(table: Table, folder: Path, rows: int) -> None:
    """Seconds and peak memory at both sizes."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, size in (("small", rows // GROWTH), ("large", rows)):
        log = synthetic.interactions(folder / f"{name}.parquet", size, size // USER_ROWS, rows // ITEM_ROWS)
        found[name] = {side: _apart(side, log) for side in ("ours", "plain")}
        log.unlink()
    small, large, plain = found["small"]["ours"], found["large"]["ours"], found["large"]["plain"]
    name = f"prepare, {rows:,} interactions"
    table.add(name, 3, large["seconds"], plain["seconds"])
    table.add(f"{name}, peak memory", None, large["peak_mib"], plain["peak_mib"], unit="MiB")
    table.add(f"{name}, peak memory beside 2 GB", 1, large["peak_mib"], 2e9 / 2**20, unit="MiB")
    beside = f"{name}, beside {rows // GROWTH:,} of them"
    table.add(beside, 11, large["seconds"], small["seconds"])
    table.add(f"{beside}, peak memory", 1.3, large["peak_mib"], small["peak_mib"], unit="MiB")


def _apart(side: str, log: Path) -> dict[str, float]:
    """What `_alone` finds in a process of its own."""
    program = f"from benchmarks import scale; scale._alone({side!r}, {str(log)!r})"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def _alone(side: str, log: str) -> None:
    """Print seconds and peak memory of one side as JSON."""
    quiet_libraries()
    with tempfile.TemporaryDirectory(dir=Path(log).parent) as out:
        if side == "ours":
            context = RunContext.from_config(parse_config({"data": {"interactions": log, "workspace": out}}))
            import apache_beam  # noqa: F401 - seconds that are not the work

            started = time.perf_counter()
            prepare.prepare(context.config, context.run, context.inputs, context.progress)
        else:
            started = time.perf_counter()
            plain_prepare(Path(log), PrepareConfig().window, Path(out))
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": round(seconds, 2), "peak_mib": round(peak)}))


def neighbors_against_annoy(table: Table, folder: Path, items: int) -> None:
    """The job's units over Beam beside a pool of threads, each of which asks Annoy about the same range of items."""
    loaded = write_release(items, folder)
    unit, beam = ResourcesConfig().exported_items, BeamConfig(profile="local-threads")
    asked = min(items, ASKED_UNITS * unit)
    ranges = [range(start, min(start + unit, asked)) for start in range(0, asked, unit)]
    bare = AnnoyIndex(DIMENSION, "angular")
    bare.load(os.fspath(loaded.path / INDEX_FILE))

    def ours() -> float:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            job = export_job.Job(loaded.path, K, NeighborFilter(), unit, Path(out))
            export_job.cache_release(job, loaded)
            work = partial(export_job.search_unit, job)
            phase = runner.Phase(export_job.NAME, list(range(len(ranges))), work, job.entry)
            return timed(lambda: runner.run([phase], beam, _ignore))

    def plain() -> float:
        def ask(numbers: range) -> list[tuple[list[int], list[float]]]:
            return [bare.get_nns_by_item(number, K + 1, loaded.manifest.search_k, True) for number in numbers]

        with ThreadPoolExecutor(beam.workers) as pool:
            return timed(lambda: list(pool.map(ask, ranges)))

    name = f"neighbors, top {K} of {asked:,} among {items:,}, search_k {loaded.manifest.search_k}"
    table.compare(name, 1 / 0.85, ours, plain, ROUNDS)


def write_release(items: int, folder: Path) -> Release:
    """A release of made-up vectors, its search_k tuned; tower and features are stand-ins."""
    vectors = synthetic.vectors(items, DIMENSION)
    frame = pl.DataFrame({"item_id": [f"item-{number:08d}" for number in range(items)]})
    catalog = Catalog(frame.with_columns(title=pl.lit(None, pl.String), interactions=pl.lit(1, pl.Int64)))
    sources = {name: folder / name for name in (*formats.FILES, INDEX_FILE)}
    for name in (formats.TOWER, formats.FEATURES, formats.EVALUATION):
        sources[name].write_text("{}")
    sources[formats.CALIBRATION].write_text('{"calibration": null}')
    item_users.build([], items, sources[formats.ITEM_USERS])
    catalog.save(sources[formats.CATALOG])
    embeddings.save(vectors, sources[formats.EMBEDDINGS])
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
        "index": plan_shards(items, items),
        "search_k": tuned.search_k,
        "recall_k": RECALL_K,
        "index_recall": tuned.recall,
        "recency": None,
        "catalog_fingerprint": catalog.fingerprint,
        "data_snapshot": "0" * 64,
        "code_version": "benchmark",
        "parent_release": None,
        "mlflow_run": None,
        "config": Config(data=DataConfig(interactions="none.csv")).shaping(),
    }
    return Release.load(writer.write_release(sources, manifest, folder / "releases"))


def _ignore(*_: object) -> None:
    """No progress in a benchmark."""


def fill(table: Table, folder: Path, rows: int = ROWS, items: int = ITEMS) -> None:
    """All rows."""
    prepare_at_size(table, folder, rows)
    embed_against_loop(table, folder, items, 1 / 0.8, ROUNDS)
    neighbors_against_annoy(table, folder, items)


def main(argv: Sequence[str] | None = None) -> None:
    """The benchmark as a program."""
    options = parser(__doc__, FIGURES)
    options.add_argument("--rows", type=int, default=ROWS, help="of the longer log (default: %(default)s)")
    options.add_argument("--items", type=int, default=ITEMS, help="of the catalog (default: %(default)s)")
    asked = options.parse_args(argv)
    with working() as folder:
        table = Table()
        fill(table, folder, asked.rows, asked.items)
        table.write(asked.json)


if __name__ == "__main__":
    main()
