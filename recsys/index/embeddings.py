"""The embeddings of a catalog: float32 [num_items, dimension], row = item number, of length 1 for cosine."""

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
"""Rows validated at a time: bounds the memory used for memory-mapped vectors."""


def validate(vectors: Vectors, num_items: int, origin: str = "embeddings", *, distance: Distance = COSINE) -> None:
    """Raise if the embeddings cannot be indexed or searched.

    Args:
        vectors: expected to be float32 [num_items, dimension].
        num_items: size of the catalog.
        origin: name of the embeddings in error messages.
        distance: determines whether the vectors must have length 1.

    Raises:
        InputError: wrong type or shape, or a vector that is not finite or does not have the required length.
    """
    if vectors.shape[:-1] != (num_items,) or vectors.dtype != np.float32:
        raise InputError(
            f"{origin} must be float32 [{num_items}, dimension]. Received: {vectors.dtype} {list(vectors.shape)}."
        )
    for start in range(0, num_items, BLOCK):
        norms = np.linalg.norm(vectors[start : start + BLOCK], axis=1)
        # comparisons with NaN are false; a squared length that overflows is as useless as an infinite one
        valid = np.abs(norms - 1) < NORM_TOLERANCE if distance.unit_norm else norms < np.inf
        invalid = np.flatnonzero(~valid)
        if len(invalid):
            rule = f"finite and of length 1 for {distance.name}" if distance.unit_norm else "finite"
            raise InputError(
                f"{origin} must be {rule}. Received: item number {start + invalid[0]} of length {norms[invalid[0]]}. "
                "Build the embeddings again."
            )


def weighted_means(vectors: Vectors, item_numbers: NDArray[np.int32], weights: NDArray[np.float32]) -> Vectors:
    """Return the weighted mean of the vectors of several items.

    Args:
        vectors: float32 [num_items, dimension].
        item_numbers: int32 [n, length]; -1 is padding.
        weights: at least 0, float32 [n, length].

    Returns:
        float32 [n, dimension]: for a row with one item its vector, unchanged; for a row without weights zeros.
    """
    if item_numbers.shape[1] == 1 and (item_numbers >= 0).all() and (weights > 0).all():
        return vectors[item_numbers[:, 0]]
    weights = np.where(item_numbers >= 0, weights, np.float32(0))
    total = weights.sum(axis=1, keepdims=True)
    shares = weights / np.where(total > 0, total, 1)
    return np.matmul(shares[:, None, :], vectors[item_numbers])[:, 0]  # type: ignore[no-any-return]


def load(path: Path) -> Vectors:
    """Memory-map a `.npy` file; processes that read the same file share its memory.

    Raises:
        InputError: not a `.npy` file.
    """
    return map_array(path, "embeddings")


def save(vectors: Vectors, path: Path) -> None:
    """Write the embeddings as a `.npy` file."""
    np.save(path, vectors)
