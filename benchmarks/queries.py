"""Recall and latency of queries compared with exact search, with and without filters.

    python -m benchmarks.queries

A filter passes a random share of the items. Exact search compares the query with all items and sorts those that pass.
The time of a query includes everything that `Engine.search` does. One thread.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks import command
from recsys.config.sections import IndexConfig
from recsys.data.catalog import Catalog
from recsys.index import annoy_index
from recsys.index.embeddings import Vectors
from recsys.index.recall import tune_search_k
from recsys.retrieval.engine import Engine
from recsys.retrieval.query import Condition, Diversity, Query, WeightedItem
from recsys.testing import synthetic

SHARES = {"half": 0.5, "tenth": 0.1, "twentieth": 0.05, "hundredth": 0.01, "thousandth": 0.001}
"""Share of the items that pass each filter, by its value."""
NUM_NEIGHBORS = (10, 50, 500)
"""Values of `k`."""


def make_catalog(items: int) -> Catalog:
    """Return a catalog in which each item lists the filters that it passes."""
    uniform = np.random.default_rng(2).random((items, len(SHARES)))
    passes = [[name for name, value in zip(SHARES, row, strict=True) if value < SHARES[name]] for row in uniform]
    columns = {"item_id": [f"item-{number:07d}" for number in range(items)], "passes": passes}
    frame = pl.DataFrame(columns, schema_overrides={"passes": pl.List(pl.String)})
    return Catalog(frame.with_columns(title=pl.col("item_id"), interactions=pl.lit(1)))


def queries_by_kind(catalog: Catalog, item_numbers: list[int], k: int) -> dict[str, list[Query]]:
    """Return queries of each kind, one query per item."""
    ids = catalog.item_ids
    pairs = list(zip(item_numbers, reversed(item_numbers), strict=True))
    kinds = {"one item": [Query.from_item(ids[number], k) for number in item_numbers]}
    kinds["two items"] = [
        Query(items=(WeightedItem(ids[first]), WeightedItem(ids[second])), k=k) for first, second in pairs
    ]
    for name, share in SHARES.items():
        where = (Condition("passes", any_of=(name,)),)
        kinds[f"{share:.1%} filter"] = [Query(items=(WeightedItem(ids[n]),), where=where, k=k) for n in item_numbers]
    return kinds


def exact(vectors: Vectors, catalog: Catalog, query: Query, masks: dict[str, NDArray[np.bool_]]) -> list[str]:
    """Return the item ids that an exact search returns."""
    numbers = [catalog.item_number(item_id) for item_id, _ in query.items]
    similarities = vectors @ vectors[numbers].mean(axis=0)
    similarities[numbers] = -np.inf
    for condition in query.where:
        similarities[~masks[str((condition.any_of or ("",))[0])]] = -np.inf
    nearest = np.argpartition(-similarities, query.k)[: query.k]
    nearest = nearest[np.argsort(-similarities[nearest])]
    return [catalog.item_ids[number] for number in nearest if similarities[number] > -np.inf]


def measure(engine: Engine, vectors: Vectors, catalog: Catalog, queries: list[Query]) -> dict[str, Any]:
    """Return the mean recall, and the latencies of queries and of exact search in milliseconds."""
    masks = {name: catalog.frame["passes"].list.contains(name).to_numpy() for name in SHARES}
    query_times, exact_times, recalls = [], [], []
    for query in queries:
        started = time.perf_counter()
        result = engine.search(query)
        query_times.append(time.perf_counter() - started)
        started = time.perf_counter()
        expected = exact(vectors, catalog, query, masks)
        exact_times.append(time.perf_counter() - started)
        recalls.append(len({n.item_id for n in result.neighbors} & set(expected)) / len(expected))
    p50, p99 = (np.quantile(query_times, share) * 1e3 for share in (0.5, 0.99))
    return {"recall": np.mean(recalls), "p50": p50, "p99": p99, "exact_p50": np.median(exact_times) * 1e3}


def main() -> None:
    """Run the benchmark as a program."""
    options = command.parser(__doc__)
    options.add_argument("--items", type=int, default=100_000, help="number of items")
    options.add_argument("--dimension", type=int, default=128, help="dimension of the embeddings")
    options.add_argument("--queries", type=int, default=300, help="number of queries of each kind")
    arguments: argparse.Namespace = options.parse_args()
    with command.temporary_folder() as folder:
        run(folder, arguments.items, arguments.dimension, arguments.queries)


def run(folder: Path, items: int, dimension: int, count: int) -> None:
    """Build an index, run all queries, and print a line per kind of query."""
    vectors, catalog = synthetic.vectors(items, dimension), make_catalog(items)
    annoy = annoy_index.build(vectors, IndexConfig(), folder / "index.ann")
    tuned = tune_search_k(annoy, vectors, IndexConfig())
    engine = Engine("benchmark", catalog, vectors, annoy)
    print(f"{items:,} items of {dimension} dimensions, search_k {tuned.search_k}, index recall@20 {tuned.recall:.4f}")
    print(f"{'':<22} {'k':>4} {'recall':>7} {'p50 ms':>8} {'p99 ms':>8} {'exact p50 ms':>13}")
    numbers = np.random.default_rng(0).choice(items, min(count, items), replace=False).tolist()
    for k in NUM_NEIGHBORS:
        kinds = queries_by_kind(catalog, numbers, k)
        kinds["one item, MMR 0.7"] = [
            Query(items=query.items, k=k, diversity=Diversity(0.7)) for query in kinds["one item"]
        ]
        for kind, queries in kinds.items():
            engine.search(queries[0])
            row = measure(engine, vectors, catalog, queries)
            recall = "" if "MMR" in kind else f"{row['recall']:.4f}"
            print(
                f"{kind:<22} {k:>4} {recall:>7} {row['p50']:>8.2f} {row['p99']:>8.2f} {row['exact_p50']:>13.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
