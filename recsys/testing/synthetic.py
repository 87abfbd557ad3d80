"""Synthetic interactions, items and vectors of any size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

ROW_GROUP = 100_000
GROUP = 50
"""Items of a group of `shop`."""
SHOP_CONFIG = """
[data]
interactions = "interactions.parquet"
items = "items.parquet"

[items]
title = "title"
categorical = ["category"]
multi_categorical = ["tags"]
numeric = ["price"]
"""


def interactions(path: Path, rows: int, users: int, items: int, seed: int = 0) -> Path:
    """Write a Parquet file of `rows` interactions: uniform users and times, items by Zipf's law."""
    rng = np.random.default_rng(seed)
    popularity = 1.0 / np.arange(1, items + 1)
    drawn = rng.choice(items, rows, p=popularity / popularity.sum())
    frame = pl.DataFrame(
        {
            "user_id": rng.integers(0, users, rows),
            "item_id": drawn,
            "timestamp": rng.integers(1_500_000_000, 1_700_000_000, rows).astype(np.float64),
        }
    )
    text = frame.with_columns(
        ("user-" + pl.col("user_id").cast(pl.String)).alias("user_id"),
        ("item-" + pl.col("item_id").cast(pl.String)).alias("item_id"),
    )
    text.write_parquet(path, row_group_size=ROW_GROUP)
    return path


def catalog(items: int, seed: int = 0) -> pl.DataFrame:
    """Return items with a category, up to eight tags and a price each."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 9, items)
    tags = [rng.integers(0, 1_000, length).astype(str).tolist() for length in lengths]
    return pl.DataFrame(
        {
            "item_id": [f"item-{number}" for number in range(items)],
            "title": [f"Item {number}" for number in range(items)],
            "category": rng.integers(0, 50, items).astype(str),
            "tags": tags,
            "price": rng.lognormal(3, 1, items),
        }
    ).sort("item_id")


def shop(output: Path, items: int, rows_per_item: int, seed: int = 0) -> Path:
    """Write interactions, items and a config; as many users as items, who like items of three groups each.

    A group has `GROUP` items of one category, by Zipf's law. A fifth of the interactions are with any items.

    Returns:
        Path of the config.
    """
    rng = np.random.default_rng(seed)
    rows, num_groups = items * rows_per_item, max(items // GROUP, 1)
    user = rng.integers(0, items, rows)
    liked = rng.integers(0, num_groups, (items, 3))
    group = np.where(rng.random(rows) < 0.8, liked[user, rng.integers(0, 3, rows)], rng.integers(0, num_groups, rows))
    popularity = 1.0 / np.arange(1, GROUP + 1)
    member = rng.choice(GROUP, rows, p=popularity / popularity.sum())
    frame = pl.DataFrame({"user": user, "item": np.minimum(group * GROUP + member, items - 1)})
    output.mkdir(parents=True, exist_ok=True)
    frame.select(
        user_id="user-" + pl.col("user").cast(pl.String),
        item_id="item-" + pl.col("item").cast(pl.String),
        timestamp=pl.Series(rng.integers(1_500_000_000, 1_700_000_000, rows).astype(np.float64)),
    ).write_parquet(output / "interactions.parquet", row_group_size=ROW_GROUP)
    catalog(items, seed).with_columns(
        category=(pl.col("item_id").str.slice(5).cast(pl.Int64) // GROUP).cast(pl.String)
    ).write_parquet(output / "items.parquet")
    (output / "recsys.toml").write_text(SHOP_CONFIG, encoding="utf-8")
    return output / "recsys.toml"


def vectors(items: int, dimension: int, seed: int = 0) -> NDArray[np.float32]:
    """Return unit vectors around 200 centers, similar to embeddings: float32 [items, dimension]."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(200, dimension))
    drawn = centers[rng.integers(0, len(centers), items)] + 0.7 * rng.normal(size=(items, dimension))
    unit: NDArray[np.float32] = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    return unit
