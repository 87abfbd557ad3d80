"""What "near" means: the one place that knows, of each distance, its direction, its scale and Annoy's name for it.

NumPy and plain Python only, because serving imports it. `recsys.model.losses` has the same distances for training.
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
"""Vectors that are compared at a time."""
ROWS = 16
"""Queries that Manhattan compares at a time: a block of ROWS by COLUMNS stays in the processor's cache."""

ROUNDING = 8 * np.finfo(np.float64).eps
"""Bound on the rounding error of a squared distance, as a share of the two squared lengths."""

Metric = Literal["angular", "euclidean", "manhattan"]


@dataclass(frozen=True)
class Distance(ABC):
    """One meaning of "near". There is no choice in it: `DISTANCES` holds one of each.

    A *distance* is what Annoy reports, smaller is closer; a *similarity* is what an answer shows, larger is closer.
    """

    name: ClassVar[str]
    """Its name in `tower.distance`."""
    metric: ClassVar[Metric]
    """Annoy's name, also in a release's manifest."""
    unit: ClassVar[bool]
    """Embeddings have length 1."""

    @abstractmethod
    def between(self, one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.floating]:
        """Annoy's distance of vectors along the last axis: [..., d] and [..., d], broadcast, to [...]."""

    @abstractmethod
    def similarity(self, distance: Any) -> Any:
        """Similarity of what is `distance` apart; a float or an array."""

    @abstractmethod
    def distance(self, similarity: Any) -> Any:
        """How far apart what has this `similarity` is: the inverse of `similarity`."""

    @abstractmethod
    def similarities(self, queries: NDArray[np.float32], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of every query to every vector, exact: float32 [n, d] and [m, d] to [n, m]."""


class Cosine(Distance):
    """Cosine of the angle, in [-1, 1]. Only the direction counts, so embeddings have length 1.

    Annoy's angular distance is the Euclidean distance of the normalized vectors, in [0, 2]:
    d = sqrt(2 (1 - cos)), so cos = 1 - d² / 2 (Annoy's README, "angular").
    """

    name = "cosine"
    metric = "angular"
    unit = True

    def between(self, one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.floating]:
        """Chord of the angle. A vector of length 0 is as far as one at a right angle, as for Annoy."""
        chord = np.linalg.norm(_directions(one) - _directions(other), axis=-1)
        pointless = ~(one.any(axis=-1) & other.any(axis=-1))
        return np.where(pointless, math.sqrt(2.0), chord)

    def similarity(self, distance: Any) -> Any:
        """1 - d² / 2."""
        return 1.0 - distance * distance / 2.0

    def distance(self, similarity: Any) -> Any:
        """The square root of 2 (1 - cos). A cosine that rounding put above 1 is no distance."""
        return np.sqrt(np.maximum(2.0 - 2.0 * np.asarray(similarity), 0.0))

    def similarities(self, queries: NDArray[np.float32], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """One product. Queries may have any length, `vectors` must have length 1."""
        return _directions(queries) @ vectors.T


class _Unbounded(Distance):
    """A distance in [0, ∞): similarity is 1 / (1 + d), in (0, 1]."""

    unit = False

    def similarity(self, distance: Any) -> Any:
        """1 / (1 + d)."""
        return 1.0 / (1.0 + distance)

    def distance(self, similarity: Any) -> Any:
        """1 / s - 1. A similarity that rounding put above 1 is no distance."""
        return np.maximum(1.0 / np.asarray(similarity) - 1.0, 0.0)


class Euclidean(_Unbounded):
    """Length of the difference; its similarity is 1 / (1 + d)."""

    name = "euclidean"
    metric = "euclidean"

    def between(self, one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.floating]:
        """The root of the summed squares."""
        return np.linalg.norm(one - other, axis=-1)  # type: ignore[no-any-return]

    def similarities(self, queries: NDArray[np.float32], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """By |q|² + |v|² - 2 q·v, which is one product.

        In float64: near vectors cancel, and float32 would keep no more than three digits of their distance. What
        remains of equal vectors is rounding error, which is below the resolution of float32 inputs and counts as 0.
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

    def between(self, one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.floating]:
        """The summed absolute differences."""
        return np.abs(one - other).sum(axis=-1)  # type: ignore[no-any-return]

    def similarities(self, queries: NDArray[np.float32], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Dimension by dimension, on blocks that stay in the cache: [n, m, d] never exists."""
        query_axes, vector_axes = np.ascontiguousarray(queries.T), np.ascontiguousarray(vectors.T)  # [d, n], [d, m]
        result = np.zeros((len(queries), len(vectors)), np.float32)
        for top in range(0, len(queries), ROWS):
            for left in range(0, len(vectors), COLUMNS):
                apart = np.zeros((len(queries[top : top + ROWS]), len(vectors[left : left + COLUMNS])), np.float32)
                difference = np.empty_like(apart)
                for query_axis, vector_axis in zip(query_axes, vector_axes, strict=True):
                    np.subtract.outer(query_axis[top : top + ROWS], vector_axis[left : left + COLUMNS], out=difference)
                    apart += np.abs(difference, out=difference)
                result[top : top + ROWS, left : left + COLUMNS] = self.similarity(apart)
        return result


COSINE: Final = Cosine()
DISTANCES: Final[Mapping[str, Distance]] = {each.name: each for each in (COSINE, Euclidean(), Manhattan())}
"""Each distance by its name in `tower.distance`."""


def _directions(vectors: NDArray[Any]) -> NDArray[Any]:
    """At length 1; a vector of length 0 stays."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)
