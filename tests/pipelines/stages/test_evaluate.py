"""The evaluate stage on synthetic data and random embeddings: its metrics, and the data they depend on."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipelines.context.run_context import RunContext
from pipelines.orchestration.stage_table import STAGES
from pipelines.prepare import stage as prepare
from pipelines.stages import embed, evaluate, train
from pipelines.stages import index as indexing
from recsys.config.loading import load_config
from recsys.data.catalog import Catalog
from recsys.errors import StageError
from recsys.evaluation.metrics import evaluation_report
from recsys.evaluation.protocol import EvaluationProtocol
from recsys.index.exact import ExactIndex
from recsys.index.queries import Queries
from recsys.release.formats import CATALOG, EMBEDDINGS
from recsys.testing import world
from tests.pipelines.stages.test_train import GLOBAL_TIME, write_changed_world

BASELINES = {
    "popularity",
    "co_occurrence",
    "item_knn",
    "windowed_item_knn",
    "ease",
    "content",
}
PROTOCOL = EvaluationProtocol(resamples=20, shrinkages=(0.0, 20.0), recencies=(0.3, 0.9))
RECENCY = 0.3
CUTS = (5, 10, 20)


@pytest.fixture(scope="module", autouse=True)
def small_protocol() -> Iterator[None]:
    """Fewer candidate values and fewer resamples than in a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "PROTOCOL", PROTOCOL)
        yield


def indexed_run(
    folder: Path, *overrides: str, recency: float | None = RECENCY, likeness: Mapping[str, Any] | None = None
) -> RunContext:
    """A run whose index stage is done, with random embeddings and without a tower."""
    context = RunContext.from_config(load_config(folder / "recsys.toml", overrides))
    prepare.prepare(context.config, context.run, context.inputs, context.progress)
    num_items = context.run.manifest(prepare.STAGE)["num_items"]
    vectors = np.random.default_rng(0).normal(size=(num_items, 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with context.run.stage(train.STAGE) as (_, manifest):
        manifest |= {"recency": recency, "validation": {"last_item": {"ndcg_at_20": 0.25}}, "likeness": likeness or {}}
    with context.run.of("similar").stage(train.STAGE) as (_, manifest):
        manifest |= {"space": "next", "candidate": "next", "reason": "too few items", "candidates": {}}
    with context.run.stage(embed.STAGE) as (stage, _):
        np.save(stage / EMBEDDINGS, vectors.astype(np.float32))
    indexing.index(context.config, context.run, context.progress)
    return context


def evaluate_run(context: RunContext) -> dict[str, Any]:
    return evaluate.evaluate(context.config, context.run, context.progress)


def sequences_of(folder: Path) -> dict[str, list[str]]:
    """Item ids by user, ordered by time."""
    rows = pl.read_parquet(folder / "interactions.parquet").sort("user_id", "timestamp")
    return {user: items["item_id"].to_list() for (user,), items in rows.partition_by("user_id", as_dict=True).items()}


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> RunContext:
    folder = tmp_path_factory.mktemp("world")
    world.write(folder)
    return indexed_run(folder)


@pytest.fixture(scope="module")
def figures(context: RunContext) -> dict[str, Any]:
    return evaluate.evaluate(context.config, context.run, context.progress)


def test_evaluates_every_baseline_with_both_query_kinds(context: RunContext, figures: dict[str, Any]) -> None:
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert (figures["target"], figures["split"]) == ("test", "leave_one_out")
    assert figures["queries"] == world.BLOCKS * world.USERS_A_BLOCK
    assert set(figures["settings"]) == set(figures["validation"]["baselines"]) == BASELINES
    for measured in (figures, figures["history"]):
        assert set(measured["baselines"]) == BASELINES
        for report in (measured["model"], *measured["baselines"].values()):
            names = {f"{name}_at_{k}" for name in ("hr", "ndcg", "mrr") for k in CUTS}
            assert set(report) == names | {"coverage_at_10", "gini_at_10", "intervals", "strata"}
            assert set(report["intervals"]) == names
            assert sum(stratum["queries"] for stratum in report["strata"].values()) == figures["queries"]
    assert evaluate.evaluate(context.config, context.run, context.progress) == figures


def test_evaluates_the_index_with_the_trained_recency(context: RunContext, figures: dict[str, Any]) -> None:
    """With few items, the index returns nearly the results of exact search."""
    model = ExactIndex(np.load(context.run.path(embed.STAGE, EMBEDDINGS)))
    test = train.load_split(context.run).holdout("test", 1_000)
    popularity = Catalog.load(context.run.path(prepare.STAGE, CATALOG)).frame["interactions"].to_numpy()
    assert figures["history"]["recency"] == RECENCY
    for queries, measured in (
        (Queries.from_items(test.queries), figures["model"]),
        (Queries.from_histories(test, RECENCY, 50), figures["history"]["model"]),
    ):
        exact = evaluation_report(model, queries, test.targets, popularity, 20)
        assert measured["ndcg_at_20"] == pytest.approx(exact["ndcg_at_20"], rel=0.1)
        assert measured["hr_at_20"] == pytest.approx(exact["hr_at_20"], rel=0.1)
    assert figures["validation"]["last_item"] == {"ndcg_at_20": 0.25}


def test_popularity_agrees_with_a_naive_loop(context: RunContext, figures: dict[str, Any]) -> None:
    """Popularity is counted before the test targets."""
    users = sequences_of(Path(context.config.data.interactions).parent)
    ids = sorted(pl.read_csv(context.config.data.items or "")["item_id"])
    counts = dict.fromkeys(ids, 0)
    for items in users.values():
        for item in set(items[:-1]):
            counts[item] += 1
    order = sorted(ids, key=lambda item: (-counts[item], ids.index(item)))
    for excluded, measured in ((slice(-2, -1), figures), (slice(0, -1), figures["history"])):
        ndcgs = []
        for items in users.values():
            popular = [item for item in order if item not in items[excluded]][:20]
            ndcgs.append(1 / np.log2(popular.index(items[-1]) + 2) if items[-1] in popular else 0.0)
        assert measured["baselines"]["popularity"]["ndcg_at_20"] == pytest.approx(np.mean(ndcgs))


@pytest.mark.slow
@pytest.mark.parametrize("split", [[], GLOBAL_TIME], ids=["leave one out", "global time"])
def test_test_targets_do_not_affect_the_chosen_settings(tmp_path: Path, split: list[str]) -> None:
    """With other test targets, the settings and validation metrics are equal, and the test metrics differ."""
    world.write(tmp_path / "one")
    folders = (tmp_path / "one", write_changed_world(tmp_path / "other", step=world.ITEMS_A_USER - 1))
    one, other = (evaluate_run(indexed_run(folder, *split)) for folder in folders)
    assert one["queries"] == other["queries"] == world.BLOCKS * world.USERS_A_BLOCK
    assert one["settings"] == other["settings"]
    assert one["validation"] == other["validation"]
    assert one["baselines"]["item_knn"]["hr_at_20"] != other["baselines"]["item_knn"]["hr_at_20"]
    assert one["model"]["hr_at_20"] != other["model"]["hr_at_20"]


def test_validation_targets_affect_the_validation_metrics(tmp_path: Path) -> None:
    """Otherwise the test above would also pass if no settings were chosen."""
    world.write(tmp_path / "one")
    folders = (tmp_path / "one", write_changed_world(tmp_path / "other", step=world.ITEMS_A_USER - 2))
    one, other = (evaluate_run(indexed_run(folder)) for folder in folders)
    assert one["validation"]["baselines"] != other["validation"]["baselines"]


def evaluated_windows(context: RunContext) -> set[tuple[float, float]]:
    """Return the windows and decays that are evaluated for the windowed baseline."""
    catalog = Catalog.load(context.run.path(prepare.STAGE, CATALOG))
    split = train.load_split(context.run)
    data = evaluate.BaselineData(context.config, context.run, split, catalog)
    variants = data.variants("validation")
    return {(variant.settings["window"], variant.settings["decay"]) for variant in variants["windowed_item_knn"]}


def test_windows_of_the_protocol_are_evaluated_on_small_logs_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.write(tmp_path)
    num_interactions = world.BLOCKS * world.USERS_A_BLOCK * world.ITEMS_A_USER
    context = indexed_run(tmp_path, "prepare.window=4", "prepare.decay=2.0")
    windows = ((2, 0.5), (3, 0.0), (4, 2.0))
    protocol = PROTOCOL._replace(windows=windows, windows_max_interactions=num_interactions)
    monkeypatch.setattr(evaluate, "PROTOCOL", protocol)
    assert evaluated_windows(context) == {(4, 2.0), (2, 0.5), (3, 0.0)}
    monkeypatch.setattr(evaluate, "PROTOCOL", protocol._replace(windows_max_interactions=num_interactions - 1))
    assert evaluated_windows(context) == {(4, 2.0)}


@pytest.mark.slow
@pytest.mark.parametrize("target", ["validation", "test"])
def test_counted_windows_agree_with_prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Any) -> None:
    """If every interaction has weight 1, pairs of `prepare` and of a window of the protocol give equal neighbors."""
    world.write(tmp_path)
    monkeypatch.setattr(evaluate, "PROTOCOL", PROTOCOL._replace(windows=((3, 1.0),)))
    neighbors = []
    for context in (indexed_run(tmp_path, "prepare.window=3"), indexed_run(tmp_path)):
        catalog = Catalog.load(context.run.path(prepare.STAGE, CATALOG))
        split = train.load_split(context.run)
        data = evaluate.BaselineData(context.config, context.run, split, catalog)
        variants = data.variants(target)["windowed_item_knn"]
        (variant,) = [v for v in variants if v.settings == {"window": 3, "decay": 1.0, "shrinkage": 20.0}]
        neighbors.append(variant.fit().top_k(Queries.from_items(np.arange(len(catalog), dtype=np.int32)), 10))
    np.testing.assert_array_equal(*neighbors)


def test_data_without_targets_is_not_an_error(tmp_path: Path) -> None:
    world.write(tmp_path)
    rows = pl.read_parquet(tmp_path / "interactions.parquet")
    rows.filter(pl.col("timestamp") < 1_600_000_000 + 120).write_parquet(tmp_path / "interactions.parquet")
    figures = evaluate_run(indexed_run(tmp_path, recency=None))
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert figures["queries"] == 0
    assert "ndcg_at_20" not in figures["model"]
    assert set(figures["history"]["baselines"]) == BASELINES


def test_default_recency_is_used_without_validation_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data is split by time, and no user has an interaction in the validation period."""
    world.write(tmp_path)
    rows = pl.read_parquet(tmp_path / "interactions.parquet")
    last = 1_600_000_000 + 60 * (world.ITEMS_A_USER - 1)
    rows.filter(pl.col("timestamp") != last - 60).write_parquet(tmp_path / "interactions.parquet")
    monkeypatch.setattr(evaluate, "PROTOCOL", PROTOCOL._replace(recencies=(0.9, 0.3, 0.4)))
    figures = evaluate_run(indexed_run(tmp_path, *GLOBAL_TIME, recency=None))
    assert figures["queries"] == world.BLOCKS * world.USERS_A_BLOCK
    assert {choices["history"]["recency"] for choices in figures["settings"].values()} == {0.4}
    assert figures["history"]["model"] != figures["model"]


def test_requires_the_index_stage(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="Run: recsys train --sense similar"):
        STAGES["evaluate"](RunContext.from_config(load_config(world.write(tmp_path))))
