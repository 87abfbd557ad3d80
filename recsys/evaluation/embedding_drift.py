"""Drift of the item embeddings between two releases.

Two trainings give embeddings that differ by a rotation, so they are aligned first.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recsys.index.embeddings import Vectors


def aligned_cosines(previous: Vectors, current: Vectors) -> NDArray[np.float64]:
    """Return the cosine of each item's two embeddings, after the rotation that aligns all of them best.

    The rotation is the orthogonal Procrustes solution (Schönemann, 1966): U V' of the singular value decomposition
    of previous' current, both with rows of length 1. It is fitted to the same items that it is applied to: with fewer
    items than dimensions the fit is perfect.

    Args:
        previous: of n items, float32 [n, dimension].
        current: of the same items in the same order, float32 [n, other dimension]; the smaller is padded with zeros.

    Returns:
        float64 [n], 1 for items that did not move.
    """
    width = max(previous.shape[1], current.shape[1])
    first, second = (
        _normalize(np.pad(vectors, ((0, 0), (0, width - vectors.shape[1])))) for vectors in (previous, current)
    )
    left, _, right = np.linalg.svd(first.T @ second)
    cosines: NDArray[np.float64] = ((first @ (left @ right)) * second).sum(axis=1)
    return cosines


def _normalize(vectors: Vectors) -> NDArray[np.float64]:
    wide = vectors.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / np.where(lengths > 0, lengths, 1)
