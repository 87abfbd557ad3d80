"""Windowed, weighted co-occurrence pairs of one user's interactions.

Takes users' items in the order of time, hands on for each pair of items the summed weight. The sum over
users is far smaller than the raw pairs: what comes after costs by distinct pairs, not by the log.

Two weights are kept at once, since tuning and the final fit see different parts of the log:
`weight` of everything before the test target, `weight_before_validation` of everything before the validation
target.

Example, one user who touched 7, 3, 9 (too short for a split), window 2, decay 1: the pairs (3, 7) and (3, 9)
weigh 1, the pair (7, 9), two positions apart, weighs 1/2.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from recsys.sequences import Sequences
from recsys.splitting import known_before

Weight = Literal["weight", "weight_before_validation"]
SCHEMA = {
    "anchor": pl.Int32,
    "positive": pl.Int32,
    "weight": pl.Float64,
    "weight_before_validation": pl.Float64,
}


def count(
    sequences: Sequences, weights: NDArray[np.float32], num_items: int, window: int, decay: float
) -> pl.DataFrame:
    """Summed pair weights, each unordered pair once.

    Two interactions of one user `gap` <= `window` positions apart add `gap ** -decay` times both
    interaction weights. An item makes no pair with itself.

    Args:
        sequences: users' items, oldest first.
        weights: of the interactions, float32 [num_interactions].
        num_items: size of the catalogue.
        window: largest gap.
        decay: exponent of the gap.

    Returns:
        `anchor` < `positive` (int32), `weight` and `weight_before_validation` (float64), sorted.
    """
    items = sequences.items.astype(np.int64)
    users = sequences.users
    before_test = known_before(sequences, "test")
    before_validation = known_before(sequences, "validation")
    chunks = [pl.DataFrame(schema={"key": pl.Int64, "weight": pl.Float64, "weight_before_validation": pl.Float64})]
    for gap in range(1, min(window, len(items) - 1) + 1):
        earlier, later = items[:-gap], items[gap:]
        keep = (users[:-gap] == users[gap:]) & (earlier != later) & before_test[gap:]
        low, high = np.minimum(earlier, later)[keep], np.maximum(earlier, later)[keep]
        weight = (weights[:-gap] * weights[gap:])[keep].astype(np.float64) * float(gap) ** -decay
        chunks.append(
            pl.DataFrame(
                {
                    "key": low * num_items + high,
                    "weight": weight,
                    "weight_before_validation": weight * before_validation[gap:][keep],
                }
            )
        )
    return (
        pl.concat(chunks)
        .group_by("key")
        .agg(pl.col("weight", "weight_before_validation").sum())
        .sort("key")
        .select(
            (pl.col("key") // num_items).cast(pl.Int32).alias("anchor"),
            (pl.col("key") % num_items).cast(pl.Int32).alias("positive"),
            "weight",
            "weight_before_validation",
        )
    )


def mirror(pairs: pl.DataFrame) -> pl.DataFrame:
    """Both directions of each pair."""
    other = pairs.rename({"anchor": "positive", "positive": "anchor"}).select(pairs.columns)
    return pl.concat([pairs, other])


def by_anchor(pairs: pl.DataFrame) -> pl.DataFrame:
    """One row an anchor: `positives` (list of int32) and their two weights (lists of float32), all sorted."""
    return (
        pairs.group_by("anchor", "positive")
        .agg(pl.col("weight", "weight_before_validation").sum().cast(pl.Float32))
        .sort("anchor", "positive")
        .group_by("anchor", maintain_order=True)
        .agg(pl.col("positive").alias("positives"), "weight", "weight_before_validation")
    )


def matrix(rows: pl.DataFrame, num_items: int, weight: Weight) -> sparse.csr_array:
    """What `by_anchor` gives as a symmetric matrix, float32 [num_items, num_items], zeros left out."""
    flat = rows.select("anchor", "positives", weight).explode("positives", weight, empty_as_null=False)
    flat = flat.filter(pl.col(weight) > 0)
    coordinates = (flat["anchor"].to_numpy(), flat["positives"].to_numpy())
    shape = (num_items, num_items)
    return sparse.coo_array((flat[weight].to_numpy(), coordinates), shape=shape, dtype=np.float32).tocsr()


def load(parts: Iterable[Path], num_items: int, weight: Weight) -> sparse.csr_array:
    """`matrix` of Parquet parts."""
    columns = ["anchor", "positives", weight]
    return matrix(pl.concat([pl.read_parquet(part, columns=columns) for part in parts]), num_items, weight)
