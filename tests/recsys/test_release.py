"""The release folder: golden ones of every format, and what must not load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys import Release
from recsys import release as releases
from recsys.config import IndexConfig
from recsys.errors import InputError, ReleaseError, UnknownItemError
from recsys.index import build

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A release to hurt."""
    shutil.copytree(GOLDEN / "v1", tmp_path / "release")
    return tmp_path / "release"


def rewrite(folder: Path, **changed: Any) -> None:
    """Change fields of the manifest, and make the checksums fit the files again."""
    manifest = json.loads((folder / releases.MANIFEST).read_text())
    manifest |= changed
    for name in manifest["files"]:
        size, digest = (folder / name).stat().st_size, releases.sha256(folder / name)
        manifest["files"][name] = {"bytes": size, "sha256": digest}
    (folder / releases.MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("version", sorted(path.name for path in GOLDEN.iterdir()))
def test_golden_release_still_loads_and_answers(version: str) -> None:
    """In its world, the neighbours of an item are the other items of its block."""
    answer = Release.load(GOLDEN / version).similar("item-1-1", k=7)
    assert {neighbour.item_id for neighbour in answer.neighbours} == {
        f"item-1-{position}" for position in (0, 2, 3, 4, 5, 6, 7)
    }


def test_answer_is_the_exact_one() -> None:
    """Against cosines computed here, from the stored vectors alone."""
    release = Release.load(GOLDEN / "v1")
    number = release.catalogue.number("item-4-0")
    cosines = {
        release.catalogue.item_ids[other]: sum(
            float(a) * float(b) for a, b in zip(vector, release.vectors[number], strict=True)
        )
        for other, vector in enumerate(release.vectors)
        if other != number
    }
    nearest = sorted(cosines, key=lambda item: -cosines[item])[:5]
    answer = release.similar("item-4-0", k=5)
    assert [neighbour.item_id for neighbour in answer.neighbours] == nearest
    assert [neighbour.similarity for neighbour in answer.neighbours] == pytest.approx([cosines[i] for i in nearest])


def test_more_than_the_catalogue_holds_gives_all_of_it() -> None:
    answer = Release.load(GOLDEN / "v1").similar("item-0-0", k=1_000)
    assert len(answer.neighbours) == 48
    assert len({neighbour.item_id for neighbour in answer.neighbours}) == 48


def test_unknown_item_is_named() -> None:
    with pytest.raises(UnknownItemError, match="no such"):
        Release.load(GOLDEN / "v1").similar("no such")


def test_k_below_one_is_refused() -> None:
    with pytest.raises(InputError, match=r"k must be at least 1. Received: 0"):
        Release.load(GOLDEN / "v1").similar("item-0-0", k=0)


def test_index_of_another_dimension_does_not_load(folder: Path) -> None:
    """Annoy itself would load it: only the vectors beside it give it away."""
    other = np.random.default_rng(0).normal(size=(49, 17)).astype(np.float32)
    build(other / np.linalg.norm(other, axis=1, keepdims=True), IndexConfig(), folder / releases.INDEX)
    rewrite(folder)
    with pytest.raises(ReleaseError, match=r"index .*dimension 16"):
        Release.load(folder)


def test_index_of_other_vectors_does_not_load(folder: Path) -> None:
    other = np.roll(np.load(folder / releases.EMBEDDINGS), 1, axis=0)
    build(other, IndexConfig(), folder / releases.INDEX)
    rewrite(folder)
    with pytest.raises(ReleaseError, match="another vector for item number"):
        Release.load(folder)


def test_vector_that_is_no_number_does_not_load(folder: Path) -> None:
    """Annoy would answer it with the first items of the catalogue."""
    vectors = np.load(folder / releases.EMBEDDINGS)
    vectors[7, 3] = np.nan
    np.save(folder / releases.EMBEDDINGS, vectors)
    rewrite(folder)
    with pytest.raises(ReleaseError, match=r"finite and of length 1. Received: item number 7"):
        Release.load(folder)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"num_items": 48}, "items in the catalogue must be 48. Received: 49"),
        ({"dimension": 17}, r"must be \(49, 17\). Received: \(49, 16\)"),
        ({"catalogue_fingerprint": "0" * 64}, "catalogue fingerprint must be 0000"),
        ({"metric": "dot"}, "metric must be angular. Received: dot"),
        ({"format_version": 2}, "format version 1. Received: 2. Update recsys"),
        ({"format_version": 0}, "format version 1. Received: 0. Build the release again"),
        ({"search_k": "many"}, "search_k"),
        ({"surprise": 1}, "surprise"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_manifest_that_does_not_fit_is_told_with_both_values(folder: Path, changed: dict[str, Any], told: str) -> None:
    rewrite(folder, **changed)
    with pytest.raises(ReleaseError, match=told):
        Release.load(folder)


def test_folder_without_a_manifest_is_no_release(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"manifest\.json"):
        Release.load(tmp_path)


def test_manifest_that_is_no_json_is_told(folder: Path) -> None:
    (folder / releases.MANIFEST).write_text("{")
    with pytest.raises(ReleaseError, match="must be the manifest of a release"):
        Release.load(folder)


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    """A source that is missing stops the release before it has a name."""
    sources = {name: GOLDEN / "v1" / name for name in releases.FILES} | {releases.INDEX: tmp_path / "missing"}
    with pytest.raises(FileNotFoundError):
        releases.write(sources, {"release_id": "abc"}, tmp_path / "releases")
    assert list((tmp_path / "releases").iterdir()) == []


def test_written_release_is_the_one_it_was_made_of(tmp_path: Path) -> None:
    manifest = releases.read_manifest(GOLDEN / "v1").model_dump(exclude={"files", "format_version"})
    sources = {name: GOLDEN / "v1" / name for name in releases.FILES}
    path = releases.write(sources, manifest, tmp_path)
    assert path == tmp_path / manifest["release_id"]
    assert Release.load(path).manifest == Release.load(GOLDEN / "v1").manifest
    assert releases.write(sources, manifest, tmp_path) == path
