"""Annoy index of a catalogue's embeddings: build, load, query, and tune to a wanted recall.

Annoy checks nothing: a file of another dimension loads, holes answer queries, and few `search_k` give fewer
neighbours than asked for. So items are added densely, `search_k` grows until an answer is full, and loading
compares what is stored with the embeddings.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from annoy import AnnoyIndex
from numpy.typing import NDArray

from recsys.config import IndexConfig
from recsys.embeddings import Vectors
from recsys.errors import InputError, StageError
from recsys.exact import ExactIndex
from recsys.similarity import METRIC, similarity

BLOCK = 10_000
"""Vectors handed to Annoy at a time as Python lists, its fastest input."""

PROBES = 16
"""Stored vectors that `load` compares with the embeddings."""


class Index:
    """Nearest neighbours by Annoy.

    Args:
        annoy: a built index of unit vectors.
        search_k: nodes that a query inspects: more is slower and finds more of the true neighbours.
    """

    def __init__(self, annoy: AnnoyIndex, search_k: int) -> None:
        self._annoy = annoy
        self._size = annoy.get_n_items()
        self._everything = self._size * max(annoy.get_n_trees(), 1)
        self.search_k = search_k

    def __len__(self) -> int:
        return self._size

    def nearest(self, number: int, k: int) -> tuple[list[int], list[float]]:
        """The `k` nearest other items of one item, nearest first, and their cosines.

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
        similarities = [similarity(distance) for distance in distances]
        try:
            own = numbers.index(number)
        except ValueError:
            own = wanted
        del numbers[own], similarities[own]
        return numbers, similarities

    def neighbours(self, numbers: NDArray[np.int32], k: int) -> NDArray[np.int32]:
        """The `k` nearest other items of each item; int32 [len(numbers), k], -1 pads."""
        answers = np.full((len(numbers), k), -1, np.int32)
        for row, number in enumerate(numbers.tolist()):
            found, _ = self.nearest(number, k)
            answers[row, : len(found)] = found
        return answers


class Tuned(NamedTuple):
    """What tuning chose, and what it measured."""

    search_k: int
    recall: float
    """Share of the exact nearest that the index returned, over the sample."""
    curve: list[tuple[int, float]]
    """Each search_k that was tried, with its recall, ascending."""


def build(vectors: Vectors, config: IndexConfig, path: Path) -> Index:
    """Build an index of unit vectors, float32 [num_items, dimension], and write it to `path`.

    The same vectors, `seed` and `n_jobs` = 1 give the same bytes.
    """
    num_items, dimension = vectors.shape
    annoy = AnnoyIndex(dimension, METRIC)
    annoy.set_seed(config.seed)
    for start in range(0, num_items, BLOCK):
        for number, vector in enumerate(vectors[start : start + BLOCK].tolist(), start):
            annoy.add_item(number, vector)
    annoy.build(config.n_trees, config.n_jobs)
    annoy.save(os.fspath(path))
    return Index(annoy, search_k=config.n_trees * config.recall_k)


def load(path: Path, vectors: Vectors, search_k: int) -> Index:
    """Map an index file: processes that read the same file share its memory.

    Raises:
        InputError: no index, or not one of these vectors.
    """
    num_items, dimension = vectors.shape
    annoy = AnnoyIndex(dimension, METRIC)
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
    return Index(annoy, search_k)


def recall(index: Index, vectors: Vectors, sample: NDArray[np.int32], k: int) -> float:
    """Share of the exact `k` nearest of the sampled items that the index returns.

    An item as near as the last of the exact ones counts as found: among equals the choice is free
    (ann-benchmarks does the same).
    """
    return _recall(index, vectors, sample, ExactIndex(vectors).neighbours(sample, k))


def tune(
    index: Index, vectors: Vectors, config: IndexConfig, on_try: Callable[[int, float], None] = lambda *_: None
) -> Tuned:
    """Set the index's `search_k` to about the smallest one (within 10%) that reaches `recall_target`.

    Raises:
        StageError: `max_search_k` does not reach `recall_floor`.
    """
    rng = np.random.default_rng(config.seed)
    sample = np.sort(rng.choice(len(index), min(config.sample, len(index)), replace=False)).astype(np.int32)
    exact = ExactIndex(vectors).neighbours(sample, config.recall_k)
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
    queries = vectors[sample]
    last = np.einsum("nd,nd->n", queries, vectors[exact[:, k - 1]])  # the k-th largest cosine
    found = index.neighbours(sample, k)  # [n, k]
    cosines = np.einsum("nd,nkd->nk", queries, vectors[found])
    return float(((cosines >= last[:, None] - 1e-6) & (found >= 0)).mean())
