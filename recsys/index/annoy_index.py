"""Annoy index of embeddings: build, load and search.

An index consists of one or several shards; each is searched, and the results are merged.

Annoy validates nothing: it loads a file of another dimension, returns items that were never added, and returns fewer
neighbors than requested if `search_k` is small. Therefore items are added without gaps, `search_k` is doubled until a
result is complete, and `load` compares stored vectors with the embeddings.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path

import numpy as np
from annoy import AnnoyIndex
from numpy.typing import NDArray

from recsys.config.sections import IndexConfig
from recsys.errors import InputError
from recsys.index.distances import COSINE, Distance
from recsys.index.embeddings import Vectors, weighted_means
from recsys.index.queries import PADDING, Queries
from recsys.index.shards import Shard, validate_shards

SEED = 1
"""Annoy's seed: builds are repeatable."""
N_JOBS = 1
"""Annoy's build threads: only with one are two builds equal byte for byte."""
RECALL_K = 20
"""Recall is the share of this many exact nearest neighbors that the index returns."""
BLOCK = 10_000
"""Vectors converted at a time to Python lists, the fastest input of Annoy."""

QUERY_BLOCK = 128
"""Queries that a thread searches at a time: few, so that also a thousand queries keep all threads busy."""

PROBES = 16
"""Stored vectors of a shard that `load` compares with the embeddings."""

Distances = tuple[list[int], list[float]]
"""Item numbers and their Annoy distances, ascending by distance, ties by number."""


class Index:
    """Nearest neighbors by Annoy.

    Args:
        shards: built indexes with the metric of `distance`. Item numbers continue from one shard to the next.
        search_k: number of nodes that a query inspects in each shard; more nodes are slower and find more of the
            true neighbors.
        distance: between the vectors.
    """

    def __init__(self, shards: Sequence[AnnoyIndex], search_k: int, *, distance: Distance = COSINE) -> None:
        self._shards = shards
        *self._starts, self._num_items = accumulate((shard.get_n_items() for shard in shards), initial=0)
        # inspecting this number of nodes searches every tree completely
        self._max_search_k = max(shard.get_n_items() * max(shard.get_n_trees(), 1) for shard in shards)
        self.search_k = search_k
        self.distance = distance

    def __len__(self) -> int:
        return self._num_items

    def nearest(self, item_number: int, k: int) -> tuple[list[int], list[float]]:
        """Return the `k` nearest other items of one item and their similarities, nearest first.

        Fewer only if the catalog has fewer other items.
        """
        count = min(k, self._num_items - 1)
        search_k = self.search_k
        while True:
            # the item itself is in the result, first or, among equal vectors, later
            neighbors, distances = self._nearest_to_item(item_number, count + 1, search_k)
            if len(neighbors) > count or search_k >= self._max_search_k:
                break
            search_k *= 2
        similarity = self.distance.similarity
        similarities = [similarity(distance) for distance in distances]
        try:
            rank = neighbors.index(item_number)
        except ValueError:
            rank = count
        del neighbors[rank], similarities[rank]
        return neighbors, similarities

    def nearest_to_vector(
        self, vector: NDArray[np.floating], k: int, excluded: Collection[int] = (), *, search_k_multiple: int = 1
    ) -> tuple[list[int], list[float]]:
        """Return the `k` items nearest to a vector and their similarities, nearest first.

        Args:
            vector: [dimension]; of any length, also for cosine.
            k: maximum number of items.
            excluded: item numbers that are not returned.
            search_k_multiple: number of nodes to inspect, as a multiple of `search_k`.

        Returns:
            Fewer than `k` only if the catalog has fewer other items.

        Raises:
            InputError: the vector is not finite, or not of the index's dimension.
        """
        dimension = self._shards[0].f
        if vector.shape != (dimension,) or not np.isfinite(vector).all():
            raise InputError(
                f"a query vector must be finite and of shape [{dimension}]. "
                f"Received: shape {list(vector.shape)}, {np.isfinite(vector).sum()} finite numbers."
            )
        query, excluded = vector.tolist(), set(excluded)
        count = min(k, self._num_items - len(excluded))
        if count <= 0:
            return [], []
        search_k = search_k_multiple * self.search_k
        while True:
            # in the worst case, all excluded items come first
            neighbors, distances = self._nearest_to_vector(query, count + len(excluded), search_k)
            ranks = [rank for rank, item_number in enumerate(neighbors) if item_number not in excluded][:count]
            if len(ranks) == count or search_k >= self._max_search_k:
                break
            search_k *= 2
        similarity = self.distance.similarity
        return [neighbors[rank] for rank in ranks], [similarity(distances[rank]) for rank in ranks]

    def top_k(self, queries: Queries, k: int) -> NDArray[np.int32]:
        """Return the `k` items nearest to the weighted mean of each query's items, nearest first.

        Returns:
            Item numbers, int32 [n, k], without excluded items; -1 pads short rows.
        """
        result = np.full((len(queries), k), PADDING, np.int32)

        def search(start: int) -> None:
            block = queries[start : start + QUERY_BLOCK]
            single_items = _single_items(block)
            means = iter(self._weighted_means(block[np.flatnonzero(single_items < 0)]))
            for row, item_number in enumerate(single_items.tolist()):
                if item_number >= 0:
                    neighbors, _ = self.nearest(item_number, k)
                else:
                    excluded = block.excluded[row]
                    neighbors, _ = self.nearest_to_vector(next(means), k, excluded[excluded >= 0].tolist())
                result[start + row, : len(neighbors)] = neighbors

        with ThreadPoolExecutor(os.cpu_count()) as executor:  # Annoy searches beside other threads
            list(executor.map(search, range(0, len(queries), QUERY_BLOCK)))
        return result

    def neighbors(self, item_numbers: NDArray[np.int32], k: int) -> NDArray[np.int32]:
        """Return the `k` nearest other items of each item, int32 [n, k], as `top_k`."""
        return self.top_k(Queries.from_items(item_numbers), k)

    def _weighted_means(self, queries: Queries) -> Vectors:
        """Return the mean of each query, [n, dimension]. Annoy returns vectors singly, so each is read once."""
        item_numbers, rows = np.unique(np.maximum(queries.items, 0), return_inverse=True)
        vectors = np.array([self._vector(item_number) for item_number in item_numbers.tolist()], np.float32)
        items = np.where(queries.items >= 0, rows.reshape(queries.items.shape), PADDING).astype(np.int32)
        return weighted_means(vectors.reshape(-1, self._shards[0].f), items, queries.weights)

    def _locate(self, item_number: int) -> tuple[int, int]:
        """Convert an item number to its shard and its position in the shard."""
        shard = bisect_right(self._starts, item_number) - 1
        return shard, item_number - self._starts[shard]

    def _vector(self, item_number: int) -> list[float]:
        shard, shard_position = self._locate(item_number)
        return self._shards[shard].get_item_vector(shard_position)

    def _nearest_to_item(self, item_number: int, count: int, search_k: int) -> Distances:
        """Return the `count` items nearest to an item, including itself; fewer if `search_k` is too small."""
        if len(self._shards) == 1:
            return self._shards[0].get_nns_by_item(item_number, count, search_k, True)
        own_shard, shard_position = self._locate(item_number)
        vector = self._shards[own_shard].get_item_vector(shard_position)
        return self._merge(
            (
                # a search by item starts at the leaf of the item
                index.get_nns_by_item(shard_position, count, search_k, True)
                if shard == own_shard
                else index.get_nns_by_vector(vector, count, search_k, True)
                for shard, index in enumerate(self._shards)
            ),
            count,
        )

    def _nearest_to_vector(self, vector: list[float], count: int, search_k: int) -> Distances:
        """Return the `count` items nearest to a vector; fewer if `search_k` is too small."""
        results = (shard.get_nns_by_vector(vector, count, search_k, True) for shard in self._shards)
        return next(results) if len(self._shards) == 1 else self._merge(results, count)

    def _merge(self, results: Iterable[Distances], count: int) -> Distances:
        """Merge the results of all shards, converting positions in a shard to item numbers."""
        nearest = sorted(
            (distance, start + shard_position)
            for start, (shard_positions, distances) in zip(self._starts, results, strict=True)
            for shard_position, distance in zip(shard_positions, distances, strict=True)
        )[:count]
        return [item_number for _, item_number in nearest], [distance for distance, _ in nearest]


def _single_items(queries: Queries) -> NDArray[np.int32]:
    """Return the item of each query that has one item and excludes only that item, otherwise -1; int32 [n]."""
    has_weight = (queries.items >= 0) & (queries.weights > 0)
    if not has_weight.size:
        return np.full(len(queries), -1, np.int32)
    item = np.take_along_axis(queries.items, has_weight.argmax(axis=1)[:, None], axis=1)  # [n, 1]
    is_item = queries.excluded == item
    excludes_item_only = is_item.any(axis=1) & (is_item | (queries.excluded < 0)).all(axis=1)
    return np.where((has_weight.sum(axis=1) == 1) & excludes_item_only, item[:, 0], -1).astype(np.int32)


def build(
    vectors: Vectors, config: IndexConfig, path: Path, *, distance: Distance = COSINE, n_jobs: int = N_JOBS
) -> Index:
    """Build an index, or one shard, of vectors, float32 [num_items, dimension], and write it to `path`.

    Equal vectors give the same bytes if `n_jobs` is 1.
    """
    num_items, dimension = vectors.shape
    annoy = AnnoyIndex(dimension, distance.metric)
    annoy.set_seed(SEED)
    for start in range(0, num_items, BLOCK):
        for shard_position, vector in enumerate(vectors[start : start + BLOCK].tolist(), start):
            annoy.add_item(shard_position, vector)
    annoy.build(config.n_trees, n_jobs)
    annoy.save(os.fspath(path))
    return Index([annoy], config.n_trees * RECALL_K, distance=distance)


def load(
    folder: Path, shards: Sequence[Shard], vectors: Vectors, search_k: int, *, distance: Distance = COSINE
) -> Index:
    """Memory-map the files of an index; processes that read the same files share their memory.

    A file does not contain its distance. A file of another distance is rejected if its layout differs; Euclidean and
    Manhattan have the same layout, and only the recall would differ.

    Args:
        folder: of the files.
        shards: all shards, in the order of the item numbers.
        vectors: the embeddings that the index was built from, float32 [num_items, dimension].
        search_k: see `Index`.
        distance: that the index was built for.

    Raises:
        InputError: not an index of these vectors, or shards that do not hold every item once.
    """
    validate_shards(shards, len(vectors))
    return Index([_load_shard(folder, shard, vectors, distance) for shard in shards], search_k, distance=distance)


def _load_shard(folder: Path, shard: Shard, vectors: Vectors, distance: Distance) -> AnnoyIndex:
    path, num_items, dimension = folder / shard.file, shard.stop - shard.start, vectors.shape[1]
    annoy = AnnoyIndex(dimension, distance.metric)
    try:
        annoy.load(os.fspath(path))
    except OSError as error:
        raise InputError(f"index must be an Annoy file of dimension {dimension}. Received {path}: {error}") from None
    if annoy.get_n_items() != num_items:
        raise InputError(
            f"index {path} must hold {num_items} items of dimension {dimension}. "
            f"Received: {annoy.get_n_items()} items, assuming that dimension."
        )
    # a file of another dimension loads, and can even report the expected number of items
    for shard_position in np.linspace(0, num_items - 1, PROBES).astype(int).tolist():
        item_number = shard.start + shard_position
        if not np.array_equal(np.array(annoy.get_item_vector(shard_position), np.float32), vectors[item_number]):
            raise InputError(
                f"index {path} must hold the embeddings of its release, of dimension {dimension}. "
                f"Received: another vector for item number {item_number}, or another dimension."
            )
    return annoy
