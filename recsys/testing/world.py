"""A made-up world whose true neighbors are known: taste so plain that there is one right answer.

Items come in blocks, and nobody touches items of two blocks. So the neighbors of an item are the other items
of its block, all of them before any other, and those of a new item the items that share its genre.
"""

from __future__ import annotations

import random
from pathlib import Path

import polars as pl

BLOCKS, ITEMS_A_BLOCK, USERS_A_BLOCK, TOUCHED = 6, 8, 25, 6
NEW_ITEM, NEW_ITEM_BLOCK = "new/item 1?", 2
"""An item without interactions, of a name that has to be encoded in a URL."""

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
"""Small batches: the first pass over so few items is often the best, and must be steps enough to tell blocks apart."""

QUICK = ["train.passes=1", "train.history_passes=0", "index.n_trees=5", "tower.dimension=8", "index.recall_floor=0.1"]
"""Settings of a night that is over soon, and whose release is of little use."""


def item_ids(block: int) -> list[str]:
    """The touched items of a block."""
    return [f"item-{block}-{position}" for position in range(ITEMS_A_BLOCK)]


def write(folder: Path, seed: int = 0) -> Path:
    """Interactions, items and a config below `folder`; the path of the config."""
    rng = random.Random(seed)
    rows = []
    for user in range(BLOCKS * USERS_A_BLOCK):
        touched = rng.sample(item_ids(user % BLOCKS), TOUCHED)
        rows += [(f"user-{user}", item, 1_600_000_000 + 60 * time) for time, item in enumerate(touched)]
    items = [(item, f"Title of {item}", f"genre-{block}") for block in range(BLOCKS) for item in item_ids(block)]
    items.append((NEW_ITEM, "Just out", f"genre-{NEW_ITEM_BLOCK}"))
    folder.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_parquet(
        folder / "interactions.parquet"
    )
    pl.DataFrame(items, schema=["item_id", "title", "genre"], orient="row").write_csv(folder / "items.csv")
    (folder / "recsys.toml").write_text(CONFIG)
    return folder / "recsys.toml"
