"""A release: all files that are needed to answer queries, verified to belong together.

Files of a release never change after it has been written: changing an Annoy file that a process has mapped would crash
that process. Loading checks every file against the manifest, and the files against each other.
`docs/reference/release-format.md` describes the format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from recsys.config.senses import Sense
from recsys.data.catalog import Catalog
from recsys.data.followers import Followers
from recsys.data.item_users import ItemUsers
from recsys.data.storage import sha256
from recsys.errors import InputError, ReleaseError
from recsys.evaluation import calibration
from recsys.index.distances import DISTANCES
from recsys.release.embedding_space import EmbeddingSpace
from recsys.release.formats import (
    CALIBRATION,
    CATALOG,
    EVALUATION,
    FOLLOWERS,
    FORMATS,
    ITEM_USERS,
    NEIGHBORS,
    SHARED_FILES,
    SPACE_FILES,
)
from recsys.release.manifest import Manifest, read_manifest
from recsys.retrieval.filters import CatalogColumns
from recsys.retrieval.overlay import EMPTY_OVERLAY, Overlay
from recsys.retrieval.query import Query, TogetherQuery
from recsys.retrieval.results import SearchResult, TogetherResult, VerificationResult
from recsys.retrieval.together import search_together


@dataclass(frozen=True)
class Release:
    """A verified release that answers queries.

    Example:
        >>> Release.load("workspace/releases/…").similar("50", k=10).neighbors  # doctest: +SKIP
    """

    path: Path
    manifest: Manifest
    catalog: Catalog
    spaces: Mapping[Sense, EmbeddingSpace]
    """Embedding spaces by sense; always `next`, and `similar` if it has its own."""
    followers: Followers | None = None
    """Followers of each item, memory-mapped; None for formats 1 to 4."""

    @classmethod
    def load(cls, path: str | Path) -> Release:
        """Open a release folder and verify it.

        Raises:
            ReleaseError: the folder is not a release of a supported format, a file is missing or changed, files do
                not belong together, or the recall of an index is far below that of the manifest.
        """
        path = Path(path)
        manifest = read_manifest(path)
        _verify_files(path, manifest)
        version = FORMATS[manifest.format_version]
        try:
            catalog = Catalog.load(path / version.file(CATALOG))
            _compare(path, "items in the catalog", manifest.num_items, len(catalog))
            _compare(path, "catalog fingerprint", manifest.catalog_fingerprint, catalog.fingerprint)
            _compare(path, "metric", DISTANCES[manifest.distance].metric, manifest.metric)
            users_path = path / version.file(ITEM_USERS)
            item_users = None if ITEM_USERS in version.absent_files else ItemUsers.load(users_path, len(catalog))
            followers = None
            if FOLLOWERS not in version.absent_files:
                followers = Followers.load(path / version.file(FOLLOWERS), len(catalog))
            columns = CatalogColumns(catalog.frame)
            spaces = {
                sense: EmbeddingSpace.load(
                    path / version.folder(sense),
                    manifest,
                    entry,
                    catalog,
                    calibrated=CALIBRATION not in version.absent_files,
                    has_neighbors=NEIGHBORS not in version.absent_files,
                    item_users=item_users,
                    columns=columns,
                )
                for sense, entry in manifest.spaces.items()
            }
        except InputError as error:
            raise ReleaseError(f"release {path} is not usable: {error}") from None
        return cls(path, manifest, catalog, spaces, followers)

    @property
    def release_id(self) -> str:
        """Id of the release. Every result contains it."""
        return self.manifest.release_id

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        """Quality metrics of the release and of the baselines, measured when the release was built."""
        return json.loads((self.path / EVALUATION).read_text(encoding="utf-8"))  # type: ignore[no-any-return]

    def space(self, sense: Sense) -> EmbeddingSpace:
        """Return the embedding space that answers in a sense: its own, or that of `next`."""
        return self.spaces[self.space_name(sense)]

    def space_name(self, sense: Sense) -> Sense:
        """Return the name of the embedding space that answers in a sense."""
        return sense if sense in self.spaces else "next"

    def similar(self, item_id: str, k: int = 10, sense: Sense = "similar") -> SearchResult:
        """Return the `k` items most similar to an item; fewer only if the catalog has fewer."""
        return self.search(Query.from_item(item_id, k, sense))

    def search(self, query: Query, overlay: Overlay = EMPTY_OVERLAY) -> SearchResult:
        """Return the neighbors of a query; see `recsys.retrieval.engine.Engine.search`."""
        return self.space(query.answered_in).engine.search(query, overlay)

    def together(self, item_id: str, k: int = 10, *, min_users: int = 0) -> TogetherResult:
        """Return the `k` items that users most often interact with after an item; see `search_together`."""
        return self.search_together(TogetherQuery(item_id, k, min_users=min_users))

    def search_together(self, query: TogetherQuery, overlay: Overlay = EMPTY_OVERLAY) -> TogetherResult:
        """Return the items that users interact with after an item; see `recsys.retrieval.together.search_together`.

        Raises:
            InputError: the release has format 4 or older, or a condition does not fit the release.
            UnknownItemError: the item is not in the catalog, and `on_unknown` is "error".
        """
        return search_together(self.spaces["next"].engine, self.require_followers(), query, overlay)

    def require_followers(self) -> Followers:
        """Return the followers of each item.

        Raises:
            InputError: the release has format 4 or older.
        """
        if self.followers is None:
            raise InputError(
                f"together requires a release of format 5 or later. Received: {self.release_id}, of format "
                f"{self.manifest.format_version}. Build a release with recsys nightly."
            )
        return self.followers

    def similarity(self, item_a: str, item_b: str, sense: Sense = "similar") -> float:
        """Return the exact similarity of two items: larger is closer, 1 for equal vectors.

        Raises:
            UnknownItemError: an item is not in the catalog.
        """
        space = self.space(sense)
        numbers = [self.catalog.item_number(item_id) for item_id in (item_a, item_b)]
        vectors = (space.vectors[[number]] for number in numbers)
        return float(calibration.similarities(space.distance, *vectors)[0])

    def verify(
        self,
        item_a: str,
        item_b: str,
        *,
        precision: float | None = None,
        false_positive_rate: float | None = None,
        sense: Sense = "similar",
    ) -> VerificationResult:
        """Decide whether two items are the same: whether their similarity reaches a calibrated threshold.

        Args:
            item_a: id of one item.
            item_b: id of the other item. The result is symmetric.
            precision: use the threshold of this precision.
            false_positive_rate: use the threshold of this false-positive rate. By default, items are the same if
                the probability that they belong together is at least 0.5.
            sense: the sense of similarity.

        Raises:
            UnknownItemError: an item is not in the catalog.
            InputError: the release has no calibration, or no threshold for this target.
        """
        similarity, fitted = self.similarity(item_a, item_b, sense), self.space(sense).calibration
        if fitted is None:
            raise InputError(
                f"release must have a calibration to decide whether items are the same. Received: {self.release_id}, "
                f"of format {self.manifest.format_version}, has none. Build a release from more held-out pairs."
            )
        return VerificationResult.from_similarity(
            self.catalog,
            self.release_id,
            (item_a, item_b),
            similarity=similarity,
            calibration=fitted,
            threshold=fitted.threshold(precision=precision, false_positive_rate=false_positive_rate),
        )


def _verify_files(path: Path, manifest: Manifest) -> None:
    version = FORMATS[manifest.format_version]
    names = [version.file(name) for name in SHARED_FILES if name not in version.absent_files]
    for sense, entry in manifest.spaces.items():
        names += [version.file(name, sense) for name in SPACE_FILES if name not in version.absent_files]
        names += [version.file(shard.file, sense) for shard in entry.index]
    _compare(path, "files in the manifest", sorted(names), sorted(manifest.files))
    for name, file in manifest.files.items():
        if not (path / name).is_file():
            raise ReleaseError(f"release {path} must hold {name}. Received: no such file.")
        _compare(path, f"bytes of {name}", file.bytes, (path / name).stat().st_size)
        _compare(path, f"SHA-256 of {name}", file.sha256, sha256(path / name))


def _compare(path: Path, what: str, expected: object, received: object) -> None:
    if expected != received:
        raise ReleaseError(
            f"release {path} is not usable: {what} must be {expected}. Received: {received}. "
            "Fetch or build the release again."
        )
