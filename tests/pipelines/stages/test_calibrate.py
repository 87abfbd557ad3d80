"""The stage on a world whose blocks are known, with vectors put there by hand."""

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


def embedded(folder: Path, *overrides: str) -> RunContext:
    """A night whose items point where their block does, more or less."""
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
def test_separates_items_of_one_block_from_others(tmp_path: Path, distance: str) -> None:
    context = embedded(tmp_path, f"tower.distance={distance}")
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


def people(folder: Path, pairs: int) -> list[str]:
    """A world with judged pairs, half of them within a block; the override that names them."""
    world.write(folder)
    rng = np.random.default_rng(1)
    rows = []
    for number in range(pairs):
        (one, other), (place, shift) = rng.choice(world.BLOCKS, 2, replace=False), rng.integers(1, 8, 2)
        same = number % 2
        second = f"item-{one if same else other}-{(place + shift) % 8}"
        rows.append((f"item-{one}-{place}", second, same))
    frame = pl.DataFrame(rows, schema=["item_a", "item_b", "same"], orient="row")
    frame.filter(pl.col("item_a") != pl.col("item_b")).write_csv(folder / "labeled.csv")
    return [f"data.labeled_pairs={folder / 'labeled.csv'}"]


def test_uses_the_held_out_labeled_pairs(tmp_path: Path) -> None:
    """And none of those that training saw."""
    context = embedded(tmp_path, *people(tmp_path, 4_000))
    judged = calibration_pairs(context.config, context.run)
    training, held_out = train.load_labeled(context.run, context.config.train.seed)
    assert sorted(zip(*(part.tolist() for part in judged), strict=True)) == sorted(
        zip(held_out.first.tolist(), held_out.second.tolist(), held_out.same.tolist(), strict=True)
    )
    assert 200 < len(judged.same) < len(training) / 5
    manifest = calibrate(context.config, context.run, context.progress)
    assert (manifest["same"], manifest["different"]) == (judged.same.sum(), (~judged.same).sum())
    assert manifest["auc"] > 0.9


def test_limits_the_pairs_of_each_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.stages.calibrate.MAX_PAIRS", 30)
    context = embedded(tmp_path, *people(tmp_path, 4_000))
    judged = calibration_pairs(context.config, context.run)
    assert (judged.same.sum(), (~judged.same).sum()) == (30, 30)
    again = calibration_pairs(context.config, context.run)
    assert (judged.first == again.first).all()


def test_too_few_labeled_pairs_are_not_an_error(tmp_path: Path) -> None:
    context = embedded(tmp_path, *people(tmp_path, 20))
    manifest = calibrate(context.config, context.run, context.progress)
    assert "needs 20 held-out pairs that belong together, and as many that do not" in manifest["reason"]


def test_too_few_held_out_pairs_are_not_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.stages.calibrate.MAX_PAIRS", 19)
    context = embedded(tmp_path)
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
