"""How far the embeddings of items moved between two releases.

Two trainings give spaces that are turned against each other, so they are laid over each other first.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recsys.index.embeddings import Vectors


def alike(before: Vectors, now: Vectors) -> NDArray[np.float64]:
    """Cosine of each item's two embeddings, after the rotation that brings all of them closest together.

    The rotation is the orthogonal Procrustes solution (Schönemann, 1966): U V' of the singular value decomposition
    of before' now, both of length 1 a row. It is fitted to the same items that it is applied to: with fewer items
    than dimensions everything fits.

    Args:
        before: of n items, float32 [n, dimension].
        now: of the same items in the same order, float32 [n, another dimension]; the smaller is padded with zeros.

    Returns:
        float64 [n], 1 where nothing moved.
    """
    width = max(before.shape[1], now.shape[1])
    one, other = (_directions(np.pad(vectors, ((0, 0), (0, width - vectors.shape[1])))) for vectors in (before, now))
    left, _, right = np.linalg.svd(one.T @ other)
    cosines: NDArray[np.float64] = ((one @ (left @ right)) * other).sum(axis=1)
    return cosines


def _directions(vectors: Vectors) -> NDArray[np.float64]:
    wide = vectors.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / np.where(lengths > 0, lengths, 1)
