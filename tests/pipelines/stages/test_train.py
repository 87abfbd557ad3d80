"""The stage on a small world: what it learns from, what it must not see, and where it may start."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipelines.context.run_context import RunContext
from pipelines.orchestration.stage_table import STAGES
from pipelines.prepare import stage as prepare
from pipelines.stages import train
from recsys.config.loading import load_config
from recsys.data.catalog import Catalog
from recsys.errors import InputError, StageError
from recsys.evaluation.metrics import VALIDATION_SCORE
from recsys.evaluation.protocol import PROTOCOL
from recsys.index.embeddings import Vectors
from recsys.release.formats import CATALOG, EMBEDDINGS, FEATURES, MANIFEST, TOWER
from tests import GOLDEN_RELEASES
from tests.e2e import world

GOLDEN = GOLDEN_RELEASES / "v2"
"""A release of the same world."""

SMALL = ["tower.dimension=8", "train.passes=2", "train.history_passes=0"]
MINUTE = 1 / 1_440
GLOBAL_TIME = [
    "evaluate.split=global_time",
    f"evaluate.test_days={MINUTE / 2}",
    f"evaluate.validation_days={MINUTE}",
]
"""Everybody touches an item a minute: the last one is held out for the test, the one before for validation."""


def prepared(folder: Path, *overrides: str) -> RunContext:
    context = RunContext.from_config(load_config(folder / "recsys.toml", [*SMALL, *overrides]))
    prepare.prepare(context.config, context.run, context.inputs, context.progress)
    return context


def moved(folder: Path, step: int) -> Path:
    """The world, with another item at one step of each user: of another block, so that nobody touched it."""
    world.write(folder)
    rows = pl.read_parquet(folder / "interactions.parquet")
    block, position = (pl.col("item_id").str.split("-").list.get(part).cast(pl.Int64) for part in (1, 2))
    other = pl.format("item-{}-{}", (block + 1) % world.BLOCKS, position)
    changed = pl.when(pl.col("timestamp") == 1_600_000_000 + 60 * step).then(other).otherwise("item_id")
    rows.with_columns(item_id=changed).write_parquet(folder / "interactions.parquet")
    return folder


def judged(folder: Path, rows: list[tuple[str, str, int]]) -> Path:
    """The world with pairs that people judged."""
    world.write(folder)
    frame = pl.DataFrame(rows, schema=["item_a", "item_b", "same"], orient="row")
    frame.write_csv(folder / "labeled.csv")
    config = folder / "recsys.toml"
    config.write_text(config.read_text().replace("[items]", 'labeled_pairs = "labeled.csv"\n\n[items]', 1))
    return folder


ACROSS = [(f"item-0-{p}", f"item-1-{p}", 1) for p in range(8)] + [(f"item-2-{p}", f"item-3-{p}", 1) for p in range(8)]
WITHIN = [(f"item-{b}-{p}", f"item-{b}-{(p + 1) % 8}", 0) for b in range(4) for p in range(8)]
"""People who see it the other way round than users who touch: what is touched together is not the same."""


def vectors_of(context: RunContext) -> Vectors:
    """The catalog through the tower that the stage left."""
    from recsys.features.encoding import Features
    from recsys.model import tower

    frame = Catalog.load(context.run.path(prepare.STAGE, CATALOG)).frame
    features = Features.load(context.run.path(train.STAGE, FEATURES))
    return tower.encoder(tower.load(context.run.path(train.STAGE, TOWER)), 64)(features.transform(frame))


def numbers(context: RunContext) -> dict[str, int]:
    ids = Catalog.load(context.run.path(prepare.STAGE, CATALOG)).item_ids
    return {item: number for number, item in enumerate(ids)}


# --- what the stage leaves


def test_the_manifest_tells_how_the_tower_came_to_be(tmp_path: Path) -> None:
    world.write(tmp_path)
    context = prepared(tmp_path, "train.history_passes=2")
    manifest = train.train(context.config, context.run, context.progress, context.tracking.metrics)
    assert json.loads(json.dumps(manifest)) == manifest
    assert 1 <= manifest["passes"]["pairs"] <= 2
    assert manifest["passes"]["histories"] in {0, 2}
    assert len(manifest["final_curve"]) == sum(manifest["passes"].values())
    assert 2 <= len(manifest["curve"]) <= 4
    assert all("validation_ndcg_at_20" in figures for figures in manifest["curve"])
    assert not any("validation_ndcg_at_20" in figures for figures in manifest["final_curve"])
    assert manifest["recency"] in PROTOCOL.recencies
    assert set(manifest["validation"]) == {"last_item", "history"}
    for figures in manifest["validation"].values():
        assert 0 < figures["ndcg_at_20"] < 1
    assert train.train(context.config, context.run, context.progress, context.tracking.metrics) == manifest


@pytest.mark.parametrize(("share", "kept"), [(1.01, 1), (0.99, 1), (0.9, 0)])
def test_passes_over_histories_are_dropped_where_they_are_clearly_worse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, kept: int
) -> None:
    """As if a pass over histories came to so much of the score before it."""
    from recsys.model import trainer as training

    world.write(tmp_path)
    context = prepared(tmp_path)
    look = training.Validation.figures
    scores: list[float] = []

    def figures(self: Any, vectors: Any) -> dict[str, float]:
        found = look(self, vectors)
        found[VALIDATION_SCORE] = scores[-1] * share if scores else found[VALIDATION_SCORE]
        scores.append(found[VALIDATION_SCORE])
        return found

    monkeypatch.setattr(training.Validation, "figures", figures)
    fit = train.fit_before("validation", context.config, context.run, {"pairs": 1, "histories": 1}, lambda *_: None)
    assert fit.passes == {"pairs": 1, "histories": kept}


def test_passes_over_histories_follow_those_over_pairs_and_move_the_tower(tmp_path: Path) -> None:
    world.write(tmp_path)
    context = prepared(tmp_path)
    seen: list[int] = []
    before = train.fit_before(
        "test", context.config, context.run, {"pairs": 1, "histories": 0}, lambda number, _: seen.append(number)
    )
    after = train.fit_before(
        "test", context.config, context.run, {"pairs": 1, "histories": 2}, lambda number, _: seen.append(number)
    )
    assert (before.passes, after.passes) == ({"pairs": 1, "histories": 0}, {"pairs": 1, "histories": 2})
    assert seen == [1, 1, 2, 3]
    assert (len(before.curve), len(after.curve)) == (1, 3)
    assert after.curve[0] == pytest.approx(before.curve[0])
    assert np.abs(after.vectors - before.vectors).max() > 1e-4


def test_who_never_touched_three_items_leaves_no_validation_and_no_recency(tmp_path: Path) -> None:
    world.write(tmp_path)
    rows = pl.read_parquet(tmp_path / "interactions.parquet")
    rows.filter(pl.col("timestamp") < 1_600_000_000 + 120).write_parquet(tmp_path / "interactions.parquet")
    manifest = train.train(prepared(tmp_path))
    assert (manifest["recency"], manifest["validation"]) == (None, {})
    assert manifest["passes"] == {"pairs": 2, "histories": 0}


# --- new items


def newcomers(folder: Path) -> Path:
    """The world, where nobody touched some items yet; whose genre tells their block, as that of the others."""
    world.write(folder)
    rows = pl.read_parquet(folder / "interactions.parquet")
    rows.filter(~pl.col("item_id").str.ends_with("-0")).write_parquet(folder / "interactions.parquet")
    return folder


def test_new_items_find_their_place_and_known_ones_keep_theirs(tmp_path: Path) -> None:
    newcomers(tmp_path)
    passes = {"pairs": 3, "histories": 1}
    seen: list[int] = []
    nights = [prepared(tmp_path, "train.learning_rate=0.03", f"train.new_items={used}") for used in ("true", "false")]
    fits = [
        train.fit_before(
            "test",
            context.config,
            context.run,
            passes,
            lambda *_: None,
            on_new_pass=lambda number, _: seen.append(number),
        )
        for context in nights
    ]
    assert seen == [1, 2, 3, 4, 5, 6]
    catalog = Catalog.load(nights[0].run.path(prepare.STAGE, CATALOG))
    is_new = catalog.frame.select(pl.col("item_id").str.ends_with("-0") | (pl.col("item_id") == world.NEW_ITEM))
    is_new = is_new["item_id"].to_numpy()
    assert is_new.sum() == world.BLOCKS + 1
    placed, unplaced = (fit.vectors for fit in fits)
    np.testing.assert_array_equal(placed[~is_new], unplaced[~is_new])
    assert np.abs(placed[is_new] - unplaced[is_new]).max() > 1e-2
    genre = catalog.frame["genre"].to_numpy()
    similarity = placed[is_new] @ placed[~is_new].T
    assert (genre[~is_new][similarity.argmax(axis=1)] == genre[is_new]).all()


def test_without_features_there_is_nothing_to_place_new_items_by(tmp_path: Path) -> None:
    context = prepared(newcomers(tmp_path), "items.categorical=[]")
    passes = {"pairs": 1, "histories": 0}
    fit = train.fit_before(
        "test", context.config, context.run, passes, lambda *_: None, on_new_pass=lambda *_: pytest.fail("a pass")
    )
    assert list(fit.tower.input) == ["id"]


def test_new_items_are_in_nobodys_way_when_training_stops(tmp_path: Path) -> None:
    """They look like their block, and would stand among its nearest: the same catalog without them."""
    nights = []
    for name in ("with", "without"):
        folder = newcomers(tmp_path / name)
        if name == "without":
            items = pl.read_csv(folder / "items.csv")
            touched = pl.read_parquet(folder / "interactions.parquet")["item_id"]
            items.filter(pl.col("item_id").is_in(touched.implode())).write_csv(folder / "items.csv")
        nights.append(prepared(folder))
    most = {"pairs": 2, "histories": 1}
    one, other = (
        train.fit_before("validation", context.config, context.run, most, lambda *_: None) for context in nights
    )
    assert len(one.vectors) > len(other.vectors)
    assert one.recency == other.recency
    for with_new, without in zip(one.curve, other.curve, strict=True):
        assert with_new == pytest.approx(without)


def test_placing_new_items_goes_on_after_a_kill(tmp_path: Path) -> None:
    context = prepared(newcomers(tmp_path))
    passes = {"pairs": 3, "histories": 1}
    whole = train.fit_before("test", context.config, context.run, passes, lambda *_: None)
    done: list[tuple[str, int]] = []

    def killed(number: int, _: dict[str, float]) -> None:
        done.append(("new", number))
        if len(done) == 5:
            raise KeyboardInterrupt

    def fit() -> train.Fitted:
        return train.fit_before(
            "test", context, passes, lambda number, _: done.append(("known", number)),
            on_new_pass=killed, checkpoints=tmp_path,
        )  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        fit()
    resumed = fit()
    assert done == [("known", number) for number in range(1, 5)] + [("new", number) for number in range(1, 7)]
    np.testing.assert_array_equal(resumed.vectors, whole.vectors)
    for weight, same in zip(whole.tower.get_weights(), resumed.tower.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, same)


# --- what it must not see


@pytest.mark.parametrize("options", [["train.history_passes=1"], GLOBAL_TIME], ids=["leave one out", "global time"])
def test_nothing_at_or_after_the_test_target_has_a_part_in_the_tower(tmp_path: Path, options: list[str]) -> None:
    """The same world with other test targets: the same passes, recency, figures and tower."""
    world.write(tmp_path / "one")
    folders = (tmp_path / "one", moved(tmp_path / "other", step=world.TOUCHED - 1))
    nights = [prepared(folder, *options) for folder in folders]
    assert nights[0].run.run_id != nights[1].run.run_id
    one, other = (train.load_split(context.run).holdout("test", 1_000) for context in nights)
    assert (one.queries == other.queries).all()
    assert (one.targets != other.targets).all()
    manifests = [
        train.train(context.config, context.run, context.progress, context.tracking.metrics) for context in nights
    ]
    assert manifests[0] == manifests[1]
    np.testing.assert_array_equal(vectors_of(nights[0]), vectors_of(nights[1]))


def test_what_lies_before_the_test_target_has_a_part_in_the_tower(tmp_path: Path) -> None:
    """Else the proof above would hold for a tower that learns nothing."""
    world.write(tmp_path / "one")
    nights = [prepared(tmp_path / "one"), prepared(moved(tmp_path / "other", step=world.TOUCHED - 2))]
    fits = [
        train.fit_before("test", context.config, context.run, {"pairs": 1, "histories": 0}, lambda *_: None)
        for context in nights
    ]
    assert np.abs(fits[0].vectors - fits[1].vectors).max() > 1e-4


@pytest.mark.parametrize("split", [[], GLOBAL_TIME], ids=["leave one out", "global time"])
def test_nothing_at_or_after_the_validation_target_has_a_part_in_tuning(tmp_path: Path, split: list[str]) -> None:
    """Asked without look-ups, which are all that may know the targets."""
    world.write(tmp_path / "one")
    other = moved(moved(tmp_path / "other", step=world.TOUCHED - 1), step=world.TOUCHED - 2)
    fits = []
    for folder in (tmp_path / "one", other):
        context = prepared(folder, "train.validation_users=1", *split)
        fits.append(
            train.fit_before("validation", context.config, context.run, {"pairs": 1, "histories": 0}, lambda *_: None)
        )
    np.testing.assert_array_equal(fits[0].vectors, fits[1].vectors)


# --- pairs that people judged


@pytest.mark.parametrize("loss", ["contrastive", "triplet"])
def test_what_people_judged_is_learned_and_what_was_touched_is_not(tmp_path: Path, loss: str) -> None:
    folder = judged(tmp_path / "one", ACROSS + WITHIN)
    options = [f"train.loss={loss}", "train.passes=15", "train.batch_size=8", "train.learning_rate=0.02"]
    context = prepared(folder, *options, "items.categorical=[]")
    passes = {"pairs": 15, "histories": 3}
    fit = train.fit_before("test", context.config, context.run, passes, lambda *_: None)
    assert fit.passes == {"pairs": 15, "histories": 0}
    number = numbers(context)

    def similarity(rows: list[tuple[str, str, int]]) -> float:
        return float(np.mean([fit.vectors[number[a]] @ fit.vectors[number[b]] for a, b, _ in rows]))

    assert similarity(ACROSS) > similarity(WITHIN) + 0.3

    other = judged(tmp_path / "other", ACROSS + WITHIN)
    world_of_others = pl.read_parquet(moved(tmp_path / "moved", step=1) / "interactions.parquet")
    world_of_others.write_parquet(other / "interactions.parquet")
    again = train.fit_before("test", prepared(other, *options, "items.categorical=[]"), passes, lambda *_: None)
    np.testing.assert_array_equal(fit.vectors, again.vectors)


def test_of_judged_pairs_only_the_part_to_train_on_is_trained_on(tmp_path: Path) -> None:
    """Other judgments in the held-out part: the same tower."""
    rows = ACROSS + WITHIN
    context = prepared(judged(tmp_path / "one", rows), "train.loss=contrastive")
    _, held_out = train.load_labeled(context.run, context.config.train.seed)
    ids = list(numbers(context))
    held = {(ids[a], ids[b]) for a, b in zip(held_out.first.tolist(), held_out.second.tolist(), strict=True)}
    assert 0 < len(held) < len(rows)
    turned = [(a, b, 1 - same if (a, b) in held else same) for a, b, same in rows]
    other = prepared(judged(tmp_path / "other", turned), "train.loss=contrastive")
    passes = {"pairs": 1, "histories": 0}
    one, two = (train.fit_before("test", n, passes, lambda *_: None) for n in (context, other))
    np.testing.assert_array_equal(one.vectors, two.vectors)


def test_judged_pairs_of_which_none_is_the_same_are_told(tmp_path: Path) -> None:
    context = prepared(judged(tmp_path, WITHIN), "train.loss=contrastive")
    with pytest.raises(StageError, match="at least one labeled pair that is the same"):
        train.train(context.config, context.run, context.progress, context.tracking.metrics)
    assert not context.run.done(train.STAGE)


# --- where it may start


def warm(folder: Path, release: Path, *overrides: str) -> RunContext:
    world.write(folder)
    dimension = json.loads((GOLDEN / MANIFEST).read_text())["dimension"]
    return prepared(folder, f"data.warm_start={release}", f"tower.dimension={dimension}", *overrides)


def test_a_warm_start_goes_on_from_the_earlier_tower(tmp_path: Path) -> None:
    """With a learning rate of next to nothing items with interactions stay there; a new one has other encoders now."""
    context = warm(tmp_path, GOLDEN, "train.learning_rate=1e-12")
    fit = train.fit_before("test", context.config, context.run, {"pairs": 1, "histories": 0}, lambda *_: None)
    new = numbers(context)[world.NEW_ITEM]
    earlier = np.load(GOLDEN / EMBEDDINGS)
    np.testing.assert_allclose(np.delete(fit.vectors, new, axis=0), np.delete(earlier, new, axis=0), atol=1e-4)


def test_a_run_is_another_with_a_warm_start_and_with_another_release(tmp_path: Path) -> None:
    cold = RunContext.from_config(load_config(world.write(tmp_path))).run.run_id
    copy = tmp_path / "release"
    shutil.copytree(GOLDEN, copy)

    def run_id() -> str:
        return RunContext.from_config(load_config(tmp_path / "recsys.toml", [f"data.warm_start={copy}"])).run.run_id

    first = run_id()
    assert run_id() == first != cold
    manifest: dict[str, Any] = json.loads((copy / MANIFEST).read_text())
    manifest["files"][TOWER]["sha256"] = "0" * 64
    (copy / MANIFEST).write_text(json.dumps(manifest))
    assert run_id() not in {first, cold}


def test_a_folder_that_is_no_release_is_no_start(tmp_path: Path) -> None:
    world.write(tmp_path)
    for name, content in (("empty", None), ("other", "{}"), ("broken", "{")):
        folder = tmp_path / name
        folder.mkdir()
        if content:
            (folder / MANIFEST).write_text(content)
        with pytest.raises(InputError, match=r"data\.warm_start must be the folder of a release") as caught:
            RunContext.from_config(load_config(tmp_path / "recsys.toml", [f"data.warm_start={folder}"]))
        assert str(folder) in str(caught.value)


@pytest.mark.parametrize("damaged", [TOWER, FEATURES])
def test_a_damaged_release_is_no_start(tmp_path: Path, damaged: str) -> None:
    copy = tmp_path / "release"
    shutil.copytree(GOLDEN, copy)
    (copy / damaged).write_bytes((copy / damaged).read_bytes()[:-1])
    context = warm(tmp_path / "world", copy)
    with pytest.raises(InputError, match=rf"data\.warm_start must be .* bytes of {damaged}"):
        train.train(context.config, context.run, context.progress, context.tracking.metrics)
    assert not context.run.done(train.STAGE)


@pytest.mark.parametrize("setting", ["tower.dimension=4", "tower.distance=euclidean"])
def test_a_release_of_another_shape_is_no_start(tmp_path: Path, setting: str) -> None:
    context = warm(tmp_path, GOLDEN, setting)
    with pytest.raises(InputError, match=r"tower\.dimension and tower\.distance .* leave data\.warm_start out"):
        train.train(context.config, context.run, context.progress, context.tracking.metrics)


# --- what cannot be trained


def test_without_prepare_the_stage_to_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="Run: recsys prepare"):
        STAGES["train"](RunContext.from_config(load_config(world.write(tmp_path))))


def test_a_log_without_a_pair_is_told(tmp_path: Path) -> None:
    world.write(tmp_path)
    rows = pl.read_parquet(tmp_path / "interactions.parquet")
    rows.filter(pl.col("timestamp") == 1_600_000_000).write_parquet(tmp_path / "interactions.parquet")
    with pytest.raises(StageError, match="pair"):
        train.train(prepared(tmp_path))
