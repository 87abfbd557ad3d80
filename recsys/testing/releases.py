"""Small releases with random vectors, for tests and benchmarks of queries and of the service."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from recsys.config.sections import Config, DataConfig, IndexConfig
from recsys.config.senses import Sense
from recsys.data import followers, item_users
from recsys.data.catalog import Catalog
from recsys.evaluation import calibration
from recsys.evaluation.calibration import Calibration, Estimate, Threshold, ThresholdMetrics
from recsys.index import annoy_index, embeddings, neighbors
from recsys.index.distances import COSINE
from recsys.index.shards import INDEX_FILE, plan_shards
from recsys.release import formats
from recsys.release.manifest import SpaceEntry
from recsys.release.writer import write_release

DIMENSION = 5

WriteRelease = Callable[..., Path]
"""Write a release of the given item ids; see `release_writer`."""


def release_writer(tmp_path: Path) -> WriteRelease:
    """Return a function that writes a complete release of items with random vectors.

    `spaces` are the senses with an embedding space, each with other vectors. The files of the tower and the features
    are placeholders that queries do not open. `columns` are further columns of the catalog, or `interactions` instead
    of 1. In the calibration, the probability is one half at a similarity of 0.1, and no threshold reaches a precision
    of 0.95. Most items have up to ten random followers, of 40 users.
    """
    share = Estimate(value=0.75, low=0.5, high=0.875)
    measured = ThresholdMetrics(precision=share, recall=share, false_positive_rate=share, accuracy=share)
    thresholds: list[tuple[Literal["probability", "precision", "false_positive_rate"], float, float]] = [
        ("probability", 0.5, 0.1),
        ("precision", 0.9, 0.5),
        ("false_positive_rate", 0.05, 0.625),
    ]
    small_calibration = Calibration(
        similarities=(-0.5, 0.0, 0.5),
        probabilities=(0.125, 0.375, 1.0),
        fitted_pairs=40,
        measured_pairs=42,
        expected_calibration_error=share,
        auc=0.875,
        thresholds=(
            *(Threshold(rule=r, target=t, similarity=s, measured=measured) for r, t, s in thresholds),
            Threshold(rule="precision", target=0.95, similarity=None, measured=None),
        ),
    )

    def write(
        item_ids: Sequence[str],
        *,
        calibrated: bool = True,
        release_id: str = "0123456789ab",
        created_at: str = "2024-01-31T02:00:00+00:00",
        spaces: Sequence[Sense] = ("next",),
        **columns: pl.Expr | pl.Series,
    ) -> Path:
        rng = np.random.default_rng([len(item_ids), *release_id.encode()])
        frame = pl.DataFrame({"item_id": item_ids, "title": [f"Title of {item}" for item in item_ids]})
        catalog = Catalog(frame.with_columns(**({"interactions": pl.lit(1, pl.Int64)} | columns)))
        sources = {name: tmp_path / f"source-{name}" for name in formats.SHARED_FILES}
        catalog.save(sources[formats.CATALOG])
        item_users.build([], len(item_ids), sources[formats.ITEM_USERS])
        _save_followers(len(item_ids), tmp_path / "followers.parquet", sources[formats.FOLLOWERS])
        sources[formats.EVALUATION].write_text("{}")
        entries = {}
        for sense in spaces:
            vectors = rng.normal(size=(len(item_ids), DIMENSION)).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            source = {name: tmp_path / f"source-{sense}-{name}" for name in (*formats.SPACE_FILES, INDEX_FILE)}
            embeddings.save(vectors, source[formats.EMBEDDINGS])
            built = annoy_index.build(vectors, IndexConfig(n_trees=10), source[INDEX_FILE])
            neighbors.save_exact(vectors, source[formats.NEIGHBORS], COSINE)
            calibration.save(
                small_calibration if calibrated else None, source[formats.CALIBRATION], "too few held-out pairs"
            )
            for placeholder in (formats.TOWER, formats.FEATURES):
                source[placeholder].write_text("{}")
            entries[sense] = SpaceEntry(
                index=tuple(plan_shards(len(item_ids), len(item_ids))),
                search_k=built.search_k,
                index_recall=1.0,
                neighbors_recall=1.0,
                recency=0.5,
            )
            sources |= {f"{sense}/{name}": path for name, path in source.items()}
        manifest = {
            "release_id": release_id,
            "created_at": created_at,
            "num_items": len(item_ids),
            "dimension": DIMENSION,
            "metric": "angular",
            "distance": "cosine",
            "n_trees": 10,
            "seed": 1,
            "n_jobs": 1,
            "recall_k": 20,
            "spaces": entries,
            "catalog_fingerprint": catalog.fingerprint,
            "data_snapshot": "0" * 64,
            "code_version": "test",
            "parent_release": None,
            "mlflow_run": None,
            "config": Config(data=DataConfig(interactions="log.csv")).shaping(),
        }
        return write_release(sources, manifest, tmp_path / "releases")

    return write


def _save_followers(num_items: int, part: Path, path: Path) -> None:
    rng = np.random.default_rng(num_items)
    num_users = 40
    users = rng.integers(0, num_users + 1, num_items)
    item, follower = rng.integers(0, num_items, (2, 10 * num_items), np.int32)
    count = np.minimum(rng.integers(1, num_users, len(item)), np.minimum(users[item], users[follower]))
    rows = pl.DataFrame({"item": item, "follower": follower, "users": count}).unique(["item", "follower"])
    counts = rows.filter(pl.col("item") != pl.col("follower"), pl.col("users") > 0)
    followers.group_by_item(counts, users, 0).write_parquet(part)
    followers.save(num_users, [part], path)
