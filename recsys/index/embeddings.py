"""The vectors of a catalog: float32 [num_items, dimension], finite, row = item number; unit length for cosine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recsys.data.storage import map_array
from recsys.errors import InputError
from recsys.index.distances import COSINE, Distance

Vectors = NDArray[np.float32]

NORM_TOLERANCE = 1e-3
BLOCK = 100_000
"""Rows looked at together: bounds the memory of a check on mapped vectors."""


def check(vectors: Vectors, num_items: int, origin: str = "embeddings", *, distance: Distance = COSINE) -> None:
    """Refuse what an index or a server would answer nonsense from.

    Args:
        vectors: what should be float32 [num_items, dimension].
        num_items: size of the catalog.
        origin: what to call them in an error.
        distance: decides whether the vectors must have length 1.

    Raises:
        InputError: wrong type or shape, or a vector that is not finite or not of the length that the distance needs.
    """
    if vectors.shape[:-1] != (num_items,) or vectors.dtype != np.float32:
        raise InputError(
            f"{origin} must be float32 [{num_items}, dimension]. Received: {vectors.dtype} {list(vectors.shape)}."
        )
    for start in range(0, num_items, BLOCK):
        norms = np.linalg.norm(vectors[start : start + BLOCK], axis=1)
        # NaN is not below anything; a square that overflows is as useless to a distance as infinity
        sound = np.abs(norms - 1) < NORM_TOLERANCE if distance.unit else norms < np.inf
        wrong = np.flatnonzero(~sound)
        if len(wrong):
            rule = f"finite and of length 1 for {distance.name}" if distance.unit else "finite"
            raise InputError(
                f"{origin} must be {rule}. "
                f"Received: item number {start + wrong[0]} of length {norms[wrong[0]]}. Build the embeddings again."
            )


def means(vectors: Vectors, items: NDArray[np.int32], weights: NDArray[np.float32]) -> Vectors:
    """What several items have in common: the weighted mean of their vectors.

    Args:
        vectors: float32 [num_items, dimension].
        items: item numbers, int32 [n, length]; -1 pads.
        weights: at least 0, float32 [n, length].

    Returns:
        float32 [n, dimension]. The vector itself where one item counts; zeros where none does.
    """
    if items.shape[1] == 1 and (items >= 0).all() and (weights > 0).all():
        return vectors[items[:, 0]]
    counting = np.where(items >= 0, weights, np.float32(0))
    total = counting.sum(axis=1, keepdims=True)
    shares = counting / np.where(total > 0, total, 1)
    return np.matmul(shares[:, None, :], vectors[items])[:, 0]  # type: ignore[no-any-return]


def load(path: Path) -> Vectors:
    """Map a `.npy` file: processes that read the same file share its memory.

    Raises:
        InputError: it is none.
    """
    return map_array(path, "embeddings")


def save(vectors: Vectors, path: Path) -> None:
    """Write a `.npy` file."""
    np.save(path, vectors)
