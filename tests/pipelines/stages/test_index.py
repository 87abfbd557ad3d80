"""The index stage on random embeddings: its files, resuming after a kill, and a run whose index has several shards."""

from __future__ import annotations

import json
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipelines.context.run_context import RunContext
from pipelines.prepare import stage as prepare
from pipelines.stages import embed
from pipelines.stages import index as indexing
from recsys import Release
from recsys.config.loading import load_config
from recsys.config.sections import ResourcesConfig
from recsys.errors import StageError
from recsys.index import annoy_index, neighbors
from recsys.index.annoy_index import RECALL_K
from recsys.index.exact import ExactIndex
from recsys.index.recall import tune_search_k
from recsys.index.shards import plan_shards
from recsys.release.formats import EMBEDDINGS, NEIGHBORS
from recsys.testing import program, world
from tests import memory_mb

DIMENSION = 8


def embedded_run(folder: Path, num_items: int, *overrides: str) -> RunContext:
    """A run whose embed stage is done, with random embeddings and without a catalog."""
    world.write(folder)
    context = RunContext.from_config(load_config(folder / "recsys.toml", overrides))
    vectors = np.random.default_rng(0).normal(size=(num_items, DIMENSION))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with context.run.stage(prepare.STAGE) as (_, manifest):
        manifest["num_items"] = num_items
    with context.run.stage(embed.STAGE) as (stage, _):
        np.save(stage / EMBEDDINGS, vectors.astype(np.float32))
    return context


def files_of(context: RunContext) -> dict[str, bytes]:
    """Files of the stage, by name."""
    return {path.name: path.read_bytes() for path in context.run.path(indexing.STAGE).iterdir()}


@pytest.mark.parametrize(("shard_items", "count"), [(300, 1), (299, 2), (70, 5)])
def test_each_shard_is_the_index_of_its_items(tmp_path: Path, shard_items: int, count: int) -> None:
    context = embedded_run(tmp_path, 300, f"resources.memory_mb={memory_mb(shard=shard_items)}")
    manifest = indexing.index(context.config, context.run, context.progress)
    shards = plan_shards(300, shard_items)
    assert set(files_of(context)) == {"_MANIFEST.json", NEIGHBORS, *(shard.file for shard in shards)}
    assert manifest["shards"] == len(shards) == count
    vectors = np.load(context.run.path(embed.STAGE, EMBEDDINGS))
    for shard in shards:
        expected = tmp_path / "expected.ann"
        annoy_index.build(vectors[shard.start : shard.stop], context.config.index, expected)
        assert context.run.path(indexing.STAGE, shard.file).read_bytes() == expected.read_bytes()


@pytest.mark.parametrize("items_per_unit", [300, 7])
def test_table_has_the_exact_neighbors_of_every_item(tmp_path: Path, items_per_unit: int) -> None:
    context = embedded_run(tmp_path, 300, f"resources.memory_mb={items_per_unit / 1.25}", "tower.distance=euclidean")
    manifest = indexing.index(context.config, context.run, context.progress)
    table = neighbors.load(context.run.path(indexing.STAGE, NEIGHBORS), 300)
    vectors = np.load(context.run.path(embed.STAGE, EMBEDDINGS)).astype(np.float64)
    lengths = ((vectors[:, None] - vectors) ** 2).sum(axis=2)
    np.fill_diagonal(lengths, np.inf)
    assert table.tolist() == lengths.argsort(axis=1)[:, :256].tolist()
    assert manifest["neighbors_recall"] == 1


def test_table_of_a_large_catalog_is_searched_with_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recall of whole rows reaches the target, which a search for the first 20 items does not."""
    monkeypatch.setattr(neighbors, "EXACT_ITEMS", dict.fromkeys(neighbors.EXACT_ITEMS, 999))
    settings = ("index.recall_target=0.9", "index.recall_floor=0.8", "index.n_trees=3", "resources.memory_mb=0.4")
    context = embedded_run(tmp_path, 1_000, *settings)
    manifest = indexing.index(context.config, context.run, context.progress)
    table = neighbors.load(context.run.path(indexing.STAGE, NEIGHBORS), 1_000).tolist()
    exact = ExactIndex(np.load(context.run.path(embed.STAGE, EMBEDDINGS))).neighbors(
        np.arange(1_000, dtype=np.int32), 256
    )
    recall = np.mean([len({*row} & {*nearest}) / 256 for row, nearest in zip(table, exact.tolist(), strict=True)])
    assert manifest["neighbors_recall"] == pytest.approx(recall, abs=1e-3)
    assert 0.9 <= manifest["neighbors_recall"] < 1


def test_a_recall_of_the_table_below_the_floor_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbors, "EXACT_ITEMS", dict.fromkeys(neighbors.EXACT_ITEMS, 0))
    monkeypatch.setattr(indexing, "tune_search_k", partial(tune_search_k, max_search_k=3))
    context = embedded_run(tmp_path, 1_000, "index.n_trees=1")
    with pytest.raises(StageError, match=r"recall must be at least 0\.95"):
        indexing.index(context.config, context.run, context.progress)


def test_recall_is_measured_on_merged_results(tmp_path: Path) -> None:
    settings = ("resources.memory_mb=0.36", "index.recall_target=0.9", "index.recall_floor=0.8", "index.n_trees=3")
    context = embedded_run(tmp_path, 1_000, *settings)
    manifest = indexing.index(context.config, context.run, context.progress)
    vectors = np.load(context.run.path(embed.STAGE, EMBEDDINGS))
    shards = plan_shards(1_000, 90)
    index = annoy_index.load(context.run.path(indexing.STAGE), shards, vectors, manifest["search_k"])
    items, k = np.arange(1_000, dtype=np.int32), RECALL_K
    returned, nearest = index.neighbors(items, k).tolist(), ExactIndex(vectors).neighbors(items, k).tolist()
    recall = np.mean([len({*row} & {*exact}) / k for row, exact in zip(returned, nearest, strict=True)])
    assert manifest["recall"] == pytest.approx(recall, abs=1e-3)
    assert 0.9 <= manifest["recall"] < 1


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["local-threads", "portable"])
def test_every_runner_builds_the_same_files(tmp_path: Path, profile: str) -> None:
    expected = embedded_run(tmp_path / "local", 200, "resources.memory_mb=0.12")
    context = embedded_run(tmp_path / profile, 200, "resources.memory_mb=0.12", f"beam.profile={profile}")
    assert indexing.index(context.config, context.run, context.progress) == indexing.index(
        expected.config, expected.run, expected.progress
    )
    assert files_of(context) == files_of(expected)


# --- killed and resumed


def finished_shards(workspace: Path) -> list[Path]:
    """Return the finished shards of a stage that is not finished."""
    return sorted(workspace.glob("runs/*/.tmp-index.*/index-*.ann"))


@pytest.mark.slow
def test_killed_stage_resumes_with_the_missing_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ("resources.memory_mb=2.0",)
    context = embedded_run(tmp_path, 20_000, *settings)
    command = [program.RECSYS, "index", "--config", tmp_path / "recsys.toml"]
    command += [part for setting in settings for part in ("--set", setting)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as job:
        while job.poll() is None:
            if len(finished_shards(tmp_path / "workspace")) >= 3:
                job.kill()
                break
    assert job.returncode == -9
    finished = {path.name for path in finished_shards(tmp_path / "workspace")}
    assert 3 <= len(finished) <= 40

    built = set()
    build = annoy_index.build

    def recorded_build(vectors: Any, config: Any, path: Path, **options: Any) -> Any:
        built.add(path.stem)
        return build(vectors, config, path, **options)

    monkeypatch.setattr(annoy_index, "build", recorded_build)
    indexing.index(context.config, context.run, context.progress)
    assert built == {shard.file for shard in plan_shards(20_000, 500)} - finished

    undisturbed = embedded_run(tmp_path / "undisturbed", 20_000, *settings)
    indexing.index(undisturbed.config, undisturbed.run, undisturbed.progress)
    assert files_of(context) == files_of(undisturbed)


# --- a complete run


@pytest.mark.slow
def test_run_with_several_shards_returns_the_neighbors_of_all_shards(
    tmp_path: Path, program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queries and export agree and return the block of an item, although its items are in several shards."""
    monkeypatch.setattr(ResourcesConfig, "shard_items", 10)
    config = world.write(tmp_path)
    done = program("nightly", "--config", config, "--json")
    assert done.exit_code == 0, done.err
    assert "in each of 5 files" in done.err
    release = Release.load(json.loads(done.out)["path"])
    shards = release.space("next").entry.index
    assert [shard.stop - shard.start for shard in shards] == [9, 10, 10, 10, 10]
    assert {path.name for path in (release.path / "next").glob("*.ann")} == {shard.file for shard in shards}

    item, *expected = world.item_ids(1)
    ranges = [range(shard.start, shard.stop) for shard in shards]
    item_numbers = [release.catalog.item_number(item_id) for item_id in [item, *expected]]
    assert len([numbers for numbers in ranges if {*numbers} & {*item_numbers}]) > 1
    done = program("similar", item, "--k", len(expected), "--release", release.path, "--json")
    assert {neighbor["item_id"] for neighbor in json.loads(done.out)["neighbors"]} == set(expected)

    done = program("export", "--config", config, "--k", 48, "--to", tmp_path / "all.jsonl", "--json")
    assert done.exit_code == 0, done.err
    exported = pl.read_ndjson(tmp_path / "all.jsonl")
    assert exported["item_id"].to_list() == list(release.catalog.item_ids)
    for item_id, exported_neighbors in exported.select("item_id", "neighbors").iter_rows():
        similar = release.similar(item_id, 48).neighbors
        assert [(neighbor["item_id"], neighbor["similarity"]) for neighbor in exported_neighbors] == [
            (neighbor.item_id, neighbor.similarity) for neighbor in similar
        ]
        assert len(exported_neighbors) == 48
