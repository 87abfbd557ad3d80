"""Neighbours of every item, beside a plain threaded loop over bare Annoy with the same search_k.

    python -m benchmarks.neighbours --items 1000000

The job runs over Beam with as many threads and writes its parts; the loop keeps what it finds in memory. The
release is loaded and the index in the cache on both sides. `--asked` bounds the items that are asked about.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
from annoy import AnnoyIndex

from benchmarks import synthetic
from benchmarks.speed import compare, timed
from pipelines import neighbours, runner
from pipelines.night import calm
from recsys import embeddings, index, release
from recsys.catalogue import Catalogue
from recsys.config import BeamConfig, Config, DataConfig, IndexConfig, NeighboursConfig
from recsys.neighbours import Filter
from recsys.release import Release

DIMENSION, K = 64, 50


def write_release(items: int, folder: Path, n_trees: int) -> Release:
    """A release of made-up vectors, its search_k tuned; tower and features are stand-ins."""
    vectors = synthetic.vectors(items, DIMENSION)
    frame = pl.DataFrame({"item_id": [f"item-{number:08d}" for number in range(items)]})
    catalogue = Catalogue(frame.with_columns(title=pl.lit(None, pl.String), interactions=pl.lit(1, pl.Int64)))
    sources = {name: folder / name for name in (*release.FILES, index.INDEX)}
    for name in (release.TOWER, release.FEATURES, release.EVALUATION):
        sources[name].write_text("{}")
    sources[release.CALIBRATION].write_text('{"calibration": null}')
    catalogue.save(sources[release.CATALOGUE])
    embeddings.save(vectors, sources[release.EMBEDDINGS])
    settings = IndexConfig(n_trees=n_trees, sample=200)
    tuned = index.tune(index.build(vectors, settings, sources[index.INDEX]), vectors, settings)
    manifest = {
        "release_id": "benchmark",
        "created_at": "2024-01-31T02:00:00+00:00",
        "num_items": items,
        "dimension": DIMENSION,
        "metric": "angular",
        "distance": "cosine",
        "n_trees": settings.n_trees,
        "seed": settings.seed,
        "n_jobs": settings.n_jobs,
        "index": index.cut(items, items),
        "search_k": tuned.search_k,
        "recall_k": settings.recall_k,
        "index_recall": tuned.recall,
        "recency": None,
        "catalogue_fingerprint": catalogue.fingerprint,
        "data_snapshot": "0" * 64,
        "code_version": "benchmark",
        "parent_release": None,
        "mlflow_run": None,
        "config": Config(data=DataConfig(interactions="none.csv")).shaping(),
    }
    return Release.load(release.write(sources, manifest, folder / "releases"))


def neighbours_against_annoy(loaded: Release, asked: int, workers: int, folder: Path) -> None:
    """The job's units over Beam beside a pool of threads, each of which asks Annoy about the same range of items."""
    unit = NeighboursConfig().items_per_unit
    ranges = [range(start, min(start + unit, asked)) for start in range(0, asked, unit)]
    beam = BeamConfig(profile="local-threads", workers=workers)
    bare = AnnoyIndex(DIMENSION, "angular")
    bare.load(os.fspath(loaded.path / index.INDEX))

    def ours() -> float:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            job = neighbours.Job(loaded.path, K, Filter(), unit, Path(out))
            neighbours.hold(job, loaded)
            phase = runner.Phase(
                neighbours.NAME, list(range(len(ranges))), partial(neighbours.ask_unit, job), job.entry
            )
            return timed(lambda: runner.run([phase], beam, _ignore))

    def plain() -> float:
        def ask(numbers: range) -> list[tuple[list[int], list[float]]]:
            return [bare.get_nns_by_item(number, K + 1, loaded.manifest.search_k, True) for number in numbers]

        with ThreadPoolExecutor(workers) as pool:
            return timed(lambda: list(pool.map(ask, ranges)))

    name = f"neighbours, top {K} of {asked:,}, {workers} threads"
    compare(name, "at most 1 / 0.85 = 1.18", ours, plain)


def _ignore(*_: object) -> None:
    """No progress in a benchmark."""


def main() -> None:
    """Build the release, and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--items", type=int, default=1_000_000, help="items of the catalogue")
    parser.add_argument("--asked", type=int, help="ask about the first so many of them only")
    parser.add_argument("--trees", type=int, default=IndexConfig().n_trees, help="trees of the index")
    parser.add_argument("--workers", type=int, default=BeamConfig().workers, help="threads of both sides")
    given = parser.parse_args()
    calm()
    with tempfile.TemporaryDirectory() as name:
        loaded = write_release(given.items, Path(name), given.trees)
        print(f"{given.items:,} x {DIMENSION}, {given.trees} trees, search_k {loaded.manifest.search_k}")
        print(f"{'':<52} {'ours':>11} {'plain':>11}  ratio (least to most)  wanted")
        asked = int(np.clip(given.asked or given.items, 1, given.items))
        neighbours_against_annoy(loaded, asked, given.workers, Path(name))


if __name__ == "__main__":
    main()
