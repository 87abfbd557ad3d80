"""An embedding space of a release: the embeddings of the catalog for one sense, with their index and calibration."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recsys.data.catalog import Catalog
from recsys.data.item_users import ItemUsers
from recsys.errors import InputError, ReleaseError
from recsys.evaluation import calibration
from recsys.evaluation.calibration import Calibration
from recsys.evaluation.protocol import PROTOCOL
from recsys.index import annoy_index, embeddings
from recsys.index import neighbors as neighbor_table
from recsys.index.annoy_index import Index
from recsys.index.distances import DISTANCES, Distance
from recsys.index.embeddings import Vectors
from recsys.index.exact import ExactIndex
from recsys.index.neighbors import Neighbors
from recsys.index.queries import default_recency
from recsys.index.recall import recall
from recsys.release.formats import CALIBRATION, EMBEDDINGS, NEIGHBORS
from recsys.release.manifest import Manifest, SpaceEntry
from recsys.retrieval.engine import Engine
from recsys.retrieval.filters import CatalogColumns

SELF_TEST_ITEMS, SELF_TEST_K = 8, 10


@dataclass(frozen=True)
class EmbeddingSpace:
    """Embeddings of the catalog and what belongs to them."""

    path: Path
    """Folder of its files."""
    manifest: Manifest
    """Manifest of the release."""
    entry: SpaceEntry
    """Part of the manifest on this space."""
    catalog: Catalog
    vectors: Vectors
    """float32 [num_items, dimension], memory-mapped."""
    index: Index
    neighbors: Neighbors | None = None
    """The neighbor table, int32 [num_items, width], memory-mapped; None for formats 1 to 5."""
    calibration: Calibration | None = None
    """None for format 1, or with too few held-out pairs."""
    item_users: ItemUsers | None = None
    """Users of each item, memory-mapped; None for formats 1 and 2."""
    columns: CatalogColumns | None = None
    """Columns of the catalog, shared by all spaces of a release."""

    @classmethod
    def load(
        cls,
        path: Path,
        manifest: Manifest,
        entry: SpaceEntry,
        catalog: Catalog,
        *,
        calibrated: bool,
        has_neighbors: bool,
        item_users: ItemUsers | None,
        columns: CatalogColumns,
    ) -> EmbeddingSpace:
        """Open the files of a space, and verify that they belong together.

        Args:
            path: folder of its files.
            manifest: manifest of the release.
            entry: part of the manifest on this space.
            catalog: items of the release.
            calibrated: whether the format of the release has calibrations.
            has_neighbors: whether the format of the release has neighbor tables.
            item_users: users of each item.
            columns: columns of the catalog.

        Raises:
            InputError: a file is damaged or does not belong to the others.
            ReleaseError: the recall of the index is far below that of the manifest.
        """
        distance = DISTANCES[manifest.distance]
        vectors = embeddings.load(path / EMBEDDINGS)
        if vectors.shape != (manifest.num_items, manifest.dimension):
            raise InputError(
                f"shape of the embeddings must be {(manifest.num_items, manifest.dimension)}. Received: "
                f"{vectors.shape}."
            )
        embeddings.validate(vectors, manifest.num_items, str(path / EMBEDDINGS), distance=distance)
        index = annoy_index.load(path, entry.index, vectors, entry.search_k, distance=distance)
        neighbors = neighbor_table.load(path / NEIGHBORS, manifest.num_items) if has_neighbors else None
        fitted = calibration.load(path / CALIBRATION) if calibrated else None
        space = cls(path, manifest, entry, catalog, vectors, index, neighbors, fitted, item_users, columns)
        space._self_test()
        return space

    @property
    def distance(self) -> Distance:
        """Distance of the embeddings."""
        return DISTANCES[self.manifest.distance]

    @cached_property
    def engine(self) -> Engine:
        """The search engine of this space."""
        recency = self.entry.recency
        return Engine(
            self.manifest.release_id,
            self.catalog,
            self.vectors,
            self.index,
            neighbors=self.neighbors,
            recency=default_recency(PROTOCOL.recencies) if recency is None else recency,
            calibration=self.calibration,
            item_users=self.item_users,
            columns=self.columns,
        )

    def nearest_items(self, item_numbers: NDArray[np.int32], k: int) -> Neighbors:
        """Return the `k` nearest other items of each item, as the engine: from the table, or else by the index.

        Args:
            item_numbers: int32 [n].
            k: number of neighbors of each item.

        Returns:
            int32 [n, k]; -1 pads short rows.
        """
        if self.neighbors is not None and k <= self.neighbors.shape[1]:
            return self.neighbors[item_numbers, :k]
        return self.index.neighbors(item_numbers, k)

    def _self_test(self) -> None:
        """Compare index and table with exact search: some Annoy builds return one neighbor for all queries (#679)."""
        items = np.unique(np.linspace(0, len(self.index) - 1, SELF_TEST_ITEMS).astype(np.int32))
        k = min(SELF_TEST_K, len(self.index) - 1)
        exact = ExactIndex(self.vectors, self.distance).neighbors(items, k)
        measured = recall(self.index.neighbors(items, k), exact, self.vectors, items, self.distance)
        # eight items are a small sample, so half of the measured recall is enough to detect a broken index
        if measured < self.entry.index_recall / 2:
            raise ReleaseError(
                f"release {self.path} is not usable: on this machine its index returns {measured:.0%} of the "
                f"nearest neighbors. Expected about {self.entry.index_recall:.0%}. Reinstall Annoy here."
            )
        if self.neighbors is None or self.entry.neighbors_recall is None:
            return
        measured = recall(self.neighbors[items, :k], exact, self.vectors, items, self.distance)
        if measured < self.entry.neighbors_recall / 2:
            raise ReleaseError(
                f"release {self.path} is not usable: {NEIGHBORS} must hold the nearest items. Received: {measured:.0%} "
                "of them. Fetch or build the release again."
            )
