"""The calibrate stage on synthetic data with known blocks and constructed embeddings."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipelines.context.run_context import RunContext
from pipelines.prepare import stage as prepare
from pipelines.stages import embed, train
from pipelines.stages.calibrate import STAGE, calibrate, calibration_pairs
from recsys.config.loading import load_config
from recsys.data.catalog import Catalog
from recsys.errors import StageError
from recsys.evaluation import calibration
from recsys.release.formats import CALIBRATION, CATALOG, EMBEDDINGS
from recsys.testing import world


def embedded_run(folder: Path, *overrides: str) -> RunContext:
    """A run whose items have the direction of their block, with noise."""
    context = RunContext.from_config(load_config(world.write(folder), overrides))
    prepare.prepare(context.config, context.run, context.inputs, context.progress)
    items = Catalog.load(context.run.path(prepare.STAGE, CATALOG)).item_ids
    rng = np.random.default_rng(0)
    blocks = [int(item.split("-")[1]) if item.startswith("item-") else world.NEW_ITEM_BLOCK for item in items]
    vectors = np.eye(world.BLOCKS)[blocks] + rng.normal(0, 0.3, (len(items), world.BLOCKS))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with context.run.stage(embed.STAGE) as (stage, _):
        np.save(stage / EMBEDDINGS, vectors.astype(np.float32))
    return context


@pytest.mark.parametrize("distance", ["cosine", "euclidean", "manhattan"])
def test_calibration_separates_pairs_within_a_block_from_other_pairs(tmp_path: Path, distance: str) -> None:
    context = embedded_run(tmp_path, f"tower.distance={distance}")
    manifest = calibrate(context.config, context.run, context.progress)
    users = world.BLOCKS * world.USERS_A_BLOCK
    assert (manifest["same"], manifest["different"]) == (users, users)
    assert manifest["fitted_pairs"] + manifest["measured_pairs"] == 2 * users
    assert manifest["auc"] > 0.9
    fitted = calibration.load(context.run.path(STAGE, CALIBRATION))
    assert fitted is not None
    assert fitted.model_dump(mode="json").items() >= {k: manifest[k] for k in ("thresholds", "auc")}.items()
    assert json.loads(json.dumps(manifest)) == manifest
    assert calibrate(context.config, context.run, context.progress) == manifest


def write_labeled_pairs(folder: Path, num_pairs: int) -> list[str]:
    """Write the test world with labeled pairs, half of them within a block; return the override that names them."""
    world.write(folder)
    rng = np.random.default_rng(1)
    rows = []
    for number in range(num_pairs):
        (block, other_block), (position, shift) = rng.choice(world.BLOCKS, 2, replace=False), rng.integers(1, 8, 2)
        same = number % 2
        second = f"item-{block if same else other_block}-{(position + shift) % 8}"
        rows.append((f"item-{block}-{position}", second, same))
    frame = pl.DataFrame(rows, schema=["item_a", "item_b", "same"], orient="row")
    frame.filter(pl.col("item_a") != pl.col("item_b")).write_csv(folder / "labeled.csv")
    return [f"data.labeled_pairs={folder / 'labeled.csv'}"]


def test_uses_only_held_out_labeled_pairs(tmp_path: Path) -> None:
    context = embedded_run(tmp_path, *write_labeled_pairs(tmp_path, 4_000))
    pairs = calibration_pairs(context.config, context.run)
    training, held_out = train.load_labeled(context.run, context.config.train.seed)
    assert sorted(zip(*(part.tolist() for part in pairs), strict=True)) == sorted(
        zip(held_out.first.tolist(), held_out.second.tolist(), held_out.same.tolist(), strict=True)
    )
    assert 200 < len(pairs.same) < len(training) / 5
    manifest = calibrate(context.config, context.run, context.progress)
    assert (manifest["same"], manifest["different"]) == (pairs.same.sum(), (~pairs.same).sum())
    assert manifest["auc"] > 0.9


def test_limits_the_pairs_of_each_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.stages.calibrate.MAX_PAIRS", 30)
    context = embedded_run(tmp_path, *write_labeled_pairs(tmp_path, 4_000))
    pairs = calibration_pairs(context.config, context.run)
    assert (pairs.same.sum(), (~pairs.same).sum()) == (30, 30)
    repeated = calibration_pairs(context.config, context.run)
    assert (pairs.first == repeated.first).all()


def test_too_few_labeled_pairs_are_not_an_error(tmp_path: Path) -> None:
    context = embedded_run(tmp_path, *write_labeled_pairs(tmp_path, 20))
    manifest = calibrate(context.config, context.run, context.progress)
    assert "needs 20 held-out pairs that belong together, and as many that do not" in manifest["reason"]


def test_too_few_held_out_pairs_are_not_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.stages.calibrate.MAX_PAIRS", 19)
    context = embedded_run(tmp_path)
    manifest = calibrate(context.config, context.run, context.progress)
    assert (
        "needs 20 held-out pairs that belong together, and as many that do not. Received: 19 and 19."
        in manifest["reason"]
    )
    assert calibration.load(context.run.path(STAGE, CALIBRATION)) is None
    assert manifest["reason"] in context.run.path(STAGE, CALIBRATION).read_text()


def test_requires_the_embed_stage(tmp_path: Path) -> None:
    context = RunContext.from_config(load_config(world.write(tmp_path)))
    with pytest.raises(StageError, match="Run: recsys embed"):
        calibrate(context.config, context.run, context.progress)
