"""Release folders: golden releases of every format, and damaged releases that are rejected."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recsys import Release
from recsys.config.sections import IndexConfig
from recsys.data import followers
from recsys.data.storage import sha256
from recsys.errors import InputError, ReleaseError, UnknownItemError
from recsys.index import neighbors
from recsys.index.annoy_index import build
from recsys.index.distances import DISTANCES
from recsys.index.shards import INDEX_FILE
from recsys.release import formats
from recsys.release.manifest import FileEntry, read_manifest
from recsys.release.writer import write_release
from tests import GOLDEN_RELEASES

GOLDEN = GOLDEN_RELEASES


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Copy of a golden release that tests may damage."""
    shutil.copytree(GOLDEN / "v2", tmp_path / "release")
    return tmp_path / "release"


def rewrite(folder: Path, **changed: Any) -> None:
    """Change fields of the manifest and update its checksums."""
    manifest = json.loads((folder / formats.MANIFEST).read_text())
    manifest |= changed
    for name in manifest["files"]:
        size, digest = (folder / name).stat().st_size, sha256(folder / name)
        manifest["files"][name] = {"bytes": size, "sha256": digest}
    (folder / formats.MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("version", sorted(path.name for path in GOLDEN.iterdir()))
def test_golden_release_loads_and_returns_the_expected_neighbors(version: str) -> None:
    """The nearest neighbors of an item are the other items of its block."""
    answer = Release.load(GOLDEN / version).similar("item-1-1", k=7)
    assert {neighbor.item_id for neighbor in answer.neighbors} == {
        f"item-1-{position}" for position in (0, 2, 3, 4, 5, 6, 7)
    }


def test_result_is_exact() -> None:
    """Compared with cosines of the stored vectors, computed in plain Python."""
    release = Release.load(GOLDEN / "v2")
    vectors = release.space("similar").vectors
    number = release.catalog.item_number("item-4-0")
    cosines = {
        release.catalog.item_ids[row]: sum(float(a) * float(b) for a, b in zip(vector, vectors[number], strict=True))
        for row, vector in enumerate(vectors)
        if row != number
    }
    nearest = sorted(cosines, key=lambda item: -cosines[item])[:5]
    answer = release.similar("item-4-0", k=5)
    assert [neighbor.item_id for neighbor in answer.neighbors] == nearest
    assert [neighbor.similarity for neighbor in answer.neighbors] == pytest.approx([cosines[i] for i in nearest])


def test_a_large_k_returns_all_other_items() -> None:
    answer = Release.load(GOLDEN / "v2").similar("item-0-0", k=1_000)
    assert len(answer.neighbors) == 48
    assert len({neighbor.item_id for neighbor in answer.neighbors}) == 48


def test_error_names_the_unknown_item() -> None:
    with pytest.raises(UnknownItemError, match="no such"):
        Release.load(GOLDEN / "v2").similar("no such")


def test_rejects_a_k_below_one() -> None:
    with pytest.raises(InputError, match=r"k must be at least 1. Received: 0"):
        Release.load(GOLDEN / "v2").similar("item-0-0", k=0)


def test_rejects_an_index_of_another_dimension(folder: Path) -> None:
    """Annoy would load it; the comparison with the embeddings fails."""
    vectors = np.random.default_rng(0).normal(size=(49, 17)).astype(np.float32)
    build(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), IndexConfig(), folder / INDEX_FILE)
    rewrite(folder)
    with pytest.raises(ReleaseError, match=r"index .*dimension 16"):
        Release.load(folder)


def test_rejects_an_index_of_other_vectors(folder: Path) -> None:
    vectors = np.roll(np.load(folder / formats.EMBEDDINGS), 1, axis=0)
    build(vectors, IndexConfig(), folder / INDEX_FILE)
    rewrite(folder)
    with pytest.raises(ReleaseError, match="another vector for item number"):
        Release.load(folder)


def test_rejects_embeddings_with_nan(folder: Path) -> None:
    """Annoy would return the first items of the catalog as its neighbors."""
    vectors = np.load(folder / formats.EMBEDDINGS)
    vectors[7, 3] = np.nan
    np.save(folder / formats.EMBEDDINGS, vectors)
    rewrite(folder)
    with pytest.raises(ReleaseError, match=r"finite and of length 1 .*Received: item number 7"):
        Release.load(folder)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_items": 48}, "items in the catalog must be 48. Received: 49"),
        ({"dimension": 17}, r"must be \(49, 17\). Received: \(49, 16\)"),
        ({"catalogue_fingerprint": "0" * 64}, "catalog fingerprint must be 0000"),
        ({"metric": "dot"}, "metric must be angular. Received: dot"),
        ({"metric": "euclidean"}, "metric must be angular. Received: euclidean"),
        ({"distance": "euclidean"}, "metric must be euclidean. Received: angular"),
        ({"distance": "hamming"}, "distance"),
        ({"format_version": 7}, "format version from 1 to 6. Received: 7. Update recsys"),
        ({"format_version": 0}, "format version from 1 to 6. Received: 0. Build the release again"),
        ({"format_version": 1}, "files in the manifest must be"),
        ({"recency": "half"}, "recency"),
        ({"search_k": "many"}, "search_k"),
        ({"surprise": 1}, "surprise"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_rejects_a_manifest_that_does_not_match_the_files(folder: Path, changed: dict[str, Any], message: str) -> None:
    rewrite(folder, **changed)
    with pytest.raises(ReleaseError, match=message):
        Release.load(folder)


def test_rejects_a_folder_without_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"manifest\.json"):
        Release.load(tmp_path)


def test_rejects_a_manifest_that_is_not_json(folder: Path) -> None:
    (folder / formats.MANIFEST).write_text("{")
    with pytest.raises(ReleaseError, match="must be the manifest of a release"):
        Release.load(folder)


def test_failed_write_leaves_no_files(tmp_path: Path) -> None:
    """A missing source file is an error before the folder gets its final name."""
    sources = {formats.CATALOG: GOLDEN / "v4" / formats.CATALOG, f"next/{INDEX_FILE}": tmp_path / "missing"}
    with pytest.raises(FileNotFoundError):
        write_release(sources, {"release_id": "abc"}, tmp_path / "releases")
    assert list((tmp_path / "releases").iterdir()) == []


def test_written_release_equals_its_sources(tmp_path: Path) -> None:
    golden = read_manifest(GOLDEN / "v4")
    manifest = {name: value for name, value in golden if name not in {"files", "format_version"}}
    names = {name: name if name in formats.SHARED_FILES else f"next/{name}" for name in golden.files}
    sources = {new: GOLDEN / "v4" / name for name, new in names.items()}
    no_followers = pl.DataFrame(schema={"item": pl.Int32, "follower": pl.Int32, "users": pl.Int32})
    followers.group_by_item(no_followers, np.ones(golden.num_items, np.int64), 0).write_parquet(
        tmp_path / "part.parquet"
    )
    sources[formats.FOLLOWERS] = tmp_path / "followers.npy"
    followers.save(3, [tmp_path / "part.parquet"], sources[formats.FOLLOWERS])
    table = f"next/{formats.NEIGHBORS}"
    sources[table] = tmp_path / "neighbors.npy"
    neighbors.save_exact(np.load(GOLDEN / "v4" / formats.EMBEDDINGS), sources[table], DISTANCES["cosine"])
    path = write_release(sources, manifest, tmp_path)
    assert path == tmp_path / golden.release_id
    files = {new: golden.files[name] for name, new in names.items()}
    for name in (formats.FOLLOWERS, table):
        files[name] = FileEntry(bytes=sources[name].stat().st_size, sha256=sha256(sources[name]))
    expected = golden.model_copy(update={"format_version": formats.FORMAT_VERSION, "files": files})
    assert Release.load(path).manifest == expected
    assert {name: (path / name).read_bytes() for name in files} == {
        new: source.read_bytes() for new, source in sources.items()
    }
    assert write_release(sources, manifest, tmp_path) == path


# --- an index of several files


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Copy of a release with an index of three files, that tests may damage."""
    shutil.copytree(GOLDEN / "v3", tmp_path / "sharded")
    return tmp_path / "sharded"


def test_manifest_lists_the_shards_of_the_index() -> None:
    shards = Release.load(GOLDEN / "v3").space("next").entry.index
    assert [tuple(shard.model_dump().values()) for shard in shards] == [
        ("index-00000.ann", 0, 16),
        ("index-00001.ann", 16, 32),
        ("index-00002.ann", 32, 49),
    ]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_index_has_one_file_before_format_3(version: str) -> None:
    (shard,) = Release.load(GOLDEN / version).space("next").entry.index
    assert (shard.file, shard.start, shard.stop) == ("index.ann", 0, 49)


def test_results_do_not_depend_on_the_number_of_shards(sharded: Path) -> None:
    """Compares three shards with one, for all items."""
    expected = Release.load(sharded)
    build(np.load(sharded / formats.EMBEDDINGS), IndexConfig(), sharded / INDEX_FILE)
    manifest = json.loads((sharded / formats.MANIFEST).read_text())
    for shard in manifest["index"]:
        del manifest["files"][shard["file"]]
    manifest["files"][INDEX_FILE] = {}
    shards = [{"file": INDEX_FILE, "start": 0, "stop": 49}]
    rewrite(sharded, files=manifest["files"], index=shards, search_k=10_000)
    received = Release.load(sharded)
    for item_id in expected.catalog.item_ids:
        assert received.similar(item_id, 48).neighbors == expected.similar(item_id, 48).neighbors


@pytest.mark.parametrize("name", [f"index-0000{number}.ann" for number in range(3)])
@pytest.mark.parametrize("share", [0, 0.5, None], ids=["empty", "truncated", "missing"])
def test_error_names_the_damaged_shard(sharded: Path, name: str, share: float | None) -> None:
    content = (sharded / name).read_bytes()
    (sharded / name).unlink()
    if share is None:
        with pytest.raises(ReleaseError, match=f"must hold {name}. Received: no such file"):
            Release.load(sharded)
        return
    (sharded / name).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ReleaseError, match=f"bytes of {name} must be {len(content)}"):
        Release.load(sharded)


def test_rejects_swapped_shards(sharded: Path) -> None:
    first, second, swap = (sharded / name for name in ("index-00000.ann", "index-00001.ann", "swap"))
    first.rename(swap)
    second.rename(first)
    swap.rename(second)
    with pytest.raises(ReleaseError, match=r"SHA-256 of index-0000[01]\.ann"):
        Release.load(sharded)
    rewrite(sharded)
    with pytest.raises(ReleaseError, match=r"index-00000\.ann .*another vector for item number 0\b"):
        Release.load(sharded)


@pytest.mark.parametrize(
    ("shard", "changed", "message"),
    [
        (1, {"start": 15}, r"index-00001\.ann .*must start at item number 16.*Received: 15 to 32"),
        (2, {"stop": 48}, "must hold 49 items. Received: 48 items"),
        (0, {"stop": -1}, r"index-00000\.ann .*at least one item. Received: 0 to -1"),
        (1, {"file": "index-00000.ann"}, "files in the manifest must be"),
        (1, {"file": "index-00007.ann"}, "files in the manifest must be"),
        (1, {"file": "../index-00001.ann"}, r"spaces\.next\.index\.1\.file"),
        (1, {"file": "/index-00001.ann"}, r"spaces\.next\.index\.1\.file"),
        (1, {"file": "embeddings.npy"}, r"spaces\.next\.index\.1\.file"),
        (1, {"file": "index-00001.ann\n"}, r"spaces\.next\.index\.1\.file"),
        (1, {"surprise": 1}, r"spaces\.next\.index\.1\.surprise"),
    ],
)
def test_rejects_invalid_shards(sharded: Path, shard: int, changed: dict[str, Any], message: str) -> None:
    shards = json.loads((sharded / formats.MANIFEST).read_text())["index"]
    shards[shard] |= changed
    rewrite(sharded, index=shards)
    with pytest.raises(ReleaseError, match=message):
        Release.load(sharded)


def test_format_3_requires_the_field_index(sharded: Path) -> None:
    manifest = json.loads((sharded / formats.MANIFEST).read_text())
    del manifest["index"]
    (sharded / formats.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ReleaseError, match=r"spaces\.next\.index\s+Field required"):
        Release.load(sharded)


# --- formats and distances


@pytest.mark.parametrize("field", ["distance", "recency"])
def test_format_2_requires_fields_that_format_1_lacks(folder: Path, field: str) -> None:
    manifest = json.loads((folder / formats.MANIFEST).read_text())
    del manifest[field]
    (folder / formats.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ReleaseError, match=field):
        Release.load(folder)


def test_format_1_uses_the_cosine_and_has_no_calibration() -> None:
    release = Release.load(GOLDEN / "v1")
    space = release.space("next")
    assert (space.distance.name, space.entry.recency, space.calibration) == ("cosine", None, None)
    assert {neighbor.probability for neighbor in release.similar("item-0-0").neighbors} == {None}
    with pytest.raises(InputError, match=r"must have a calibration .* of format 1, has none"):
        release.verify("item-0-0", "item-0-1")


def test_similarities_use_the_distance_of_the_release(write_release: Callable[..., Path], tmp_path: Path) -> None:
    path = write_release(["a", "b", "c", "d"])
    for name in ("euclidean", "manhattan"):
        folder = tmp_path / name
        shutil.copytree(path, folder)
        vectors = np.load(folder / "next" / formats.EMBEDDINGS) * np.float32(3)
        np.save(folder / "next" / formats.EMBEDDINGS, vectors)
        build(vectors, IndexConfig(), folder / "next" / INDEX_FILE, distance=DISTANCES[name])
        rewrite(folder, distance=name, metric=name)
        release = Release.load(folder)
        difference = np.abs(vectors[0].astype(float) - vectors[1])
        expected = 1 / (1 + (difference.sum() if name == "manhattan" else np.sqrt((difference**2).sum())))
        assert release.similarity("a", "b") == pytest.approx(expected, rel=1e-6)
        neighbors = {neighbor.item_id: neighbor.similarity for neighbor in release.similar("a").neighbors}
        assert neighbors["b"] == pytest.approx(expected, rel=1e-5)


# --- similarity and verification


def test_similarity_of_two_items_equals_the_similarity_in_a_result() -> None:
    release = Release.load(GOLDEN / "v2")
    for neighbor in release.similar("item-2-3", k=48).neighbors:
        exact = release.similarity("item-2-3", neighbor.item_id)
        assert exact == pytest.approx(neighbor.similarity, abs=1e-6)
        assert release.similarity(neighbor.item_id, "item-2-3") == exact
    assert release.similarity("item-2-3", "item-2-3") == 1


def test_verifies_that_items_of_a_block_are_the_same() -> None:
    release = Release.load(GOLDEN / "v2")
    verdict = release.verify("item-1-1", "item-1-2")
    assert verdict.same
    assert verdict.probability > 0.5
    assert [tuple(item) for item in verdict.items] == [
        ("item-1-1", "Title of item-1-1"),
        ("item-1-2", "Title of item-1-2"),
    ]
    assert verdict.release_id == release.release_id
    assert not release.verify("item-1-1", "item-4-2").same
    assert release.verify("item-1-1", "item-4-2").probability < 0.5


def test_pairs_are_the_same_if_their_probability_is_at_least_one_half() -> None:
    release = Release.load(GOLDEN / "v2")
    verdicts = [release.verify("item-3-0", item_id) for item_id in release.catalog.item_ids]
    assert {verdict.same for verdict in verdicts} == {True, False}
    for verdict in verdicts:
        assert verdict.threshold.similarity is not None
        assert verdict.same == (verdict.similarity >= verdict.threshold.similarity) == (verdict.probability >= 0.5)


def test_verification_uses_the_requested_threshold(write_release: Callable[..., Path]) -> None:
    release = Release.load(write_release(["a", "b", "c"]))
    assert release.verify("a", "b").threshold.similarity == 0.1
    assert release.verify("a", "b", precision=0.9).threshold.similarity == 0.5
    assert release.verify("a", "b", false_positive_rate=0.05).threshold.similarity == 0.625
    with pytest.raises(InputError, match=r"for: 0\.9\. Received: 0\.95, which no similarity reaches"):
        release.verify("a", "b", precision=0.95)
    with pytest.raises(UnknownItemError, match="'z'"):
        release.verify("a", "z")


def test_release_without_a_calibration_returns_neighbors(write_release: Callable[..., Path]) -> None:
    release = Release.load(write_release(["a", "b", "c"], calibrated=False))
    assert release.space("similar").calibration is None
    assert len(release.similar("a").neighbors) == 2
    with pytest.raises(InputError, match=r"must have a calibration .* of format 6, has none"):
        release.verify("a", "b")


def test_rejects_a_calibration_with_descending_probabilities(folder: Path) -> None:
    content = json.loads((folder / formats.CALIBRATION).read_text())
    content["calibration"]["probabilities"].reverse()
    (folder / formats.CALIBRATION).write_text(json.dumps(content))
    rewrite(folder)
    with pytest.raises(ReleaseError, match="probabilities must not descend"):
        Release.load(folder)
