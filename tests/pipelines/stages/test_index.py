"""The stage on vectors put there by hand: its files, resumed after a kill, and a night whose index is in shards."""

from __future__ import annotations

import json
import subprocess
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
from recsys.index import annoy_index
from recsys.index.annoy_index import RECALL_K
from recsys.index.exact import ExactIndex
from recsys.index.shards import plan_shards
from recsys.release.formats import EMBEDDINGS
from recsys.testing import program, world
from tests import memory_mb

DIMENSION = 8


def embedded(folder: Path, num_items: int, *overrides: str) -> RunContext:
    """A night that is ready to be indexed: random vectors, of a catalog that nobody asks for."""
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
    """All that the stage wrote, by name."""
    return {path.name: path.read_bytes() for path in context.run.path(indexing.STAGE).iterdir()}


@pytest.mark.parametrize(("shard_items", "count"), [(300, 1), (299, 2), (70, 5)])
def test_each_shard_is_a_file_of_its_own_items(tmp_path: Path, shard_items: int, count: int) -> None:
    context = embedded(tmp_path, 300, f"resources.memory_mb={memory_mb(shard=shard_items)}")
    manifest = indexing.index(context.config, context.run, context.progress)
    shards = plan_shards(300, shard_items)
    assert set(files_of(context)) == {"_MANIFEST.json", *(shard.file for shard in shards)}
    assert manifest["shards"] == len(shards) == count
    vectors = np.load(context.run.path(embed.STAGE, EMBEDDINGS))
    for shard in shards:
        alone = tmp_path / "alone.ann"
        annoy_index.build(vectors[shard.start : shard.stop], context.config.index, alone)
        assert context.run.path(indexing.STAGE, shard.file).read_bytes() == alone.read_bytes()


def test_the_recall_is_measured_on_merged_results(tmp_path: Path) -> None:
    settings = ("resources.memory_mb=0.36", "index.recall_target=0.9", "index.recall_floor=0.8", "index.n_trees=3")
    context = embedded(tmp_path, 1_000, *settings)
    manifest = indexing.index(context.config, context.run, context.progress)
    vectors = np.load(context.run.path(embed.STAGE, EMBEDDINGS))
    shards = plan_shards(1_000, 90)
    built = annoy_index.load(context.run.path(indexing.STAGE), shards, vectors, manifest["search_k"])
    everyone, k = np.arange(1_000, dtype=np.int32), RECALL_K
    found, exact = built.neighbors(everyone, k), ExactIndex(vectors).neighbors(everyone, k)
    share = np.mean([len({*row} & {*other}) / k for row, other in zip(found.tolist(), exact.tolist(), strict=True)])
    assert manifest["recall"] == pytest.approx(share, abs=1e-3)
    assert 0.9 <= manifest["recall"] < 1


@pytest.mark.parametrize("profile", ["local-threads", "portable"])
def test_every_runner_builds_the_same_files(tmp_path: Path, profile: str) -> None:
    expected = embedded(tmp_path / "local", 200, "resources.memory_mb=0.12")
    context = embedded(tmp_path / profile, 200, "resources.memory_mb=0.12", f"beam.profile={profile}")
    assert indexing.index(context.config, context.run, context.progress) == indexing.index(
        expected.config, expected.run, expected.progress
    )
    assert files_of(context) == files_of(expected)


# --- killed and resumed


def finished(workspace: Path) -> list[Path]:
    """Shards of a stage that is not finished."""
    return sorted(workspace.glob("runs/*/.tmp-index-*/index-*.ann"))


def test_after_a_kill_builds_only_the_missing_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ("resources.memory_mb=2.0",)
    context = embedded(tmp_path, 20_000, *settings)
    command = [program.RECSYS, "index", "--config", tmp_path / "recsys.toml"]
    command += [part for setting in settings for part in ("--set", setting)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as job:
        while job.poll() is None:
            if len(finished(tmp_path / "workspace")) >= 3:
                job.kill()
                break
    assert job.returncode == -9
    there = {path.name for path in finished(tmp_path / "workspace")}
    assert 3 <= len(there) <= 40

    built = set()
    build = annoy_index.build

    def counting(vectors: Any, config: Any, path: Path, **named: Any) -> Any:
        built.add(path.stem)
        return build(vectors, config, path, **named)

    monkeypatch.setattr(annoy_index, "build", counting)
    indexing.index(context.config, context.run, context.progress)
    assert built == {shard.file for shard in plan_shards(20_000, 500)} - there

    undisturbed = embedded(tmp_path / "undisturbed", 20_000, *settings)
    indexing.index(undisturbed.config, undisturbed.run, undisturbed.progress)
    assert files_of(context) == files_of(undisturbed)


# --- a whole night


def test_a_run_with_many_shards_returns_the_same_neighbors(tmp_path: Path) -> None:
    """Look-up and export agree, and find the block of an item, in whatever shards its items lie."""
    config = world.write(tmp_path)
    flags = ("--config", config, "--set", "resources.memory_mb=0.04")
    done = program.run("nightly", *flags, "--json")
    assert done.returncode == 0, done.stderr
    assert "in each of 5 files" in done.stderr
    release = Release.load(json.loads(done.stdout)["path"])
    shards = release.manifest.index
    assert [shard.stop - shard.start for shard in shards] == [9, 10, 10, 10, 10]
    assert {path.name for path in release.path.glob("*.ann")} == {shard.file for shard in shards}

    item, *others = world.item_ids(1)
    held = [range(shard.start, shard.stop) for shard in shards]
    numbers = [release.catalog.item_number(other) for other in [item, *others]]
    assert len([items for items in held if {*items} & {*numbers}]) > 1
    done = program.run("similar", item, "--k", len(others), "--release", release.path, "--json")
    assert {near["item_id"] for near in json.loads(done.stdout)["neighbors"]} == set(others)

    done = program.run("export", *flags, "--k", 48, "--to", tmp_path / "all.jsonl", "--json")
    assert done.returncode == 0, done.stderr
    exported = pl.read_ndjson(tmp_path / "all.jsonl")
    assert exported["item_id"].to_list() == list(release.catalog.item_ids)
    for item_id, neighbors in exported.select("item_id", "neighbors").iter_rows():
        similar = release.similar(item_id, 48).neighbors
        assert [(near["item_id"], near["similarity"]) for near in neighbors] == [
            (near.item_id, near.similarity) for near in similar
        ]
        assert len(neighbors) == 48
