"""Releases with one or two embedding spaces: which space answers, and releases that are rejected."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from recsys import Release
from recsys.config.senses import SENSES, Sense
from recsys.data.storage import sha256
from recsys.errors import ReleaseError
from recsys.index.shards import INDEX_FILE
from recsys.release import formats
from recsys.release.manifest import read_manifest
from recsys.retrieval.query import Query, WeightedItem
from tests import GOLDEN_RELEASES

ITEM_IDS = [f"item {number:02}" for number in range(17)]


@pytest.fixture
def folder(write_release: Callable[..., Path]) -> Path:
    """Release with two spaces, which tests may damage."""
    return write_release(ITEM_IDS, spaces=("next", "similar"))


def stored_vectors(folder: Path, space: Sense) -> NDArray[np.float32]:
    vectors: NDArray[np.float32] = np.load(folder / space / formats.EMBEDDINGS)
    return vectors


def naive(vectors: NDArray[np.float32], number: int) -> list[tuple[str, float]]:
    """Return all other items with their cosines, nearest first."""
    cosines = [sum(float(a) * float(b) for a, b in zip(row, vectors[number], strict=True)) for row in vectors]
    others = [other for other in range(len(vectors)) if other != number]
    return [(ITEM_IDS[other], cosines[other]) for other in sorted(others, key=lambda other: -cosines[other])]


def update_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest, and update the size and hash of each file that exists."""
    manifest = json.loads((folder / formats.MANIFEST).read_text())
    change(manifest)
    for name in manifest["files"]:
        if (folder / name).is_file():
            manifest["files"][name] = {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
    (folder / formats.MANIFEST).write_text(json.dumps(manifest))


# --- the space that answers


@pytest.mark.parametrize(
    ("names", "sense", "answered_in"),
    [
        ("items", None, "similar"),
        ("items", "next", "next"),
        ("items", "similar", "similar"),
        ("history", None, "next"),
        ("history", "next", "next"),
        ("history", "similar", "similar"),
    ],
)
def test_query_is_answered_in_its_sense(folder: Path, names: str, sense: Sense | None, answered_in: Sense) -> None:
    """By default `similar` answers items and `next` answers histories."""
    number = 4
    named: dict[str, Any] = (
        {"items": (WeightedItem(ITEM_IDS[number]),)} if names == "items" else {"history": (ITEM_IDS[number],)}
    )
    answer = Release.load(folder).search(Query(**named, k=6, sense=sense))
    expected = naive(stored_vectors(folder, answered_in), number)[:6]
    assert answer.sense == answered_in
    assert [neighbor.item_id for neighbor in answer.neighbors] == [item_id for item_id, _ in expected]
    similarities = [neighbor.similarity for neighbor in answer.neighbors]
    assert similarities == pytest.approx([cosine for _, cosine in expected], abs=1e-6)


def test_similarity_and_verification_use_the_space_of_the_sense(folder: Path) -> None:
    release = Release.load(folder)
    cosines = {sense: dict(naive(stored_vectors(folder, sense), 2))[ITEM_IDS[9]] for sense in SENSES}
    assert release.similarity(ITEM_IDS[2], ITEM_IDS[9]) == pytest.approx(cosines["similar"], abs=1e-6)
    assert release.verify(ITEM_IDS[2], ITEM_IDS[9]).similarity == pytest.approx(cosines["similar"], abs=1e-6)
    for sense, cosine in cosines.items():
        assert release.similarity(ITEM_IDS[2], ITEM_IDS[9], sense=sense) == pytest.approx(cosine, abs=1e-6)
        assert release.verify(ITEM_IDS[2], ITEM_IDS[9], sense=sense).similarity == pytest.approx(cosine, abs=1e-6)


def test_release_with_one_space_answers_alike_in_both_senses(write_release: Callable[..., Path]) -> None:
    release = Release.load(write_release(ITEM_IDS))
    answers = {sense: release.search(Query(items=(WeightedItem(ITEM_IDS[3]),), k=16, sense=sense)) for sense in SENSES}
    assert answers["similar"].neighbors == answers["next"].neighbors
    assert {sense: answer.sense for sense, answer in answers.items()} == {sense: sense for sense in SENSES}
    assert release.space("similar") is release.space("next")


def test_space_is_opened_from_its_own_files(folder: Path) -> None:
    release = Release.load(folder)
    assert set(release.spaces) == set(SENSES)
    for sense in SENSES:
        assert release.space(sense).path == folder / sense
        np.testing.assert_array_equal(release.space(sense).vectors, stored_vectors(folder, sense))
    assert not np.array_equal(release.space("similar").vectors, release.space("next").vectors)


# --- releases that are rejected


@pytest.mark.parametrize("damage", ["changed byte", "missing"])
@pytest.mark.parametrize("space", SENSES)
def test_error_names_the_damaged_file_of_a_space(folder: Path, space: Sense, damage: str) -> None:
    for name in (*formats.SPACE_FILES, INDEX_FILE):
        file = folder / space / name
        content = file.read_bytes()
        file.unlink()
        if damage == "changed byte":
            file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ReleaseError, match=f"(SHA-256 of|must hold) {space}/{name}"):
            Release.load(folder)
        file.unlink(missing_ok=True)
        file.write_bytes(content)
    assert Release.load(folder)


def test_rejects_an_index_of_the_other_space(folder: Path) -> None:
    index = (folder / "next" / INDEX_FILE).read_bytes()
    (folder / "similar" / INDEX_FILE).unlink()
    (folder / "similar" / INDEX_FILE).write_bytes(index)
    update_manifest(folder, lambda _: None)
    with pytest.raises(ReleaseError, match=r"similar/index\.ann .*another vector for item number 0\b"):
        Release.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda spaces: spaces.pop("next"), r"spaces must contain next\. Received: similar"),
        (lambda spaces: spaces.clear(), r"spaces must contain next\. Received: none"),
        (lambda spaces: spaces.update(other=spaces["next"]), r"spaces\.other"),
        (lambda spaces: spaces.pop("similar"), "files in the manifest must be"),
        (lambda spaces: spaces["similar"].update(surprise=1), r"spaces\.similar\.surprise"),
        (lambda spaces: spaces["similar"].pop("recency"), r"spaces\.similar\.recency"),
        (lambda spaces: spaces["similar"]["index"][0].update(file="../next/index.ann"), r"spaces\.similar\.index"),
    ],
    ids=["without next", "none", "unknown", "files without an entry", "unknown field", "missing field", "shard"],
)
def test_rejects_a_manifest_with_other_spaces(
    folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    update_manifest(folder, lambda manifest: change(manifest["spaces"]))
    with pytest.raises(ReleaseError, match=message):
        Release.load(folder)


def test_rejects_a_space_without_its_files(write_release: Callable[..., Path]) -> None:
    folder = write_release(ITEM_IDS)
    update_manifest(folder, lambda manifest: manifest["spaces"].update(similar=manifest["spaces"]["next"]))
    with pytest.raises(ReleaseError, match=r"files in the manifest must be .*similar/index\.ann.*Received: "):
        Release.load(folder)


@pytest.mark.parametrize("name", ["../x", "next/../x", "other/x", "next/a/b", "/x", "x"])
def test_rejects_a_manifest_with_other_files(folder: Path, name: str) -> None:
    update_manifest(folder, lambda manifest: manifest["files"].update({name: {"bytes": 1, "sha256": "0" * 64}}))
    with pytest.raises(ReleaseError, match="files in the manifest must be"):
        Release.load(folder)


@pytest.mark.parametrize("version", ["v1", "v2", "v3", "v4"])
def test_releases_of_formats_before_5_have_the_space_next(version: str) -> None:
    assert list(read_manifest(GOLDEN_RELEASES / version).spaces) == ["next"]
