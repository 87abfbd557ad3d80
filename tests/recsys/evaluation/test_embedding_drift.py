"""How far embeddings moved, once two spaces lie over each other."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.linalg import orthogonal_procrustes
from scipy.stats import ortho_group

from recsys.evaluation.embedding_drift import aligned_cosines


def directions(seed: int, items: int = 60, dimension: int = 7) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(size=(items, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_a_rotation_is_no_drift() -> None:
    before = directions(1)
    turned = before @ ortho_group.rvs(7, random_state=2).astype(np.float32)
    assert aligned_cosines(before, turned) == pytest.approx(np.ones(60), abs=1e-6)


def test_agrees_with_orthogonal_procrustes() -> None:
    before, now = directions(1), directions(2)
    rotation, _ = orthogonal_procrustes(before, now)
    turned = before @ rotation
    assert aligned_cosines(before, now) == pytest.approx(
        [float(a @ b) for a, b in zip(turned, now, strict=True)], abs=1e-6
    )


def test_detects_the_item_that_moved() -> None:
    before = directions(1)
    now = before @ ortho_group.rvs(7, random_state=3).astype(np.float32)
    now[17] = -now[17]
    found = aligned_cosines(before, now)
    assert found.argmin() == 17
    assert found[17] < 0
    assert np.delete(found, 17).min() > 0.9


def test_ignores_lengths_and_allows_another_dimension() -> None:
    before = directions(1)
    longer = np.pad(before, ((0, 0), (0, 2))) * np.float32(3)
    assert aligned_cosines(before, longer) == pytest.approx(np.ones(60), abs=1e-6)
    assert aligned_cosines(longer, before) == pytest.approx(np.ones(60), abs=1e-6)
    assert aligned_cosines(np.zeros((2, 3), np.float32), directions(1, 2, 3)) == pytest.approx([0, 0])
