"""The vectors of a catalogue: float32 [num_items, dimension], finite, unit length, row = item number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recsys.errors import InputError

Vectors = NDArray[np.float32]

NORM_TOLERANCE = 1e-3
BLOCK = 100_000
"""Rows looked at together: bounds the memory of a check on mapped vectors."""


def check(vectors: Vectors, num_items: int, origin: str = "embeddings") -> None:
    """Refuse what an index or a server would answer nonsense from.

    Raises:
        InputError: wrong type or shape, or a vector that is not finite or not of unit length.
    """
    if vectors.shape[:-1] != (num_items,) or vectors.dtype != np.float32:
        raise InputError(
            f"{origin} must be float32 [{num_items}, dimension]. Received: {vectors.dtype} {list(vectors.shape)}."
        )
    for start in range(0, num_items, BLOCK):
        norms = np.linalg.norm(vectors[start : start + BLOCK], axis=1)
        wrong = np.flatnonzero(~(np.abs(norms - 1) < NORM_TOLERANCE))  # NaN is not below anything
        if len(wrong):
            raise InputError(
                f"{origin} must be finite and of length 1. "
                f"Received: item number {start + wrong[0]} of length {norms[wrong[0]]}."
            )


def save(vectors: Vectors, path: Path) -> None:
    """Write a `.npy` file."""
    np.save(path, vectors)


def load(path: Path) -> Vectors:
    """Map a `.npy` file: processes that read the same file share its memory.

    Raises:
        InputError: it is none.
    """
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"embeddings must be a .npy file. Received {path}: {error}") from None
