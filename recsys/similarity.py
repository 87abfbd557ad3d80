"""Cosine similarity, and the only place that turns an Annoy distance into a similarity and back."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

METRIC: Final = "angular"
"""Annoy's name for the metric of unit vectors under cosine."""


def similarity(distance: NDArray[Any] | float) -> Any:
    """Cosine in [-1, 1] of two vectors at an angular `distance` in [0, 2].

    Annoy's angular distance is the Euclidean distance of the normalised vectors,
    d = sqrt(2 (1 - cos)), so cos = 1 - d² / 2 (Annoy's README, "angular").
    """
    return 1.0 - distance * distance / 2.0


def distance(similarity: NDArray[Any] | float) -> Any:
    """Angular distance in [0, 2] of two vectors of a cosine `similarity` in [-1, 1]."""
    return np.sqrt(np.maximum(2.0 - 2.0 * np.asarray(similarity), 0.0))
