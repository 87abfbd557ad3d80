"""The folder that is shipped: everything a look-up needs, and the proof that it belongs together.

A release is written under a temporary name, its manifest last, and renamed; nothing in it is ever written
again (an Annoy file that changes under a reader kills the reader). Loading checks every file against the
manifest, and the files against each other. `docs/reference/release-format.md` describes the format.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from recsys.data.catalog import Catalog
from recsys.data.item_users import ItemUsers
from recsys.data.storage import sha256
from recsys.errors import InputError, ReleaseError
from recsys.evaluation import calibration
from recsys.evaluation.calibration import Calibration
from recsys.evaluation.protocol import PROTOCOL
from recsys.index import annoy_index, embeddings
from recsys.index.annoy_index import Index
from recsys.index.distances import DISTANCES, Distance
from recsys.index.embeddings import Vectors
from recsys.index.queries import default_recency
from recsys.index.recall import index_recall
from recsys.index.shards import Shard
from recsys.release.formats import (
    CALIBRATION,
    CATALOG,
    EMBEDDINGS,
    EVALUATION,
    FILES,
    FORMAT_VERSION,
    FORMATS,
    ITEM_USERS,
    MANIFEST,
)
from recsys.retrieval.engine import Engine
from recsys.retrieval.overlay import EMPTY_OVERLAY, Overlay
from recsys.retrieval.query import Query
from recsys.retrieval.results import SearchResult, VerificationResult

SELF_TEST_ITEMS, SELF_TEST_K = 8, 10


class FileEntry(BaseModel):
    """One file of a release."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """What a release was made of, and what it must hold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int
    release_id: str
    created_at: str
    """ISO 8601, UTC."""
    num_items: int
    dimension: int
    metric: str
    """Annoy's name of the distance."""
    distance: Literal["cosine", "euclidean", "manhattan"]
    """What "near" means."""
    n_trees: int
    seed: int
    n_jobs: int
    index: tuple[Shard, ...]
    """Its files, in the order of the item numbers."""
    search_k: int
    """Nodes that a query inspects in each file of the index, tuned to the recall."""
    recall_k: int
    index_recall: float
    """Share of the exact nearest `recall_k` that the index returns at `search_k`."""
    recency: float | None
    """Weight for each step back of a look-up from a history, chosen on validation; null where none was."""
    catalog_fingerprint: str
    data_snapshot: str
    """SHA-256 over the input files."""
    code_version: str
    parent_release: str | None
    """The champion when this release was built."""
    mlflow_run: str | None
    config: dict[str, Any]
    """The settings that shape a release."""
    files: dict[str, FileEntry]


@dataclass(frozen=True)
class Release:
    """A verified release, ready to answer.

    Example:
        >>> Release.load("workspace/releases/…").similar("50", k=10).neighbors  # doctest: +SKIP
    """

    path: Path
    manifest: Manifest
    catalog: Catalog
    vectors: Vectors
    """float32 [num_items, dimension], mapped."""
    index: Index
    calibration: Calibration | None = None
    """None where the release is of format 1, or had too few held-out pairs."""
    item_users: ItemUsers | None = None
    """Who touched what, mapped; None where the release is of format 1 or 2."""

    @classmethod
    def load(cls, path: str | Path) -> Release:
        """Open a release folder and check everything in it.

        Raises:
            ReleaseError: no release, one of another format, a file that is missing or changed, files that
                do not belong together, or an index that does not find what exact search finds.
        """
        path = Path(path)
        manifest = read_manifest(path)
        _verify_files(path, manifest)
        names = FORMATS[manifest.format_version]
        try:
            catalog = Catalog.load(path / names.file(CATALOG))
            vectors = embeddings.load(path / EMBEDDINGS)
            _compare(path, "items in the catalog", manifest.num_items, len(catalog))
            _compare(path, "catalog fingerprint", manifest.catalog_fingerprint, catalog.fingerprint)
            _compare(path, "shape of the embeddings", (manifest.num_items, manifest.dimension), vectors.shape)
            distance = DISTANCES[manifest.distance]
            _compare(path, "metric", distance.metric, manifest.metric)
            embeddings.validate(vectors, manifest.num_items, str(path / EMBEDDINGS), distance=distance)
            annoy = annoy_index.load(path, manifest.index, vectors, manifest.search_k, distance=distance)
            calibrated = None if CALIBRATION in names.absent_files else calibration.load(path / CALIBRATION)
            users_path = path / names.file(ITEM_USERS)
            item_users = None if ITEM_USERS in names.absent_files else ItemUsers.load(users_path, len(catalog))
        except InputError as error:
            raise ReleaseError(f"release {path} is not usable: {error}") from None
        release = cls(path, manifest, catalog, vectors, annoy, calibrated, item_users)
        release._self_test()
        return release

    @property
    def release_id(self) -> str:
        """Id of the release, in every answer."""
        return self.manifest.release_id

    @property
    def distance(self) -> Distance:
        """What "near" means here."""
        return DISTANCES[self.manifest.distance]

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        """Figures of the release and of the baselines, as they were measured when it was built."""
        return json.loads((self.path / EVALUATION).read_text(encoding="utf-8"))  # type: ignore[no-any-return]

    @cached_property
    def engine(self) -> Engine:
        """The search engine of this release."""
        return Engine(
            self.release_id,
            self.catalog,
            self.vectors,
            self.index,
            recency=default_recency(PROTOCOL.recencies) if self.manifest.recency is None else self.manifest.recency,
            calibration=self.calibration,
            item_users=self.item_users,
        )

    def similar(self, item_id: str, k: int = 10) -> SearchResult:
        """The `k` items most like one item, fewer only where the catalog holds no more."""
        return self.search(Query.from_item(item_id, k))

    def search(self, query: Query, overlay: Overlay = EMPTY_OVERLAY) -> SearchResult:
        """Return the neighbors of a query; see `recsys.retrieval.engine.Engine.search`."""
        return self.engine.search(query, overlay)

    def similarity(self, item_a: str, item_b: str) -> float:
        """How similar two items are, exactly: larger is closer, of equal vectors 1.

        Raises:
            UnknownItemError: the catalog does not hold one of them.
        """
        numbers = [self.catalog.item_number(item_id) for item_id in (item_a, item_b)]
        return float(calibration.similarities(self.distance, self.vectors[numbers[:1]], self.vectors[numbers[1:]])[0])

    def verify(
        self, item_a: str, item_b: str, *, precision: float | None = None, false_positive_rate: float | None = None
    ) -> VerificationResult:
        """Whether two items belong together: whether their similarity reaches a calibrated threshold.

        Args:
            item_a: one item.
            item_b: the other; the answer is the same the other way round.
            precision: take the threshold of this precision.
            false_positive_rate: take the threshold of this false-positive rate. Without either, two items are the
                same where the probability is at least one half.

        Raises:
            UnknownItemError: the catalog does not hold one of them.
            InputError: the release has no calibration, or none for this target.
        """
        similarity = self.similarity(item_a, item_b)
        if self.calibration is None:
            raise InputError(
                f"release must have a calibration to tell whether items are the same. Received: {self.release_id}, "
                f"of format {self.manifest.format_version}, has none. Build a release from more held-out pairs."
            )
        return VerificationResult.from_similarity(
            self.catalog,
            self.release_id,
            (item_a, item_b),
            similarity=similarity,
            calibration=self.calibration,
            threshold=self.calibration.threshold(precision=precision, false_positive_rate=false_positive_rate),
        )

    def _self_test(self) -> None:
        """Known questions: on some machines an Annoy build answers every query with one neighbor (Annoy #679)."""
        items = np.linspace(0, len(self.index) - 1, SELF_TEST_ITEMS).astype(np.int32)
        k = min(SELF_TEST_K, len(self.index) - 1)
        measured = index_recall(self.index, self.vectors, np.unique(items), k)
        # eight items are a small sample: half of the recall that the build proved is enough to tell nonsense
        if measured < self.manifest.index_recall / 2:
            raise ReleaseError(
                f"release {self.path} is not usable: on this machine its index finds {measured:.0%} of the "
                f"nearest neighbors. Expected about {self.manifest.index_recall:.0%}. Reinstall Annoy here."
            )


def read_manifest(path: Path) -> Manifest:
    """The manifest of a release folder.

    Raises:
        ReleaseError: there is none, or it is not one that we read.
    """
    try:
        saved = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        version = saved["format_version"]
    except FileNotFoundError:
        raise ReleaseError(f"release must be a folder with a {MANIFEST}. Received: {path}.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReleaseError(f"{path / MANIFEST} must be the manifest of a release. Received: {error!r}.") from None
    if version not in FORMATS:
        newer = isinstance(version, int) and version > FORMAT_VERSION
        remedy = "Update recsys to read it." if newer else "Build the release again."
        raise ReleaseError(
            f"release {path} must have a format version from 1 to {FORMAT_VERSION}. Received: {version!r}. {remedy}"
        )
    try:
        return Manifest.model_validate(FORMATS[version].upgrade(saved))
    except ValidationError as error:
        raise ReleaseError(f"{path / MANIFEST} must be the manifest of a release. Received: {error}") from None


def write(sources: dict[str, Path], manifest: dict[str, Any], releases: Path) -> Path:
    """Copy files into a new release folder below `releases`, and return it.

    A folder that is already there under the final name is complete (it is renamed last) and is kept.

    Args:
        sources: where each of `FILES` and each file of the index lies.
        manifest: all fields but `format_version` and `files`.
        releases: folder of all releases.
    """
    final = releases / str(manifest["release_id"])
    if final.exists():
        return final
    prefix = f".tmp-{manifest['release_id']}-"
    for leftover in releases.glob(f"{prefix}*"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = releases / f"{prefix}{secrets.token_hex(4)}"
    temporary.mkdir(parents=True)
    try:
        entries = {}
        for name in (*FILES, *(shard.file for shard in manifest["index"])):
            shutil.copyfile(sources[name], temporary / name)
            _flush(temporary / name)
            entries[name] = FileEntry(bytes=(temporary / name).stat().st_size, sha256=sha256(temporary / name))
        complete = Manifest(format_version=FORMAT_VERSION, files=entries, **manifest)
        (temporary / MANIFEST).write_text(complete.model_dump_json(indent=2) + "\n", encoding="utf-8")
        _flush(temporary / MANIFEST)
        _flush(temporary)
        return publish(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(temporary: Path, final: Path) -> Path:
    """Give a complete folder its final name; if another process was faster, its folder stays."""
    try:
        temporary.rename(final)
    except OSError:
        if not (final / MANIFEST).exists():
            raise
    _flush(final.parent)
    return final


def _flush(path: Path) -> None:
    """Bring a file or a folder to the disk: a rename must not outlive what it names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _verify_files(path: Path, manifest: Manifest) -> None:
    names = [*FORMATS[manifest.format_version].files, *(shard.file for shard in manifest.index)]
    _compare(path, "files in the manifest", sorted(names), sorted(manifest.files))
    for name, entry in manifest.files.items():
        if not (path / name).is_file():
            raise ReleaseError(f"release {path} must hold {name}. Received: no such file.")
        _compare(path, f"bytes of {name}", entry.bytes, (path / name).stat().st_size)
        _compare(path, f"SHA-256 of {name}", entry.sha256, sha256(path / name))


def _compare(path: Path, what: str, expected: object, received: object) -> None:
    if expected != received:
        raise ReleaseError(
            f"release {path} is not usable: {what} must be {expected}. Received: {received}. "
            "Fetch or build the release again."
        )
