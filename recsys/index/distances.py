"""The distances between embeddings: cosine, Euclidean and Manhattan.

To add a distance, add a subclass of `Distance`, list it in `DISTANCES`, add its name to `DistanceName`
(`recsys.config.table`) and its formulas to `scores` and `distances` (`recsys.model.losses`), which compute the same on
tensors. Each class knows its name in the settings, the metric name in Annoy, and the conversion between distance and
similarity. This module uses only NumPy, because the server imports it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray

COLUMNS = 4_096
"""Vectors compared at a time."""
ROWS = 16
"""Queries compared at a time for the Manhattan distance: a block of ROWS by COLUMNS fits in the processor's cache."""

ROUNDING = 8 * np.finfo(np.float64).eps
"""Bound on the rounding error of a squared distance, as a share of the two squared lengths."""

Metric = Literal["angular", "euclidean", "manhattan"]


@dataclass(frozen=True)
class Distance(ABC):
    """A distance between embeddings, and the similarity derived from it. Use the instances in `DISTANCES`.

    A *distance* is what Annoy returns, smaller is closer; a *similarity* is what a search returns, larger is closer.
    """

    name: ClassVar[str]
    """Name in `tower.distance`."""
    metric: ClassVar[Metric]
    """Name in Annoy and in the release manifest."""
    unit_norm: ClassVar[bool]
    """Whether embeddings are normalized to length 1."""

    @abstractmethod
    def between(self, first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.floating]:
        """Return Annoy's distance along the last axis: [..., d] and [..., d], broadcast, to [...]."""

    @abstractmethod
    def similarity(self, distance: Any) -> Any:
        """Convert a distance, a float or an array, to a similarity."""

    @abstractmethod
    def distance(self, similarity: Any) -> Any:
        """Convert a similarity to a distance: the inverse of `similarity`."""

    @abstractmethod
    def similarities(self, queries: NDArray[np.float32], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the exact similarity of every query to every vector: float32 [n, d] and [m, d] to [n, m]."""


class Cosine(Distance):
    """Cosine of the angle, in [-1, 1]. Only the direction matters, so embeddings have length 1.

    Annoy's angular distance is the Euclidean distance of the normalized vectors, in [0, 2]:
    d = sqrt(2 (1 - cos)), so cos = 1 - d² / 2 (Annoy's README, "angular").
    """

    name = "cosine"
    metric = "angular"
    unit_norm = True

    def between(self, first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.floating]:
        """Return the chord of the angle. A zero vector counts as orthogonal to every vector, as in Annoy."""
        chord = np.linalg.norm(_normalize(first) - _normalize(second), axis=-1)
        has_zero = ~(first.any(axis=-1) & second.any(axis=-1))
        return np.where(has_zero, math.sqrt(2.0), chord)

    def similarity(self, distance: Any) -> Any:
        """Return 1 - d² / 2."""
        return 1.0 - distance * distance / 2.0

    def distance(self, similarity: Any) -> Any:
        """Return sqrt(2 (1 - cos)). A cosine above 1, which rounding can give, has distance 0."""
        return np.sqrt(np.maximum(2.0 - 2.0 * np.asarray(similarity), 0.0))

    def similarities(self, queries: NDArray[np.float32], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the product. Queries can have any length, `vectors` must have length 1."""
        return _normalize(queries) @ vectors.T


class _Unbounded(Distance):
    """A distance in [0, ∞); its similarity is 1 / (1 + d), in (0, 1]."""

    unit_norm = False

    def similarity(self, distance: Any) -> Any:
        """Return 1 / (1 + d)."""
        return 1.0 / (1.0 + distance)

    def distance(self, similarity: Any) -> Any:
        """Return 1 / s - 1. A similarity above 1, which rounding can give, has distance 0."""
        return np.maximum(1.0 / np.asarray(similarity) - 1.0, 0.0)


class Euclidean(_Unbounded):
    """Length of the difference; its similarity is 1 / (1 + d)."""

    name = "euclidean"
    metric = "euclidean"

    def between(self, first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.floating]:
        """Return the square root of the summed squared differences."""
        return np.linalg.norm(first - second, axis=-1)  # type: ignore[no-any-return]

    def similarities(self, queries: NDArray[np.float32], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute |q|² + |v|² - 2 q·v, which is one product.

        In float64: for close vectors the terms cancel, and float32 would keep at most three digits of their distance.
        What remains of equal vectors is rounding error, which is below the resolution of float32 inputs and counts
        as 0.
        """
        wide = queries.astype(np.float64)
        query_squares = np.einsum("nd,nd->n", wide, wide)
        # the squared lengths as two more dimensions, so that one product gives the squared distances
        wide = np.column_stack([wide * -2.0, query_squares, np.ones(len(wide))])
        result = np.empty((len(queries), len(vectors)), np.float32)
        for start in range(0, len(vectors), COLUMNS):
            block = vectors[start : start + COLUMNS].astype(np.float64)
            block_squares = np.einsum("nd,nd->n", block, block)
            squares = wide @ np.column_stack([block, np.ones(len(block)), block_squares]).T
            squares[squares < ROUNDING * np.add.outer(query_squares, block_squares)] = 0.0
            result[:, start : start + COLUMNS] = self.similarity(np.sqrt(squares.astype(np.float32)))
        return result


class Manhattan(_Unbounded):
    """Sum of the absolute differences; its similarity is 1 / (1 + d)."""

    name = "manhattan"
    metric = "manhattan"

    def between(self, first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.floating]:
        """Return the sum of the absolute differences."""
        return np.abs(first - second).sum(axis=-1)  # type: ignore[no-any-return]

    def similarities(self, queries: NDArray[np.float32], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Sum dimension by dimension, in blocks that fit in the cache; no array [n, m, d] is created."""
        query_axes, vector_axes = np.ascontiguousarray(queries.T), np.ascontiguousarray(vectors.T)  # [d, n], [d, m]
        result = np.zeros((len(queries), len(vectors)), np.float32)
        for top in range(0, len(queries), ROWS):
            for left in range(0, len(vectors), COLUMNS):
                total = np.zeros((len(queries[top : top + ROWS]), len(vectors[left : left + COLUMNS])), np.float32)
                difference = np.empty_like(total)
                for query_axis, vector_axis in zip(query_axes, vector_axes, strict=True):
                    np.subtract.outer(query_axis[top : top + ROWS], vector_axis[left : left + COLUMNS], out=difference)
                    total += np.abs(difference, out=difference)
                result[top : top + ROWS, left : left + COLUMNS] = self.similarity(total)
        return result


COSINE: Final = Cosine()
DISTANCES: Final[Mapping[str, Distance]] = {distance.name: distance for distance in (COSINE, Euclidean(), Manhattan())}
"""Each distance by its name in `tower.distance`."""


def _normalize(vectors: NDArray[Any]) -> NDArray[Any]:
    """Return the vectors with length 1; zero vectors are unchanged."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)
