"""A release: all files that are needed to answer queries, verified to belong together.

Files of a release never change after it has been written: changing an Annoy file that a process has mapped would crash
that process. Loading checks every file against the manifest, and the files against each other.
`docs/reference/release-format.md` describes the format.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

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
from recsys.release.formats import (
    CALIBRATION,
    CATALOG,
    EMBEDDINGS,
    EVALUATION,
    FORMATS,
    ITEM_USERS,
)
from recsys.release.manifest import Manifest, read_manifest
from recsys.retrieval.engine import Engine
from recsys.retrieval.overlay import EMPTY_OVERLAY, Overlay
from recsys.retrieval.query import Query
from recsys.retrieval.results import SearchResult, VerificationResult

SELF_TEST_ITEMS, SELF_TEST_K = 8, 10


@dataclass(frozen=True)
class Release:
    """A verified release that answers queries.

    Example:
        >>> Release.load("workspace/releases/…").similar("50", k=10).neighbors  # doctest: +SKIP
    """

    path: Path
    manifest: Manifest
    catalog: Catalog
    vectors: Vectors
    """float32 [num_items, dimension], memory-mapped."""
    index: Index
    calibration: Calibration | None = None
    """None for format 1, or with too few held-out pairs."""
    item_users: ItemUsers | None = None
    """Users of each item, memory-mapped; None for formats 1 and 2."""

    @classmethod
    def load(cls, path: str | Path) -> Release:
        """Open a release folder and verify it.

        Raises:
            ReleaseError: the folder is not a release of a supported format, a file is missing or changed, files do
                not belong together, or the recall of the index is far below that of the manifest.
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
        """Id of the release. Every result contains it."""
        return self.manifest.release_id

    @property
    def distance(self) -> Distance:
        """Distance of the embeddings."""
        return DISTANCES[self.manifest.distance]

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        """Quality metrics of the release and of the baselines, measured when the release was built."""
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
        """Return the `k` items most similar to an item; fewer only if the catalog has fewer."""
        return self.search(Query.from_item(item_id, k))

    def search(self, query: Query, overlay: Overlay = EMPTY_OVERLAY) -> SearchResult:
        """Return the neighbors of a query; see `recsys.retrieval.engine.Engine.search`."""
        return self.engine.search(query, overlay)

    def similarity(self, item_a: str, item_b: str) -> float:
        """Return the exact similarity of two items: larger is closer, 1 for equal vectors.

        Raises:
            UnknownItemError: an item is not in the catalog.
        """
        numbers = [self.catalog.item_number(item_id) for item_id in (item_a, item_b)]
        return float(calibration.similarities(self.distance, self.vectors[numbers[:1]], self.vectors[numbers[1:]])[0])

    def verify(
        self, item_a: str, item_b: str, *, precision: float | None = None, false_positive_rate: float | None = None
    ) -> VerificationResult:
        """Decide whether two items are the same: whether their similarity reaches a calibrated threshold.

        Args:
            item_a: id of one item.
            item_b: id of the other item. The result is symmetric.
            precision: use the threshold of this precision.
            false_positive_rate: use the threshold of this false-positive rate. By default, items are the same if
                the probability that they belong together is at least 0.5.

        Raises:
            UnknownItemError: an item is not in the catalog.
            InputError: the release has no calibration, or no threshold for this target.
        """
        similarity = self.similarity(item_a, item_b)
        if self.calibration is None:
            raise InputError(
                f"release must have a calibration to decide whether items are the same. Received: {self.release_id}, "
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
        """Compare the index with exact search: some Annoy builds return one neighbor for all queries (Annoy #679)."""
        items = np.linspace(0, len(self.index) - 1, SELF_TEST_ITEMS).astype(np.int32)
        k = min(SELF_TEST_K, len(self.index) - 1)
        measured = index_recall(self.index, self.vectors, np.unique(items), k)
        # eight items are a small sample, so half of the measured recall is enough to detect a broken index
        if measured < self.manifest.index_recall / 2:
            raise ReleaseError(
                f"release {self.path} is not usable: on this machine its index returns {measured:.0%} of the "
                f"nearest neighbors. Expected about {self.manifest.index_recall:.0%}. Reinstall Annoy here."
            )


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
