"""Memory of a worker of the service beyond the files that it maps and shares, per item of the catalog.

    python -m benchmarks.memory [--items 1000000] [--json OUT]

A process loads a release and answers queries of all kinds. The figure is the growth of its anonymous memory, which
other workers do not share. Vectors are short and the table is random, because both are mapped.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks import own_process
from benchmarks.command import FIGURES, parser, temporary_folder, write
from recsys import Release
from recsys.config.sections import Config, DataConfig, IndexConfig
from recsys.data import followers, item_users
from recsys.data.catalog import Catalog
from recsys.index import annoy_index, embeddings
from recsys.index.annoy_index import N_JOBS, RECALL_K, SEED
from recsys.index.neighbors import WIDTH
from recsys.index.shards import INDEX_FILE, plan_shards
from recsys.release import formats
from recsys.release.manifest import SpaceEntry
from recsys.release.writer import write_release
from recsys.retrieval.query import Condition, Query, TogetherQuery, WeightedItem
from recsys.testing import synthetic

ITEMS, DIMENSION = 1_000_000, 8
INDEX = IndexConfig(n_trees=2)
SETTLE_S = 15
"""Seconds after which Polars has returned the memory that it no longer uses."""
LIMIT = 200
"""Bytes an item."""


def build(items: int, folder: Path) -> Path:
    """Write a release of synthetic items; tower, features and calibration are placeholders."""
    catalog = Catalog(synthetic.catalog(items).with_columns(interactions=pl.lit(1, pl.Int64)))
    vectors = synthetic.vectors(items, DIMENSION)
    space = {name: folder / name for name in (*formats.SPACE_FILES, INDEX_FILE)}
    shared = {name: folder / name for name in formats.SHARED_FILES}
    for path in (space[formats.TOWER], space[formats.FEATURES], shared[formats.EVALUATION]):
        path.write_text("{}")
    space[formats.CALIBRATION].write_text('{"calibration": null}')
    catalog.save(shared[formats.CATALOG])
    item_users.build([], items, shared[formats.ITEM_USERS])
    no_pairs = pl.DataFrame(schema={"item": pl.Int32, "follower": pl.Int32, "users": pl.Int32})
    part = folder / "followers.parquet"
    followers.group_by_item(no_pairs, np.ones(items, np.int64), 0).write_parquet(part)
    followers.save(1, [part], shared[formats.FOLLOWERS])
    embeddings.save(vectors, space[formats.EMBEDDINGS])
    annoy_index.build(vectors, INDEX, space[INDEX_FILE])
    np.save(space[formats.NEIGHBORS], np.random.default_rng(0).integers(0, items, (items, WIDTH), np.int32))
    entry = SpaceEntry(
        index=tuple(plan_shards(items, items)), search_k=RECALL_K, index_recall=0, neighbors_recall=0, recency=None
    )
    manifest = {
        "release_id": "benchmark",
        "created_at": "2024-01-31T02:00:00+00:00",
        "num_items": items,
        "dimension": DIMENSION,
        "distance": "cosine",
        "metric": "angular",
        "n_trees": INDEX.n_trees,
        "seed": SEED,
        "n_jobs": N_JOBS,
        "recall_k": RECALL_K,
        "spaces": {"next": entry},
        "catalog_fingerprint": catalog.fingerprint,
        "data_snapshot": "0" * 64,
        "code_version": "benchmark",
        "parent_release": None,
        "mlflow_run": None,
        "config": Config(data=DataConfig(interactions="none.csv")).shaping(),
    }
    return write_release(shared | {f"next/{name}": path for name, path in space.items()}, manifest, folder / "releases")


def measure(path: str) -> dict[str, float]:
    """Load a release, query it, and return the bytes an item after each, and the seconds that loading takes."""
    before = anonymous_bytes()
    started = time.perf_counter()
    release = Release.load(path)
    seconds = time.perf_counter() - started
    items = len(release.catalog)
    loaded = anonymous_bytes()
    ids = release.catalog.item_ids[:: items // 100]
    where = (Condition("category", any_of=("7",)), Condition("tags", any_of=("11",)), Condition("price", maximum=50.0))
    for first, second in pairwise(ids):
        release.similar(first)
        release.search_together(TogetherQuery(first))
        release.search(Query(items=(WeightedItem(first),), where=where))
        release.search(Query(items=(WeightedItem(first), WeightedItem(second))))
    time.sleep(SETTLE_S)
    queried = anonymous_bytes()
    return {"load_s": seconds, "loaded": (loaded - before) / items, "queried": (queried - before) / items}


def anonymous_bytes() -> int:
    """Return the anonymous memory of this process."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))


def main() -> None:
    """Run the benchmark as a program."""
    options = parser(__doc__, FIGURES)
    options.add_argument("--items", type=int, default=ITEMS, help="number of items (default: %(default)s)")
    arguments: argparse.Namespace = options.parse_args()
    with temporary_folder() as folder:
        release = build(arguments.items, folder)
        figures = own_process.run("benchmarks.memory", "measure", str(release))
    print(write({"items": arguments.items, "limit": LIMIT, **figures}, arguments.json))


if __name__ == "__main__":
    main()
