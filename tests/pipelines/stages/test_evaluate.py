"""The stage on a small world, with vectors put there by hand: its figures, and what they may depend on."""

import json
from collections.abc import Iterator
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
from tests.pipelines.stages.test_train import GLOBAL_TIME, moved

BASELINES = {
    "popularity",
    "co_occurrence",
    "item_knn",
    "windowed_item_knn",
    "ease",
    "content",
    "content_popularity",
}
PROTOCOL = EvaluationProtocol(resamples=20, shrinkages=(0.0, 20.0), recencies=(0.3, 0.9))
RECENCY = 0.3
CUTS = (5, 10, 20)


@pytest.fixture(scope="module", autouse=True)
def small_protocol() -> Iterator[None]:
    """Fewer values to try and fewer resamples than in a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "PROTOCOL", PROTOCOL)
        yield


def indexed(folder: Path, *overrides: str, recency: float | None = RECENCY) -> RunContext:
    """A night that is ready to be evaluated: random vectors, and a tower that nobody asks for."""
    context = RunContext.from_config(load_config(folder / "recsys.toml", overrides))
    prepare.prepare(context.config, context.run, context.inputs, context.progress)
    num_items = context.run.manifest(prepare.STAGE)["num_items"]
    vectors = np.random.default_rng(0).normal(size=(num_items, 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with context.run.stage(train.STAGE) as (_, manifest):
        manifest |= {"recency": recency, "validation": {"last_item": {"ndcg_at_20": 0.25}}}
    with context.run.stage(embed.STAGE) as (stage, _):
        np.save(stage / EMBEDDINGS, vectors.astype(np.float32))
    indexing.index(context.config, context.run, context.progress)
    return context


def evaluated(context: RunContext) -> dict[str, Any]:
    return evaluate.evaluate(context.config, context.run, context.progress)


def rows_of(folder: Path) -> dict[str, list[str]]:
    """Item ids by user, oldest first."""
    rows = pl.read_parquet(folder / "interactions.parquet").sort("user_id", "timestamp")
    return {user: items["item_id"].to_list() for (user,), items in rows.partition_by("user_id", as_dict=True).items()}


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> RunContext:
    folder = tmp_path_factory.mktemp("world")
    world.write(folder)
    return indexed(folder)


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
    """Few items, so that the index finds what exact search finds."""
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
    """Counted before the test targets, asked for them, from the last item and from all before."""
    users = rows_of(Path(context.config.data.interactions).parent)
    ids = sorted(pl.read_csv(context.config.data.items or "")["item_id"])
    counts = dict.fromkeys(ids, 0)
    for items in users.values():
        for item in set(items[:-1]):
            counts[item] += 1
    order = sorted(ids, key=lambda item: (-counts[item], ids.index(item)))
    for excluded, measured in ((slice(-2, -1), figures), (slice(0, -1), figures["history"])):
        gains = []
        for items in users.values():
            named = [item for item in order if item not in items[excluded]][:20]
            gains.append(1 / np.log2(named.index(items[-1]) + 2) if items[-1] in named else 0.0)
        assert measured["baselines"]["popularity"]["ndcg_at_20"] == pytest.approx(np.mean(gains))


@pytest.mark.parametrize("split", [[], GLOBAL_TIME], ids=["leave one out", "global time"])
def test_chooses_settings_without_the_test_targets(tmp_path: Path, split: list[str]) -> None:
    """The same world with other test targets: other figures, the same choices, and the same figures of choosing."""
    world.write(tmp_path / "one")
    folders = (tmp_path / "one", moved(tmp_path / "other", step=world.TOUCHED - 1))
    one, other = (evaluated(indexed(folder, *split)) for folder in folders)
    assert one["queries"] == other["queries"] == world.BLOCKS * world.USERS_A_BLOCK
    assert one["settings"] == other["settings"]
    assert one["validation"] == other["validation"]
    for measured in (("baselines", "item_knn", "hr_at_20"), ("model", "hr_at_20")):
        figures = [one, other]
        for key in measured:
            figures = [found[key] for found in figures]
        assert figures[0] != figures[1]


def test_chooses_settings_by_the_validation_targets(tmp_path: Path) -> None:
    """Else nothing would be chosen at all."""
    world.write(tmp_path / "one")
    folders = (tmp_path / "one", moved(tmp_path / "other", step=world.TOUCHED - 2))
    one, other = (evaluated(indexed(folder)) for folder in folders)
    assert one["validation"]["baselines"] != other["validation"]["baselines"]


def tried(context: RunContext) -> set[tuple[float, float]]:
    """Windows and decays of the windowed baseline."""
    catalog = Catalog.load(context.run.path(prepare.STAGE, CATALOG))
    found = evaluate.variants_before("validation", context.config, context.run, train.load_split(context.run), catalog)
    return {(variant.settings["window"], variant.settings["decay"]) for variant in found["windowed_item_knn"]}


def test_tries_the_windows_of_the_protocol_on_small_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world.write(tmp_path)
    prepared = ["prepare.window=4", "prepare.decay=2.0"]
    interactions = world.BLOCKS * world.USERS_A_BLOCK * world.TOUCHED
    context = indexed(tmp_path, *prepared)
    windows = ((2, 0.5), (3, 0.0), (4, 2.0))
    few = PROTOCOL._replace(windows=windows, windows_max_interactions=interactions)
    monkeypatch.setattr(evaluate, "PROTOCOL", few)
    assert tried(context) == {(4, 2.0), (2, 0.5), (3, 0.0)}
    monkeypatch.setattr(evaluate, "PROTOCOL", few._replace(windows_max_interactions=interactions - 1))
    assert tried(context) == {(4, 2.0)}


@pytest.mark.parametrize("target", ["validation", "test"])
def test_counted_windows_agree_with_prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Any) -> None:
    """Where every interaction weighs 1: the same window as prepare's and as one that is tried, the same answers."""
    world.write(tmp_path)
    monkeypatch.setattr(evaluate, "PROTOCOL", PROTOCOL._replace(windows=((3, 1.0),)))
    answers = []
    for context in (indexed(tmp_path, "prepare.window=3"), indexed(tmp_path)):
        catalog = Catalog.load(context.run.path(prepare.STAGE, CATALOG))
        found = evaluate.variants_before(target, context.config, context.run, train.load_split(context.run), catalog)[
            "windowed_item_knn"
        ]
        (variant,) = [v for v in found if v.settings == {"window": 3, "decay": 1.0, "shrinkage": 20.0}]
        answers.append(variant.fit().top_k(Queries.from_items(np.arange(len(catalog), dtype=np.int32)), 10))
    np.testing.assert_array_equal(*answers)


def test_no_users_to_evaluate_is_not_an_error(tmp_path: Path) -> None:
    world.write(tmp_path)
    rows = pl.read_parquet(tmp_path / "interactions.parquet")
    rows.filter(pl.col("timestamp") < 1_600_000_000 + 120).write_parquet(tmp_path / "interactions.parquet")
    figures = evaluated(indexed(tmp_path, recency=None))
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert figures["queries"] == 0
    assert "ndcg_at_20" not in figures["model"]
    assert set(figures["history"]["baselines"]) == BASELINES


def test_without_validation_all_use_the_default_recency(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through time: everybody pauses on the day of validation."""
    world.write(tmp_path)
    rows = pl.read_parquet(tmp_path / "interactions.parquet")
    last = 1_600_000_000 + 60 * (world.TOUCHED - 1)
    rows.filter(pl.col("timestamp") != last - 60).write_parquet(tmp_path / "interactions.parquet")
    monkeypatch.setattr(evaluate, "PROTOCOL", PROTOCOL._replace(recencies=(0.9, 0.3, 0.4)))
    figures = evaluated(indexed(tmp_path, *GLOBAL_TIME, recency=None))
    assert figures["queries"] == world.BLOCKS * world.USERS_A_BLOCK
    assert {choices["history"]["recency"] for choices in figures["settings"].values()} == {0.4}
    assert figures["history"]["model"] != figures["model"]


def test_requires_the_index_stage(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="Run: recsys embed"):
        STAGES["evaluate"](RunContext.from_config(load_config(world.write(tmp_path))))
