"""The train stage on a small world: what it learns from, what must not affect it, and what it may start from."""

import json
import shutil
from collections.abc import Collection
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
from recsys.data.splits import held_out_users
from recsys.errors import InputError, StageError
from recsys.evaluation.metrics import VALIDATION_SCORE
from recsys.evaluation.protocol import PROTOCOL
from recsys.index.embeddings import Vectors
from recsys.model.fit_plan import FitPlan, Passes, final_plan, validation_plan
from recsys.release.formats import CATALOG, EMBEDDINGS, FEATURES, MANIFEST, TOWER
from recsys.testing import world
from tests import GOLDEN_RELEASES

GOLDEN = GOLDEN_RELEASES / "v2"
"""A release of the same catalog."""

SMALL = ["tower.dimension=8", "train.passes=2", "train.history_passes=0"]
MINUTE = 1 / 1_440
GLOBAL_TIME = [
    "evaluate.split=global_time",
    f"evaluate.test_days={MINUTE / 2}",
    f"evaluate.validation_days={MINUTE}",
]
"""Each user has an interaction per minute: the last is held out for the test, the one before it for validation."""


def prepared_run(folder: Path, *overrides: str) -> RunContext:
    context = RunContext.from_config(load_config(folder / "recsys.toml", [*SMALL, *overrides]))
    prepare.prepare(context.config, context.run, context.inputs, context.progress)
    return context


def write_changed_world(folder: Path, step: int, users: Collection[str] | None = None) -> Path:
    """Write the test world with an item of another block at one step of each user, or of some users."""
    world.write(folder)
    rows = pl.read_parquet(folder / "interactions.parquet")
    block, position = (pl.col("item_id").str.split("-").list.get(part).cast(pl.Int64) for part in (1, 2))
    other = pl.format("item-{}-{}", (block + 1) % world.BLOCKS, position)
    is_changed = pl.col("timestamp") == 1_600_000_000 + 60 * step
    if users is not None:
        is_changed &= pl.col("user_id").is_in(users)
    changed = pl.when(is_changed).then(other).otherwise("item_id")
    rows.with_columns(item_id=changed).write_parquet(folder / "interactions.parquet")
    return folder


def write_labeled_world(folder: Path, rows: list[tuple[str, str, int]]) -> Path:
    """Write the test world with labeled pairs."""
    world.write(folder)
    frame = pl.DataFrame(rows, schema=["item_a", "item_b", "same"], orient="row")
    frame.write_csv(folder / "labeled.csv")
    config = folder / "recsys.toml"
    config.write_text(config.read_text().replace("[items]", 'labeled_pairs = "labeled.csv"\n\n[items]', 1))
    return folder


ACROSS = [(f"item-0-{p}", f"item-1-{p}", 1) for p in range(8)] + [(f"item-2-{p}", f"item-3-{p}", 1) for p in range(8)]
WITHIN = [(f"item-{b}-{p}", f"item-{b}-{(p + 1) % 8}", 0) for b in range(4) for p in range(8)]
"""Labels opposite to the interactions: items of a block are labeled as different."""


def embeddings_of(context: RunContext) -> Vectors:
    """Return the embeddings of the catalog by the tower that the stage saved."""
    from recsys.features.encoding import Features
    from recsys.model import tower

    frame = Catalog.load(context.run.path(prepare.STAGE, CATALOG)).frame
    features = Features.load(context.run.path(train.STAGE, FEATURES))
    return tower.make_encoder(tower.load(context.run.path(train.STAGE, TOWER)), 64)(features.transform(frame))


def item_numbers(context: RunContext) -> dict[str, int]:
    ids = Catalog.load(context.run.path(prepare.STAGE, CATALOG)).item_ids
    return {item_id: number for number, item_id in enumerate(ids)}


def fit(context: RunContext, plan: FitPlan, on_pass: Any = lambda *_: None, **options: Any) -> Any:
    return train.fit_tower(context.config, context.run, plan, on_pass, **options)


def run_stage(context: RunContext) -> dict[str, Any]:
    return train.train(context.config, context.run, context.progress, context.tracking.metrics)


# --- manifest


@pytest.mark.slow
def test_manifest_has_passes_curves_and_validation_figures(tmp_path: Path) -> None:
    world.write(tmp_path)
    context = prepared_run(tmp_path, "train.history_passes=2")
    manifest = run_stage(context)
    assert json.loads(json.dumps(manifest)) == manifest
    assert 1 <= manifest["passes"]["pairs"] <= 2
    assert manifest["passes"]["histories"] in {0, 2}
    assert len(manifest["final_curve"]) == sum(manifest["passes"].values())
    assert 2 <= len(manifest["curve"]) <= 4
    assert all("validation_ndcg_at_20" in figures for figures in manifest["curve"])
    assert not any("validation_ndcg_at_20" in figures for figures in manifest["final_curve"])
    assert manifest["recency"] in PROTOCOL.recencies
    assert (manifest["evidence_items"], manifest["likeness"]) == (35, {})
    assert set(manifest["validation"]) == {"last_item", "history"}
    for figures in manifest["validation"].values():
        assert 0 < figures["ndcg_at_20"] < 1
    assert run_stage(context) == manifest


@pytest.mark.slow
@pytest.mark.parametrize(("share", "passes"), [(1.01, 1), (0.99, 1), (0.9, 0)])
def test_history_phase_is_undone_if_its_score_is_clearly_worse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, passes: int
) -> None:
    """The score after the history phase is replaced by a share of the score before it."""
    from recsys.model.validation import Validation

    world.write(tmp_path)
    context = prepared_run(tmp_path, "train.passes=1", "train.history_passes=1")
    evaluate = Validation.evaluate
    scores: list[float] = []

    def evaluate_with_share(self: Any, embeddings: Any) -> dict[str, float]:
        figures = evaluate(self, embeddings)
        figures[VALIDATION_SCORE] = scores[-1] * share if scores else figures[VALIDATION_SCORE]
        scores.append(figures[VALIDATION_SCORE])
        return figures

    monkeypatch.setattr(Validation, "evaluate", evaluate_with_share)
    assert fit(context, validation_plan(context.config)).passes == (1, passes)


@pytest.mark.slow
def test_history_phase_follows_the_pair_phase_and_changes_the_tower(tmp_path: Path) -> None:
    world.write(tmp_path)
    context = prepared_run(tmp_path)
    reported: list[tuple[str, int]] = []
    before, after = (
        fit(context, final_plan(context.config, passes), lambda phase, number, _: reported.append((phase, number)))
        for passes in (Passes(1, 0), Passes(1, 2))
    )
    assert (before.passes, after.passes) == ((1, 0), (1, 2))
    expected = [("pairs", 1), ("pairs", 1), ("histories", 2), ("histories", 3)]
    assert [entry for entry in reported if entry[0] != "new_items"] == expected
    assert (len(before.curve), len(after.curve)) == (1, 3)
    assert after.curve[0] == pytest.approx(before.curve[0])
    assert np.abs(after.embeddings - before.embeddings).max() > 1e-4


@pytest.mark.slow
def test_users_with_fewer_than_three_interactions_give_no_validation_and_no_recency(tmp_path: Path) -> None:
    world.write(tmp_path)
    rows = pl.read_parquet(tmp_path / "interactions.parquet")
    rows.filter(pl.col("timestamp") < 1_600_000_000 + 120).write_parquet(tmp_path / "interactions.parquet")
    manifest = run_stage(prepared_run(tmp_path))
    assert (manifest["recency"], manifest["validation"]) == (None, {})
    assert manifest["passes"] == {"pairs": 2, "histories": 0}


# --- new items


def with_new_items(folder: Path) -> Path:
    """Write the test world without the interactions of one item per block."""
    world.write(folder)
    rows = pl.read_parquet(folder / "interactions.parquet")
    rows.filter(~pl.col("item_id").str.ends_with("-0")).write_parquet(folder / "interactions.parquet")
    return folder


@pytest.mark.slow
def test_new_items_are_embedded_near_their_block_and_other_items_do_not_change(tmp_path: Path) -> None:
    with_new_items(tmp_path)
    reported: list[tuple[str, int]] = []
    contexts = [
        prepared_run(tmp_path, "train.learning_rate=0.03", f"train.new_items={flag}") for flag in ("true", "false")
    ]
    fitted, without = (
        fit(
            context, final_plan(context.config, Passes(3, 1)), lambda phase, number, _: reported.append((phase, number))
        )
        for context in contexts
    )
    assert [number for phase, number in reported if phase == "new_items"] == [5, 6, 7, 8, 9, 10]
    catalog = Catalog.load(contexts[0].run.path(prepare.STAGE, CATALOG))
    is_new = catalog.frame.select(pl.col("item_id").str.ends_with("-0") | (pl.col("item_id") == world.NEW_ITEM))
    is_new = is_new["item_id"].to_numpy()
    assert is_new.sum() == world.BLOCKS + 1
    np.testing.assert_array_equal(fitted.embeddings[~is_new], without.embeddings[~is_new])
    assert np.abs(fitted.embeddings[is_new] - without.embeddings[is_new]).max() > 1e-2
    genre = catalog.frame["genre"].to_numpy()
    similarity = fitted.embeddings[is_new] @ fitted.embeddings[~is_new].T
    assert (genre[~is_new][similarity.argmax(axis=1)] == genre[is_new]).all()


def test_new_item_phase_is_omitted_without_features(tmp_path: Path) -> None:
    context = prepared_run(with_new_items(tmp_path), "items.categorical=[]")
    phases: set[str] = set()
    fitted = fit(context, final_plan(context.config, Passes(1, 0)), lambda phase, *_: phases.add(phase))
    assert phases == {"pairs"}
    assert list(fitted.tower.input) == ["id"]


@pytest.mark.slow
def test_validation_ignores_new_items(tmp_path: Path) -> None:
    """New items are near their block, but the metrics equal those of a catalog without new items."""
    contexts = []
    for name in ("with", "without"):
        folder = with_new_items(tmp_path / name)
        if name == "without":
            items = pl.read_csv(folder / "items.csv")
            interacted = pl.read_parquet(folder / "interactions.parquet")["item_id"]
            items.filter(pl.col("item_id").is_in(interacted.implode())).write_csv(folder / "items.csv")
        contexts.append(prepared_run(folder, "train.history_passes=1"))
    with_new, without = (fit(context, validation_plan(context.config)) for context in contexts)
    assert len(with_new.embeddings) > len(without.embeddings)
    assert with_new.recency == without.recency
    for figures, expected in zip(with_new.curve, without.curve, strict=True):
        assert figures == pytest.approx(expected)


@pytest.mark.slow
def test_interrupted_new_item_phase_is_resumed(tmp_path: Path) -> None:
    context = prepared_run(with_new_items(tmp_path))
    plan = final_plan(context.config, Passes(3, 1))
    uninterrupted = fit(context, plan)
    done: list[tuple[str, int]] = []

    def on_pass(phase: str, number: int, _: dict[str, float]) -> None:
        done.append((phase, number))
        if len(done) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(context, plan, on_pass, checkpoints=tmp_path)
    resumed = fit(context, plan, on_pass, checkpoints=tmp_path)
    phases = ["pairs", "pairs", "pairs", "histories", *["new_items"] * 6]
    assert done == [(phase, number) for number, phase in enumerate(phases, start=1)]
    np.testing.assert_array_equal(resumed.embeddings, uninterrupted.embeddings)
    for weight, expected in zip(resumed.tower.get_weights(), uninterrupted.tower.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, expected)


# --- held-out interactions


@pytest.mark.slow
@pytest.mark.parametrize("options", [["train.history_passes=1"], GLOBAL_TIME], ids=["leave one out", "global time"])
def test_interactions_at_or_after_the_test_target_do_not_affect_the_tower(tmp_path: Path, options: list[str]) -> None:
    """With other test targets, the passes, the recency, the metrics and the tower are the same."""
    world.write(tmp_path / "one")
    folders = (tmp_path / "one", write_changed_world(tmp_path / "other", step=world.ITEMS_A_USER - 1))
    contexts = [prepared_run(folder, *options) for folder in folders]
    assert contexts[0].run.run_id != contexts[1].run.run_id
    one, other = (train.load_split(context.run).holdout("test", 1_000) for context in contexts)
    assert (one.queries == other.queries).all()
    assert (one.targets != other.targets).all()
    manifests = [run_stage(context) for context in contexts]
    assert manifests[0] == manifests[1]
    np.testing.assert_array_equal(embeddings_of(contexts[0]), embeddings_of(contexts[1]))


@pytest.mark.slow
def test_interactions_before_the_test_target_affect_the_tower(tmp_path: Path) -> None:
    """Otherwise the test above would also pass for a tower that learns nothing."""
    world.write(tmp_path / "one")
    contexts = [
        prepared_run(tmp_path / "one"),
        prepared_run(write_changed_world(tmp_path / "other", step=world.ITEMS_A_USER - 2)),
    ]
    one, other = (fit(context, final_plan(context.config, Passes(1, 0))) for context in contexts)
    assert np.abs(one.embeddings - other.embeddings).max() > 1e-4


@pytest.mark.slow
def test_interactions_from_the_time_of_validation_on_do_not_affect_the_validation_fit(tmp_path: Path) -> None:
    """There is one pass, because the targets could change the number of passes."""
    world.write(tmp_path / "one")
    other = write_changed_world(tmp_path / "other", step=world.ITEMS_A_USER - 2)
    fits = [validation_fit(folder, *GLOBAL_TIME) for folder in (tmp_path / "one", other)]
    np.testing.assert_array_equal(fits[0].embeddings, fits[1].embeddings)


@pytest.mark.slow
def test_held_out_users_do_not_affect_the_validation_fit(tmp_path: Path) -> None:
    """There is one pass, because their targets could change the number of passes."""
    world.write(tmp_path / "one")
    users = pl.read_parquet(tmp_path / "one" / "interactions.parquet")["user_id"].unique(maintain_order=True)
    held_out = held_out_users(users)
    folders = [tmp_path / "one"]
    for name, mask in (("held out", held_out), ("others", ~held_out)):
        folders.append(write_changed_world(tmp_path / name, step=2, users=users.filter(mask).to_list()))
    one, changed, trained_on = (validation_fit(folder).embeddings for folder in folders)
    np.testing.assert_array_equal(changed, one)
    assert np.abs(trained_on - one).max() > 1e-4


def validation_fit(folder: Path, *settings: str) -> Any:
    context = prepared_run(folder, "train.validation_queries=1", "train.passes=1", *settings)
    return fit(context, validation_plan(context.config))


# --- labeled pairs


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["contrastive", "triplet"])
def test_labeled_pairs_are_learned_and_interactions_are_not(tmp_path: Path, loss: str) -> None:
    folder = write_labeled_world(tmp_path / "one", ACROSS + WITHIN)
    options = [f"train.loss={loss}", "train.passes=15", "train.batch_size=8", "train.learning_rate=0.02"]
    context = prepared_run(folder, *options, "items.categorical=[]")
    plan = final_plan(context.config, Passes(15, 3))
    fitted = fit(context, plan)
    assert fitted.passes == (15, 0)
    number = item_numbers(context)

    def similarity(rows: list[tuple[str, str, int]]) -> float:
        return float(np.mean([fitted.embeddings[number[a]] @ fitted.embeddings[number[b]] for a, b, _ in rows]))

    assert similarity(ACROSS) > similarity(WITHIN) + 0.3

    other = write_labeled_world(tmp_path / "other", ACROSS + WITHIN)
    changed_rows = pl.read_parquet(write_changed_world(tmp_path / "moved", step=1) / "interactions.parquet")
    changed_rows.write_parquet(other / "interactions.parquet")
    refitted = fit(prepared_run(other, *options, "items.categorical=[]"), plan)
    np.testing.assert_array_equal(fitted.embeddings, refitted.embeddings)


@pytest.mark.slow
def test_labeled_pairs_that_are_held_out_do_not_affect_the_tower(tmp_path: Path) -> None:
    """With other labels in the held-out part, the tower is the same."""
    rows = ACROSS + WITHIN
    context = prepared_run(write_labeled_world(tmp_path / "one", rows), "train.loss=contrastive")
    _, held_out = train.load_labeled(context.run, context.config.train.seed)
    ids = list(item_numbers(context))
    heldout_ids = {(ids[a], ids[b]) for a, b in zip(held_out.first.tolist(), held_out.second.tolist(), strict=True)}
    assert 0 < len(heldout_ids) < len(rows)
    changed = [(a, b, 1 - same if (a, b) in heldout_ids else same) for a, b, same in rows]
    other = prepared_run(write_labeled_world(tmp_path / "other", changed), "train.loss=contrastive")
    first, second = (fit(run, final_plan(run.config, Passes(1, 0))) for run in (context, other))
    np.testing.assert_array_equal(first.embeddings, second.embeddings)


def test_rejects_labeled_pairs_without_a_positive(tmp_path: Path) -> None:
    context = prepared_run(write_labeled_world(tmp_path, WITHIN), "train.loss=contrastive")
    with pytest.raises(StageError, match="at least one labeled pair that is the same"):
        run_stage(context)
    assert not context.run.done(train.STAGE)


# --- warm start


def warm_run(folder: Path, release: Path, *overrides: str) -> RunContext:
    world.write(folder)
    dimension = json.loads((GOLDEN / MANIFEST).read_text())["dimension"]
    return prepared_run(folder, f"data.warm_start={release}", f"tower.dimension={dimension}", *overrides)


@pytest.mark.slow
def test_warm_start_begins_with_the_embeddings_of_the_earlier_tower(tmp_path: Path) -> None:
    """With a learning rate near 0, embeddings do not change, except for the new item, which has a separate encoder."""
    context = warm_run(tmp_path, GOLDEN, "train.learning_rate=1e-12")
    manifest = run_stage(context)
    new = item_numbers(context)[world.NEW_ITEM]
    received, earlier = embeddings_of(context), np.load(GOLDEN / EMBEDDINGS)
    np.testing.assert_allclose(np.delete(received, new, axis=0), np.delete(earlier, new, axis=0), atol=1e-4)
    assert manifest["warm_start"]["id"]["copied"] > 30


@pytest.mark.slow
def test_validation_fit_has_no_warm_start(tmp_path: Path) -> None:
    """The earlier tower has seen the users held out, and would be chosen for what it remembers of them."""
    warm = run_stage(warm_run(tmp_path / "warm", GOLDEN))
    dimension = json.loads((GOLDEN / MANIFEST).read_text())["dimension"]
    world.write(tmp_path / "cold")
    cold = run_stage(prepared_run(tmp_path / "cold", f"tower.dimension={dimension}"))
    assert warm["curve"] == cold["curve"]
    assert warm["final_curve"] != cold["final_curve"]


def test_run_id_depends_on_the_release_of_a_warm_start(tmp_path: Path) -> None:
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


def test_rejects_a_warm_start_from_a_folder_that_is_not_a_release(tmp_path: Path) -> None:
    world.write(tmp_path)
    for name, content in (("empty", None), ("other", "{}"), ("broken", "{")):
        folder = tmp_path / name
        folder.mkdir()
        if content:
            (folder / MANIFEST).write_text(content)
        with pytest.raises(InputError, match=r"data\.warm_start must be the folder of a release") as error:
            RunContext.from_config(load_config(tmp_path / "recsys.toml", [f"data.warm_start={folder}"]))
        assert str(folder) in str(error.value)


@pytest.mark.parametrize("file", [TOWER, FEATURES])
def test_rejects_a_warm_start_from_a_damaged_release(tmp_path: Path, file: str) -> None:
    copy = tmp_path / "release"
    shutil.copytree(GOLDEN, copy)
    (copy / file).write_bytes((copy / file).read_bytes()[:-1])
    context = warm_run(tmp_path / "world", copy)
    with pytest.raises(InputError, match=rf"data\.warm_start must be .* bytes of {file}"):
        run_stage(context)
    assert not context.run.done(train.STAGE)


@pytest.mark.parametrize("setting", ["tower.dimension=4", "tower.distance=euclidean"])
def test_rejects_a_warm_start_from_a_tower_of_another_shape(tmp_path: Path, setting: str) -> None:
    context = warm_run(tmp_path, GOLDEN, setting)
    with pytest.raises(InputError, match=r"tower\.dimension and tower\.distance .* leave data\.warm_start out"):
        run_stage(context)


# --- errors


def test_rejects_a_run_that_is_not_prepared(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="Run: recsys prepare"):
        STAGES["train"](RunContext.from_config(load_config(world.write(tmp_path))))


def test_rejects_interactions_without_a_pair(tmp_path: Path) -> None:
    world.write(tmp_path)
    rows = pl.read_parquet(tmp_path / "interactions.parquet")
    rows.filter(pl.col("timestamp") == 1_600_000_000).write_parquet(tmp_path / "interactions.parquet")
    with pytest.raises(StageError, match="pair"):
        run_stage(prepared_run(tmp_path))
