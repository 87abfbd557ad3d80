"""Synthetic interactions and items whose true neighbors are known.

Items belong to blocks, and each user has items of one block only. Therefore the nearest neighbors of an item are the
other items of its block, and those of the new item are the items of its genre.
"""

from __future__ import annotations

import random
from pathlib import Path

import polars as pl

BLOCKS, ITEMS_A_BLOCK, USERS_A_BLOCK, ITEMS_A_USER = 6, 8, 25, 6
NEW_ITEM, NEW_ITEM_BLOCK = "new/item 1?", 2
"""An item without interactions; its id must be encoded in a URL."""

CONFIG = """
[data]
interactions = "interactions.parquet"
items = "items.csv"

[items]
title = "title"
categorical = ["genre"]

[tower]
dimension = 16

[train]
passes = 12
batch_size = 4
"""
"""Batches are small, because the first pass over so few items is often the best and needs enough steps."""

QUICK = ["train.passes=1", "train.history_passes=0", "index.n_trees=5", "tower.dimension=8", "index.recall_floor=0.1"]
"""Settings of a fast run, whose release has a low quality."""


def item_ids(block: int) -> list[str]:
    """Return the ids of the items of a block that have interactions."""
    return [f"item-{block}-{position}" for position in range(ITEMS_A_BLOCK)]


def write(folder: Path, seed: int = 0) -> Path:
    """Write interactions, items and a config to `folder`, and return the path of the config."""
    rng = random.Random(seed)
    rows = []
    for user in range(BLOCKS * USERS_A_BLOCK):
        items_of_user = rng.sample(item_ids(user % BLOCKS), ITEMS_A_USER)
        rows += [(f"user-{user}", item, 1_600_000_000 + 60 * time) for time, item in enumerate(items_of_user)]
    items = [(item, f"Title of {item}", f"genre-{block}") for block in range(BLOCKS) for item in item_ids(block)]
    items.append((NEW_ITEM, "Just out", f"genre-{NEW_ITEM_BLOCK}"))
    folder.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_parquet(
        folder / "interactions.parquet"
    )
    pl.DataFrame(items, schema=["item_id", "title", "genre"], orient="row").write_csv(folder / "items.csv")
    (folder / "recsys.toml").write_text(CONFIG)
    return folder / "recsys.toml"
