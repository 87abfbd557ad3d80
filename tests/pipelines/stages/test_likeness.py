"""Likeness in the evaluate stage: towers and baselines on the same evidence."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipelines.context.run_context import RunContext
from pipelines.stages import embed, evaluate, likeness, train
from pipelines.stages import index as indexing
from recsys.data.catalog import Catalog
from recsys.evaluation.likeness import AGREEMENT, Evidence
from recsys.index.exact import ExactIndex
from recsys.index.queries import Queries
from recsys.release.formats import CATALOG, EMBEDDINGS
from recsys.testing import world
from tests.pipelines.stages.test_evaluate import indexed_run

GROUPS = {"one": ["item-1-0", "item-1-3", "item-1-6"], "two": ["item-4-1", "item-4-2"], "lost": ["x", "item-0-0"]}
OWN = {AGREEMENT: 0.375, "intervals": {AGREEMENT: [0.25, 0.5]}, "queries": {AGREEMENT: 12}}
OF_NEXT = {**OWN, AGREEMENT: 0.125}
"""Likeness of the candidate for `similar` and of `next`, as the train stages saved it."""


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> RunContext:
    """A run with evidence, random embeddings, other ones for `similar`, item groups, and a column no model reads."""
    folder = tmp_path_factory.mktemp("world")
    world.write(folder)
    items = pl.read_csv(folder / "items.csv")
    block = items["item_id"].str.split("-").list.get(1, null_on_oob=True)
    items.with_columns(section="section" + block).write_csv(folder / "items.csv")
    (folder / "groups.json").write_text(json.dumps(GROUPS))
    config = folder / "recsys.toml"
    text = config.read_text().replace("[items]", 'alike = "groups.json"\n[items]\nevidence = ["section"]', 1)
    config.write_text(text)
    context = indexed_run(folder, likeness=OF_NEXT)
    num_items = context.run.manifest("prepare")["num_items"]
    evidence = Evidence.of_held_out_users(train.load_split(context.run), num_items)
    evidence.save(context.run.path(train.STAGE, train.EVIDENCE))
    run = context.run.of("similar")
    (context.run.folder / "train-similar" / "_MANIFEST.json").unlink()
    (context.run.folder / "train-similar").rmdir()
    with run.stage(train.STAGE) as (_, manifest):
        candidates = {"next": {"likeness": OF_NEXT}, "similar_features": {"likeness": OWN}}
        manifest |= {"space": "similar", "candidate": "similar_features", "reason": "own", "candidates": candidates}
    vectors = np.random.default_rng(7).normal(size=(num_items, 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with run.stage(embed.STAGE) as (stage, _):
        np.save(stage / EMBEDDINGS, vectors.astype(np.float32))
    indexing.index(context.config, run, context.progress)
    return context


@pytest.fixture(scope="module")
def figures(context: RunContext) -> dict[str, Any]:
    manifest = evaluate.evaluate(context.config, context.run, context.progress)["likeness"]
    assert json.loads(json.dumps(manifest)) == manifest
    return manifest


def test_agreement_of_the_towers_is_that_of_the_candidates(figures: dict[str, Any]) -> None:
    assert figures["space"] == "similar"
    assert figures["model"]["similar"][AGREEMENT] == 0.375
    assert figures["model"]["next"][AGREEMENT] == 0.125
    assert figures["model"]["similar"]["intervals"][AGREEMENT] == [0.25, 0.5]


@pytest.mark.parametrize("sense", ["next", "similar"])
def test_groups_and_columns_are_compared_with_the_released_embeddings(
    context: RunContext, figures: dict[str, Any], sense: Any
) -> None:
    vectors = np.load(context.run.of(sense).path(embed.STAGE, EMBEDDINGS))
    ids = Catalog.load(context.run.path("prepare", CATALOG)).item_ids
    known = np.array([not item.startswith("new") for item in ids])
    items = np.flatnonzero(known).astype(np.int32)
    nearest = {
        ids[item]: [ids[other] for other in row]
        for item, row in zip(items, ExactIndex(vectors).top_k(Queries.from_items(items), 10), strict=True)
    }
    members = [(item, group) for group in (GROUPS["one"], GROUPS["two"]) for item in group]
    recall = np.mean([len(set(nearest[item]) & set(group)) / (len(group) - 1) for item, group in members])
    report = figures["model"][sense]
    assert report["group_recall_at_10"] == pytest.approx(recall)
    block = {item: item.split("-")[1] for item in nearest}  # the new item has no section
    same_section = np.mean([[block.get(other) == block[item] for other in row] for item, row in nearest.items()])
    assert report["column_agreement_at_10"] == pytest.approx(same_section)
    assert report["queries"]["group_recall_at_10"] == len(members)


def test_every_baseline_has_all_figures(figures: dict[str, Any]) -> None:
    names = {"popularity", "co_occurrence", "item_knn", "windowed_item_knn", "ease", "content"}
    assert figures["baselines"].keys() == names
    for report in figures["baselines"].values():
        assert {AGREEMENT, "group_recall_at_10", "column_agreement_at_10", "popularity_at_10"} <= report.keys()
        assert report["intervals"].keys() >= {AGREEMENT, "group_recall_at_10", "column_agreement_at_10"}
    # items of a block are used together, and by the same users
    assert figures["baselines"]["item_knn"][AGREEMENT] > 2 * figures["baselines"]["popularity"][AGREEMENT]
    assert figures["baselines"]["item_knn"]["group_recall_at_10"] == 1


def test_baselines_are_not_fitted_to_the_users_who_judge(context: RunContext) -> None:
    split = train.load_split(context.run)
    catalog = Catalog.load(context.run.path("prepare", CATALOG))
    measured = likeness.LikenessMeasurement(context.config, context.run, split, catalog)
    users = [user for user, held_out in enumerate(split.held_out) if not held_out]
    counts = np.zeros(len(catalog), int)
    for user in users:
        for item in split.sequences.items[split.sequences.offsets[user] : split.sequences.offsets[user + 1] - 1]:
            counts[item] += 1
    np.testing.assert_array_equal(measured.known_popularity, counts)
    data = evaluate.BaselineData(context.config, context.run, split, catalog)
    variants = data.variants("validation")
    popularity = variants["popularity"][0].fit()
    best = popularity.top_k(Queries.from_items(np.array([0], np.int32)), 5)[0]
    assert counts[best].tolist() == sorted(np.delete(counts, 0).tolist(), reverse=True)[:5]
