"""Annoy index of a catalogue's embeddings: build, load, query, and tune to a wanted recall.

Annoy checks nothing: a file of another dimension loads, holes answer queries, and few `search_k` give fewer
neighbours than asked for. So items are added densely, `search_k` grows until an answer is full, and loading
compares what is stored with the embeddings.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from annoy import AnnoyIndex
from numpy.typing import NDArray

from recsys.config import IndexConfig
from recsys.embeddings import Vectors, means
from recsys.errors import InputError, StageError
from recsys.exact import ExactIndex
from recsys.queries import Queries
from recsys.similarity import COSINE, Distance

BLOCK = 10_000
"""Vectors handed to Annoy at a time as Python lists, its fastest input."""

MEANS = 1_024
"""Queries whose weighted means are made together: bounds memory."""

TOLERANCE = 1e-6
"""Relative, of a cosine absolute: rounding of float32 must not tell equals apart."""

PROBES = 16
"""Stored vectors that `load` compares with the embeddings."""


class Index:
    """Nearest neighbours by Annoy.

    Args:
        annoy: a built index, its metric the distance's.
        search_k: nodes that a query inspects: more is slower and finds more of the true neighbours.
        distance: what "near" means.
    """

    def __init__(self, annoy: AnnoyIndex, search_k: int, *, distance: Distance = COSINE) -> None:
        self._annoy = annoy
        self._size = annoy.get_n_items()
        self._everything = self._size * max(annoy.get_n_trees(), 1)
        self.search_k = search_k
        self.distance = distance

    def __len__(self) -> int:
        return self._size

    def nearest(self, number: int, k: int) -> tuple[list[int], list[float]]:
        """The `k` nearest other items of one item, nearest first, and their similarities.

        Fewer only where the catalogue holds no more.
        """
        wanted = min(k, self._size - 1)
        search_k = self.search_k
        while True:
            # the item itself is one of them, first or, among equal vectors, later
            numbers, distances = self._annoy.get_nns_by_item(number, wanted + 1, search_k, True)
            if len(numbers) > wanted or search_k >= self._everything:
                break
            search_k *= 2
        similarity = self.distance.similarity
        similarities = [similarity(distance) for distance in distances]
        try:
            own = numbers.index(number)
        except ValueError:
            own = wanted
        del numbers[own], similarities[own]
        return numbers, similarities

    def nearest_to(
        self, vector: NDArray[np.floating], k: int, excluded: Collection[int] = ()
    ) -> tuple[list[int], list[float]]:
        """The `k` items nearest to a place, nearest first, and their similarities.

        Args:
            vector: the place, [dimension]; of any length, also for cosine.
            k: how many.
            excluded: item numbers that may not be among them.

        Returns:
            Fewer than `k` only where the catalogue holds no more.

        Raises:
            InputError: no finite vector of the index's dimension.
        """
        if vector.shape != (self._annoy.f,) or not np.isfinite(vector).all():
            raise InputError(
                f"a vector to look up must be finite and of shape [{self._annoy.f}]. "
                f"Received: shape {list(vector.shape)}, {np.isfinite(vector).sum()} finite numbers."
            )
        place, left_out = vector.tolist(), set(excluded)
        wanted = min(k, self._size - len(left_out))
        if wanted <= 0:
            return [], []
        search_k = self.search_k
        while True:
            # in the worst case, all that are left out come first
            numbers, distances = self._annoy.get_nns_by_vector(place, wanted + len(left_out), search_k, True)
            kept = [rank for rank, number in enumerate(numbers) if number not in left_out][:wanted]
            if len(kept) == wanted or search_k >= self._everything:
                break
            search_k *= 2
        similarity = self.distance.similarity
        return [numbers[rank] for rank in kept], [similarity(distances[rank]) for rank in kept]

    def answer(self, queries: Queries, k: int) -> NDArray[np.int32]:
        """The `k` items nearest to the weighted mean of each query's items; as `ExactIndex.answer`.

        Returns:
            int32 [n, k], -1 pads.
        """
        answers = np.full((len(queries), k), -1, np.int32)
        alone = _alone(queries)
        rows = alone < 0
        places = self._means(Queries(queries.items[rows], queries.weights[rows], queries.excluded[rows]))
        for row, number in enumerate(alone.tolist()):
            if number >= 0:
                found, _ = self.nearest(number, k)
            else:
                excluded = queries.excluded[row]
                found, _ = self.nearest_to(next(places), k, excluded[excluded >= 0].tolist())
            answers[row, : len(found)] = found
        return answers

    def neighbours(self, numbers: NDArray[np.int32], k: int) -> NDArray[np.int32]:
        """The `k` nearest other items of each item, int32 [n], as `answer` gives them."""
        return self.answer(Queries.of_items(numbers), k)

    def _means(self, queries: Queries) -> Iterator[Vectors]:
        """The place of each query, [dimension] each; Annoy hands vectors out one by one, so each item's once."""
        for start in range(0, len(queries), MEANS):
            block = queries[start : start + MEANS]
            held, positions = np.unique(np.maximum(block.items, 0), return_inverse=True)
            vectors = np.array([self._annoy.get_item_vector(number) for number in held.tolist()], np.float32)
            items = np.where(block.items >= 0, positions.reshape(block.items.shape), -1).astype(np.int32)
            yield from means(vectors, items, block.weights)


def _alone(queries: Queries) -> NDArray[np.int32]:
    """The item of each query that is about one item and leaves out that one only, else -1; int32 [n]."""
    counts = (queries.items >= 0) & (queries.weights > 0)
    if not counts.size:
        return np.full(len(queries), -1, np.int32)
    own = np.take_along_axis(queries.items, counts.argmax(axis=1)[:, None], axis=1)  # [n, 1]
    itself = queries.excluded == own
    only = (counts.sum(axis=1) == 1) & itself.any(axis=1) & (itself | (queries.excluded < 0)).all(axis=1)
    return np.where(only, own[:, 0], -1).astype(np.int32)


class Tuned(NamedTuple):
    """What tuning chose, and what it measured."""

    search_k: int
    recall: float
    """Share of the exact nearest that the index returned, over the sample."""
    curve: list[tuple[int, float]]
    """Each search_k that was tried, with its recall, ascending."""


def build(vectors: Vectors, config: IndexConfig, path: Path, *, distance: Distance = COSINE) -> Index:
    """Build an index of vectors, float32 [num_items, dimension], and write it to `path`.

    The same vectors, `seed` and `n_jobs` = 1 give the same bytes.
    """
    num_items, dimension = vectors.shape
    annoy = AnnoyIndex(dimension, distance.metric)
    annoy.set_seed(config.seed)
    for start in range(0, num_items, BLOCK):
        for number, vector in enumerate(vectors[start : start + BLOCK].tolist(), start):
            annoy.add_item(number, vector)
    annoy.build(config.n_trees, config.n_jobs)
    annoy.save(os.fspath(path))
    return Index(annoy, config.n_trees * config.recall_k, distance=distance)


def load(path: Path, vectors: Vectors, search_k: int, *, distance: Distance = COSINE) -> Index:
    """Map an index file: processes that read the same file share its memory.

    The file does not say its distance. One of another distance is refused where its layout differs; Euclidean
    and Manhattan look alike, and only the recall would tell.

    Raises:
        InputError: no index, or not one of these vectors.
    """
    num_items, dimension = vectors.shape
    annoy = AnnoyIndex(dimension, distance.metric)
    try:
        annoy.load(os.fspath(path))
    except OSError as error:
        raise InputError(f"index must be an Annoy file of dimension {dimension}. Received {path}: {error}") from None
    if annoy.get_n_items() != num_items:
        raise InputError(
            f"index {path} must hold {num_items} items of dimension {dimension}. "
            f"Received: {annoy.get_n_items()} items if it were of that dimension."
        )
    # a file of another dimension loads, and may even report the right number of items
    for number in np.linspace(0, num_items - 1, PROBES).astype(int).tolist():
        if not np.array_equal(np.array(annoy.get_item_vector(number), np.float32), vectors[number]):
            raise InputError(
                f"index {path} must hold the embeddings beside it, of dimension {dimension}. "
                f"Received: another vector for item number {number}, or another dimension."
            )
    return Index(annoy, search_k, distance=distance)


def recall(index: Index, vectors: Vectors, sample: NDArray[np.int32], k: int) -> float:
    """Share of the exact `k` nearest of the sampled items that the index returns.

    An item as near as the last of the exact ones counts as found: among equals the choice is free
    (ann-benchmarks does the same).
    """
    return _recall(index, vectors, sample, ExactIndex(vectors, index.distance).neighbours(sample, k))


def tune(
    index: Index, vectors: Vectors, config: IndexConfig, on_try: Callable[[int, float], None] = lambda *_: None
) -> Tuned:
    """Set the index's `search_k` to about the smallest one (within 10%) that reaches `recall_target`.

    Raises:
        StageError: `max_search_k` does not reach `recall_floor`.
    """
    rng = np.random.default_rng(config.seed)
    sample = np.sort(rng.choice(len(index), min(config.sample, len(index)), replace=False)).astype(np.int32)
    exact = ExactIndex(vectors, index.distance).neighbours(sample, config.recall_k)
    tried: dict[int, float] = {}

    def reached(search_k: int) -> bool:
        index.search_k = search_k
        tried[search_k] = _recall(index, vectors, sample, exact)
        on_try(search_k, tried[search_k])
        return tried[search_k] >= config.recall_target

    low, high = 0, min(config.recall_k, config.max_search_k)
    while not reached(high) and high < config.max_search_k:
        low, high = high, min(2 * high, config.max_search_k)
    while high - low > max(1, high // 10) and tried[high] >= config.recall_target:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    if tried[high] < config.recall_floor:
        raise StageError(
            f"index recall must be at least {config.recall_floor}. Received: {tried[high]:.4f} at "
            f"search_k {high}. Raise index.n_trees or index.max_search_k."
        )
    index.search_k = high
    return Tuned(high, tried[high], sorted(tried.items()))


def _recall(index: Index, vectors: Vectors, sample: NDArray[np.int32], exact: NDArray[np.int32]) -> float:
    k = min(exact.shape[1], len(index) - 1)
    if k == 0:
        return 1.0

    def similarities(found: NDArray[np.int32]) -> NDArray[np.floating]:
        return index.distance.similarity(index.distance.between(vectors[sample][:, None], vectors[found]))  # type: ignore[no-any-return]

    last = similarities(exact[:, k - 1 : k])  # of the k-th nearest
    found = index.neighbours(sample, k)  # [n, k]
    tolerance = TOLERANCE * (1 if index.distance.unit else last)
    return float(((similarities(found) >= last - tolerance) & (found >= 0)).mean())
