"""Drift of embeddings after the alignment of two spaces."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.linalg import orthogonal_procrustes
from scipy.stats import ortho_group

from recsys.evaluation.embedding_drift import aligned_cosines


def directions(seed: int, items: int = 60, dimension: int = 7) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(size=(items, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_rotation_is_not_drift() -> None:
    embeddings = directions(1)
    rotated = embeddings @ ortho_group.rvs(7, random_state=2).astype(np.float32)
    assert aligned_cosines(embeddings, rotated) == pytest.approx(np.ones(60), abs=1e-6)


def test_agrees_with_orthogonal_procrustes() -> None:
    earlier, later = directions(1), directions(2)
    rotation, _ = orthogonal_procrustes(earlier, later)
    rotated = earlier @ rotation
    assert aligned_cosines(earlier, later) == pytest.approx(
        [float(a @ b) for a, b in zip(rotated, later, strict=True)], abs=1e-6
    )


def test_detects_the_item_that_moved() -> None:
    earlier = directions(1)
    later = earlier @ ortho_group.rvs(7, random_state=3).astype(np.float32)
    later[17] = -later[17]
    cosines = aligned_cosines(earlier, later)
    assert cosines.argmin() == 17
    assert cosines[17] < 0
    assert np.delete(cosines, 17).min() > 0.9


def test_ignores_lengths_and_allows_another_dimension() -> None:
    embeddings = directions(1)
    longer = np.pad(embeddings, ((0, 0), (0, 2))) * np.float32(3)
    assert aligned_cosines(embeddings, longer) == pytest.approx(np.ones(60), abs=1e-6)
    assert aligned_cosines(longer, embeddings) == pytest.approx(np.ones(60), abs=1e-6)
    assert aligned_cosines(np.zeros((2, 3), np.float32), directions(1, 2, 3)) == pytest.approx([0, 0])
