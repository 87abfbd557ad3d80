"""The release folder: golden ones of every format, and what must not load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys import Release
from recsys import release as releases
from recsys.config import IndexConfig
from recsys.errors import InputError, ReleaseError, UnknownItemError
from recsys.index import build
from recsys.similarity import DISTANCES

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A release to hurt."""
    shutil.copytree(GOLDEN / "v2", tmp_path / "release")
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
    release = Release.load(GOLDEN / "v2")
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
    answer = Release.load(GOLDEN / "v2").similar("item-0-0", k=1_000)
    assert len(answer.neighbours) == 48
    assert len({neighbour.item_id for neighbour in answer.neighbours}) == 48


def test_unknown_item_is_named() -> None:
    with pytest.raises(UnknownItemError, match="no such"):
        Release.load(GOLDEN / "v2").similar("no such")


def test_k_below_one_is_refused() -> None:
    with pytest.raises(InputError, match=r"k must be at least 1. Received: 0"):
        Release.load(GOLDEN / "v2").similar("item-0-0", k=0)


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
    with pytest.raises(ReleaseError, match=r"finite and of length 1 .*Received: item number 7"):
        Release.load(folder)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"num_items": 48}, "items in the catalogue must be 48. Received: 49"),
        ({"dimension": 17}, r"must be \(49, 17\). Received: \(49, 16\)"),
        ({"catalogue_fingerprint": "0" * 64}, "catalogue fingerprint must be 0000"),
        ({"metric": "dot"}, "metric must be angular. Received: dot"),
        ({"metric": "euclidean"}, "metric must be angular. Received: euclidean"),
        ({"distance": "euclidean"}, "metric must be euclidean. Received: angular"),
        ({"distance": "hamming"}, "distance"),
        ({"format_version": 3}, "format version 1 or 2. Received: 3. Update recsys"),
        ({"format_version": 0}, "format version 1 or 2. Received: 0. Build the release again"),
        ({"format_version": 1}, "files in the manifest must be"),
        ({"recency": "half"}, "recency"),
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
    sources = {name: GOLDEN / "v2" / name for name in releases.FILES} | {releases.INDEX: tmp_path / "missing"}
    with pytest.raises(FileNotFoundError):
        releases.write(sources, {"release_id": "abc"}, tmp_path / "releases")
    assert list((tmp_path / "releases").iterdir()) == []


def test_written_release_is_the_one_it_was_made_of(tmp_path: Path) -> None:
    manifest = releases.read_manifest(GOLDEN / "v2").model_dump(exclude={"files", "format_version"})
    sources = {name: GOLDEN / "v2" / name for name in releases.FILES}
    path = releases.write(sources, manifest, tmp_path)
    assert path == tmp_path / manifest["release_id"]
    assert Release.load(path).manifest == Release.load(GOLDEN / "v2").manifest
    assert releases.write(sources, manifest, tmp_path) == path


@pytest.mark.parametrize("field", ["distance", "recency"])
def test_format_2_has_to_say_what_format_1_left_unsaid(folder: Path, field: str) -> None:
    manifest = json.loads((folder / releases.MANIFEST).read_text())
    del manifest[field]
    (folder / releases.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ReleaseError, match=field):
        Release.load(folder)


def test_format_1_is_by_cosine_and_not_calibrated() -> None:
    release = Release.load(GOLDEN / "v1")
    assert (release.distance.name, release.manifest.recency, release.calibration) == ("cosine", None, None)
    assert {neighbour.probability for neighbour in release.similar("item-0-0").neighbours} == {None}
    with pytest.raises(InputError, match=r"must have a calibration .* of format 1, has none"):
        release.verify("item-0-0", "item-0-1")


def test_every_distance_has_its_index_and_its_similarity(write_release: Callable[..., Path], tmp_path: Path) -> None:
    """The same vectors, near by another distance."""
    path = write_release(["a", "b", "c", "d"])
    for name in ("euclidean", "manhattan"):
        folder = tmp_path / name
        shutil.copytree(path, folder)
        vectors = np.load(folder / releases.EMBEDDINGS) * np.float32(3)
        np.save(folder / releases.EMBEDDINGS, vectors)
        build(vectors, IndexConfig(), folder / releases.INDEX, distance=DISTANCES[name])
        rewrite(folder, distance=name, metric=name)
        release = Release.load(folder)
        apart = np.abs(vectors[0].astype(float) - vectors[1])
        expected = 1 / (1 + (apart.sum() if name == "manhattan" else np.sqrt((apart**2).sum())))
        assert release.similarity("a", "b") == pytest.approx(expected, rel=1e-6)
        neighbours = {near.item_id: near.similarity for near in release.similar("a").neighbours}
        assert neighbours["b"] == pytest.approx(expected, rel=1e-5)


# --- how similar, and whether the same


def test_similarity_of_two_items_is_that_of_the_answer() -> None:
    release = Release.load(GOLDEN / "v2")
    for neighbour in release.similar("item-2-3", k=48).neighbours:
        exact = release.similarity("item-2-3", neighbour.item_id)
        assert exact == pytest.approx(neighbour.similarity, abs=1e-6)
        assert release.similarity(neighbour.item_id, "item-2-3") == exact
    assert release.similarity("item-2-3", "item-2-3") == 1


def test_items_of_one_block_are_the_same_and_others_are_not() -> None:
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


def test_every_pair_is_the_same_where_its_chance_is_at_least_even() -> None:
    release = Release.load(GOLDEN / "v2")
    verdicts = [release.verify("item-3-0", item_id) for item_id in release.catalogue.item_ids]
    assert {verdict.same for verdict in verdicts} == {True, False}
    for verdict in verdicts:
        assert verdict.threshold.similarity is not None
        assert verdict.same == (verdict.similarity >= verdict.threshold.similarity) == (verdict.probability >= 0.5)


def test_a_verdict_takes_the_threshold_that_was_asked_for(write_release: Callable[..., Path]) -> None:
    release = Release.load(write_release(["a", "b", "c"]))
    assert release.verify("a", "b").threshold.similarity == 0.1
    assert release.verify("a", "b", precision=0.9).threshold.similarity == 0.5
    assert release.verify("a", "b", false_positive_rate=0.05).threshold.similarity == 0.625
    with pytest.raises(InputError, match=r"for: 0\.9\. Received: 0\.95, which no similarity reaches"):
        release.verify("a", "b", precision=0.95)
    with pytest.raises(UnknownItemError, match="'z'"):
        release.verify("a", "z")


def test_a_release_without_enough_pairs_answers_all_the_same(write_release: Callable[..., Path]) -> None:
    release = Release.load(write_release(["a", "b", "c"], calibrated=False))
    assert release.calibration is None
    assert len(release.similar("a").neighbours) == 2
    with pytest.raises(InputError, match=r"must have a calibration .* of format 2, has none"):
        release.verify("a", "b")


def test_a_calibration_that_falls_does_not_load(folder: Path) -> None:
    content = json.loads((folder / releases.CALIBRATION).read_text())
    content["calibration"]["probabilities"].reverse()
    (folder / releases.CALIBRATION).write_text(json.dumps(content))
    rewrite(folder)
    with pytest.raises(ReleaseError, match="probabilities must not descend"):
        Release.load(folder)
