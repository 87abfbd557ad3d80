"""Annoy index of a catalog's embeddings: build, load, query, and tune to a wanted recall.

An index is one file or several, its shards, each over a range of item numbers. Every shard is asked, and the
answers are merged.

Annoy checks nothing: a file of another dimension loads, holes answer queries, and few `search_k` give fewer
neighbors than asked for. So items are added densely, `search_k` grows until an answer is full, and loading
compares what is stored with the embeddings.
"""

from __future__ import annotations

import math
import os
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from annoy import AnnoyIndex
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from recsys.config.sections import IndexConfig
from recsys.errors import InputError, StageError
from recsys.index.distances import COSINE, Distance
from recsys.index.embeddings import Vectors, means
from recsys.index.exact import ExactIndex
from recsys.index.queries import Queries

INDEX = "index.ann"
"""The file of an index that is one file."""

BLOCK = 10_000
"""Vectors handed to Annoy at a time as Python lists, its fastest input."""

MEANS = 1_024
"""Queries whose weighted means are made together: bounds memory."""

TOLERANCE = 1e-6
"""Relative, of a cosine absolute: rounding of float32 must not tell equals apart."""

PROBES = 16
"""Stored vectors of a shard that `load` compares with the embeddings."""


class Shard(BaseModel):
    """One file of an index, and the item numbers that it holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: Annotated[str, Field(pattern=r"^index(-[0-9]+)?\.ann$")]
    """A plain name: no release may point out of its folder."""
    start: int
    """The first."""
    stop: int
    """The one after the last."""


def cut(num_items: int, shard_items: int) -> list[Shard]:
    """As few shards as hold at most `shard_items` each, of about one size, in the order of the item numbers."""
    count = math.ceil(num_items / shard_items)
    names = [INDEX] if count == 1 else [f"index-{number:05d}.ann" for number in range(count)]
    bounds = pairwise(num_items * number // count for number in range(count + 1))
    return [Shard(file=name, start=start, stop=stop) for name, (start, stop) in zip(names, bounds, strict=True)]


Found = tuple[list[int], list[float]]
"""Items, nearest first and of equals the smallest number first, and how far they are, as Annoy answers."""


class Index:
    """Nearest neighbors by Annoy.

    Args:
        shards: built indexes, their metric the distance's. The items of each are numbered on from the one before.
        search_k: nodes that a query inspects in each shard: more is slower and finds more of the true neighbors.
        distance: what "near" means.
    """

    def __init__(self, shards: Sequence[AnnoyIndex], search_k: int, *, distance: Distance = COSINE) -> None:
        self._shards = shards
        *self._starts, self._size = accumulate((shard.get_n_items() for shard in shards), initial=0)
        self._everything = max(shard.get_n_items() * max(shard.get_n_trees(), 1) for shard in shards)
        self.search_k = search_k
        self.distance = distance

    def __len__(self) -> int:
        return self._size

    def nearest(self, number: int, k: int) -> tuple[list[int], list[float]]:
        """The `k` nearest other items of one item, nearest first, and their similarities.

        Fewer only where the catalog holds no more.
        """
        wanted = min(k, self._size - 1)
        search_k = self.search_k
        while True:
            # the item itself is one of them, first or, among equal vectors, later
            numbers, distances = self._by_item(number, wanted + 1, search_k)
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
            Fewer than `k` only where the catalog holds no more.

        Raises:
            InputError: no finite vector of the index's dimension.
        """
        dimension = self._shards[0].f
        if vector.shape != (dimension,) or not np.isfinite(vector).all():
            raise InputError(
                f"a vector to look up must be finite and of shape [{dimension}]. "
                f"Received: shape {list(vector.shape)}, {np.isfinite(vector).sum()} finite numbers."
            )
        place, left_out = vector.tolist(), set(excluded)
        wanted = min(k, self._size - len(left_out))
        if wanted <= 0:
            return [], []
        search_k = self.search_k
        while True:
            # in the worst case, all that are left out come first
            numbers, distances = self._by_place(place, wanted + len(left_out), search_k)
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

    def neighbors(self, numbers: NDArray[np.int32], k: int) -> NDArray[np.int32]:
        """The `k` nearest other items of each item, int32 [n], as `answer` gives them."""
        return self.answer(Queries.of_items(numbers), k)

    def _means(self, queries: Queries) -> Iterator[Vectors]:
        """The place of each query, [dimension] each; Annoy hands vectors out one by one, so each item's once."""
        for start in range(0, len(queries), MEANS):
            block = queries[start : start + MEANS]
            held, positions = np.unique(np.maximum(block.items, 0), return_inverse=True)
            vectors = np.array([self._vector(number) for number in held.tolist()], np.float32)
            items = np.where(block.items >= 0, positions.reshape(block.items.shape), -1).astype(np.int32)
            yield from means(vectors, items, block.weights)

    def _vector(self, number: int) -> list[float]:
        own = self._own(number)
        return self._shards[own].get_item_vector(number - self._starts[own])

    def _own(self, number: int) -> int:
        """The shard that holds an item."""
        return bisect_right(self._starts, number) - 1

    def _by_item(self, number: int, count: int, search_k: int) -> Found:
        """The `count` items nearest to one item, itself among them; fewer if the search was too short."""
        if len(self._shards) == 1:
            return self._shards[0].get_nns_by_item(number, count, search_k, True)
        own, place = self._own(number), self._vector(number)
        return self._merged(
            (
                # asked by the item, the search starts where the item is
                shard.get_nns_by_item(number - self._starts[own], count, search_k, True)
                if position == own
                else shard.get_nns_by_vector(place, count, search_k, True)
                for position, shard in enumerate(self._shards)
            ),
            count,
        )

    def _by_place(self, place: list[float], count: int, search_k: int) -> Found:
        """The `count` items nearest to a place; fewer if the search was too short."""
        found = (shard.get_nns_by_vector(place, count, search_k, True) for shard in self._shards)
        return next(found) if len(self._shards) == 1 else self._merged(found, count)

    def _merged(self, found: Iterable[Found], count: int) -> Found:
        """The nearest of what every shard found, in item numbers of the whole index."""
        ranked = sorted(
            (distance, start + number)
            for start, (numbers, distances) in zip(self._starts, found, strict=True)
            for number, distance in zip(numbers, distances, strict=True)
        )[:count]
        return [number for _, number in ranked], [distance for distance, _ in ranked]


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
    """Build an index, or one shard, of vectors, float32 [num_items, dimension], and write it to `path`.

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
    return Index([annoy], config.n_trees * config.recall_k, distance=distance)


def load(
    folder: Path, shards: Sequence[Shard], vectors: Vectors, search_k: int, *, distance: Distance = COSINE
) -> Index:
    """Map the files of an index: processes that read the same files share their memory.

    A file does not say its distance. One of another distance is refused where its layout differs; Euclidean
    and Manhattan look alike, and only the recall would tell.

    Args:
        folder: where the files lie.
        shards: in the order of the item numbers, all of them.
        vectors: what the index must hold, float32 [num_items, dimension].
        search_k: as `Index` takes it.
        distance: what the index was built for.

    Raises:
        InputError: no index, not one of these vectors, or shards that do not hold every item once.
    """
    reached = 0
    for shard in shards:
        if not shard.start == reached < shard.stop:
            raise InputError(
                f"the shard {shard.file} of an index must start at item number {reached}, where the one before it "
                f"ends, and hold at least one item. Received: {shard.start} up to {shard.stop}."
            )
        reached = shard.stop
    if reached != len(vectors):
        raise InputError(f"the shards of an index must hold {len(vectors)} items. Received: {reached} items.")
    return Index([_open(folder, shard, vectors, distance) for shard in shards], search_k, distance=distance)


def _open(folder: Path, shard: Shard, vectors: Vectors, distance: Distance) -> AnnoyIndex:
    path, num_items, dimension = folder / shard.file, shard.stop - shard.start, vectors.shape[1]
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
        stored = np.array(annoy.get_item_vector(number), np.float32)
        if not np.array_equal(stored, vectors[shard.start + number]):
            raise InputError(
                f"index {path} must hold the embeddings beside it, of dimension {dimension}. "
                f"Received: another vector for item number {shard.start + number}, or another dimension."
            )
    return annoy


def recall(index: Index, vectors: Vectors, sample: NDArray[np.int32], k: int) -> float:
    """Share of the exact `k` nearest of the sampled items that the index returns.

    An item as near as the last of the exact ones counts as found: among equals the choice is free
    (ann-benchmarks does the same).
    """
    return _recall(index, vectors, sample, ExactIndex(vectors, index.distance).neighbors(sample, k))


def tune(
    index: Index, vectors: Vectors, config: IndexConfig, on_try: Callable[[int, float], None] = lambda *_: None
) -> Tuned:
    """Set the index's `search_k` to about the smallest one (within 10%) that reaches `recall_target`.

    Raises:
        StageError: `max_search_k` does not reach `recall_floor`.
    """
    rng = np.random.default_rng(config.seed)
    sample = np.sort(rng.choice(len(index), min(config.sample, len(index)), replace=False)).astype(np.int32)
    exact = ExactIndex(vectors, index.distance).neighbors(sample, config.recall_k)
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
    found = index.neighbors(sample, k)  # [n, k]
    tolerance = TOLERANCE * (1 if index.distance.unit else last)
    return float(((similarities(found) >= last - tolerance) & (found >= 0)).mean())
