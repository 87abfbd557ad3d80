"""Answers beside exact search: recall and latency, with and without filters.

    python -m benchmarks.answers

A filter lets a random share of the items through. Exact search compares with all items and sorts what may be in the
answer; an answer is everything that the library does for a question. One thread.
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
"""Value of the facet -> share of the items that have it."""
COUNTS = (10, 50, 500)


def catalog(items: int) -> Catalog:
    """Items with a list of the filters that let them through."""
    drawn = np.random.default_rng(2).random((items, len(SHARES)))
    through = [[name for name, one in zip(SHARES, row, strict=True) if one < SHARES[name]] for row in drawn]
    columns = {"item_id": [f"item-{number:07d}" for number in range(items)], "through": through}
    frame = pl.DataFrame(columns, schema_overrides={"through": pl.List(pl.String)})
    return Catalog(frame.with_columns(title=pl.col("item_id"), interactions=pl.lit(1)))


def questions(known: Catalog, asked: list[int], k: int) -> dict[str, list[Query]]:
    """Each kind of question about each item."""
    ids = known.item_ids
    pairs = list(zip(asked, reversed(asked), strict=True))
    kinds = {"one item": [Query.from_item(ids[number], k) for number in asked]}
    kinds["two items"] = [Query(items=(WeightedItem(ids[one]), WeightedItem(ids[other])), k=k) for one, other in pairs]
    for name, share in SHARES.items():
        where = (Condition("through", any_of=(name,)),)
        kinds[f"{share:.1%} filter"] = [Query(items=(WeightedItem(ids[n]),), where=where, k=k) for n in asked]
    return kinds


def exact(vectors: Vectors, known: Catalog, question: Query, masks: dict[str, NDArray[np.bool_]]) -> list[str]:
    """What comparing with every item gives."""
    numbers = [known.item_number(item_id) for item_id, _ in question.items]
    similarities = vectors @ vectors[numbers].mean(axis=0)
    similarities[numbers] = -np.inf
    for condition in question.where:
        similarities[~masks[str((condition.any_of or ("",))[0])]] = -np.inf
    nearest = np.argpartition(-similarities, question.k)[: question.k]
    nearest = nearest[np.argsort(-similarities[nearest])]
    return [known.item_ids[number] for number in nearest if similarities[number] > -np.inf]


def measure(engine: Engine, vectors: Vectors, known: Catalog, asked: list[Query]) -> dict[str, Any]:
    """Mean recall, and latencies in milliseconds, of ours and of exact search."""
    masks = {name: known.frame["through"].list.contains(name).to_numpy() for name in SHARES}
    ours, plain, recalls = [], [], []
    for question in asked:
        started = time.perf_counter()
        answer = engine.search(question)
        ours.append(time.perf_counter() - started)
        started = time.perf_counter()
        expected = exact(vectors, known, question, masks)
        plain.append(time.perf_counter() - started)
        recalls.append(len({n.item_id for n in answer.neighbors} & set(expected)) / len(expected))
    p50, p99 = (np.quantile(ours, share) * 1e3 for share in (0.5, 0.99))
    return {"recall": np.mean(recalls), "p50": p50, "p99": p99, "exact_p50": np.median(plain) * 1e3}


def main() -> None:
    """Run all; a line each as it is done."""
    options = command.parser(__doc__)
    options.add_argument("--items", type=int, default=100_000, help="items of the catalog")
    options.add_argument("--dimension", type=int, default=128, help="of the embeddings")
    options.add_argument("--questions", type=int, default=300, help="questions of each kind")
    asked: argparse.Namespace = options.parse_args()
    with command.working() as folder:
        run(folder, asked.items, asked.dimension, asked.questions)


def run(folder: Path, items: int, dimension: int, count: int) -> None:
    """Build a release's parts, ask, and print."""
    vectors, known = synthetic.vectors(items, dimension), catalog(items)
    annoy = annoy_index.build(vectors, IndexConfig(), folder / "index.ann")
    tuned = tune_search_k(annoy, vectors, IndexConfig())
    engine = Engine("benchmark", known, vectors, annoy)
    print(f"{items:,} items of {dimension} dimensions, search_k {tuned.search_k}, index recall@20 {tuned.recall:.4f}")
    print(f"{'':<22} {'k':>4} {'recall':>7} {'p50 ms':>8} {'p99 ms':>8} {'exact p50 ms':>13}")
    numbers = np.random.default_rng(0).choice(items, min(count, items), replace=False).tolist()
    for k in COUNTS:
        kinds = questions(known, numbers, k)
        kinds["one item, MMR 0.7"] = [
            Query(items=question.items, k=k, diversity=Diversity(0.7)) for question in kinds["one item"]
        ]
        for kind, asked in kinds.items():
            engine.search(asked[0])
            row = measure(engine, vectors, known, asked)
            recall = "" if "MMR" in kind else f"{row['recall']:.4f}"
            print(
                f"{kind:<22} {k:>4} {recall:>7} {row['p50']:>8.2f} {row['p99']:>8.2f} {row['exact_p50']:>13.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
