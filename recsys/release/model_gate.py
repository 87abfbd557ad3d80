"""Gate checks of a new release alone: its embeddings, tower and index."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recsys.data.catalog import Catalog
from recsys.index.embeddings import BLOCK, NORM_TOLERANCE, Vectors
from recsys.index.exact import ExactIndex
from recsys.index.recall import recall
from recsys.release.check import Check, at_least, at_most, skipped
from recsys.release.embedding_space import EmbeddingSpace

MIN_TOWER_AGREEMENT = 0.99
"""Smallest similarity of a stored embedding and the embedding that the tower computes. Rounding changes far less."""
MAX_MEAN_COSINE = 0.8
"""Largest mean cosine of two items: above it the embeddings have collapsed to nearly one direction. Trained towers have
0 to 0.2."""
MIN_EFFECTIVE_RANK = 0.05
"""Smallest effective rank of the embeddings (Roy and Vetterli, 2007), as a share of their dimension: below it they
have collapsed to a few directions."""


def embedding_checks(space: EmbeddingSpace) -> list[Check]:
    """Check that embeddings are finite, normalized and not collapsed."""
    vectors, distance = space.vectors, space.distance
    not_finite, norm_error = 0, 0.0
    total = np.zeros(vectors.shape[1])
    squares = np.zeros((vectors.shape[1], vectors.shape[1]))
    for start in range(0, len(vectors), BLOCK):
        block = np.asarray(vectors[start : start + BLOCK], np.float64)
        finite = np.isfinite(block).all(axis=1)
        not_finite += int((~finite).sum())
        block = block[finite]
        norm_error = max(norm_error, float(np.abs(np.linalg.norm(block, axis=1) - 1).max(initial=0)))
        total += block.sum(axis=0)
        squares += block.T @ block
    checks = [at_most("embeddings_not_finite", not_finite, 0)]
    count = max(len(vectors) - not_finite, 1)
    if distance.unit_norm:
        mean_cosine = (total @ total - np.trace(squares)) / max(count * (count - 1), 1)
        checks.append(at_most("embeddings_norm_error", norm_error, NORM_TOLERANCE))
        checks.append(at_most("embeddings_mean_cosine", mean_cosine, MAX_MEAN_COSINE))
    else:
        reason = "only cosine requires vectors of length 1"
        checks += [skipped(name, reason) for name in ("embeddings_norm_error", "embeddings_mean_cosine")]
    mean = total / count
    rank = effective_rank(squares / count - np.outer(mean, mean)) / min(vectors.shape[1], count)
    return [*checks, at_least("embeddings_effective_rank", rank, MIN_EFFECTIVE_RANK)]


def effective_rank(covariance: NDArray[np.float64]) -> float:
    """Return the effective number of dimensions of vectors with this covariance.

    The exponential of the entropy of the normalized singular values (Roy and Vetterli, The effective rank, 2007).
    The singular values of the centered vectors are the square roots of the covariance's eigenvalues.
    """
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(covariance), 0))
    shares = values[values > 0] / values.sum() if values.sum() > 0 else np.ones(1)
    return float(np.exp(-(shares * np.log(shares)).sum()))


def tower_check(space: EmbeddingSpace, sample: NDArray[np.int32], encoded: Vectors) -> Check:
    """Check that the stored embeddings are those that the tower of the space computes.

    Args:
        space: embedding space of the challenger.
        sample: item numbers, int32 [n].
        encoded: embeddings that the tower computes for the sample, float32 [n, dimension].
    """
    similarities = space.distance.similarity(space.distance.between(space.vectors[sample], encoded))
    return at_least("tower_agreement", float(np.min(similarities)), MIN_TOWER_AGREEMENT)


def index_checks(space: EmbeddingSpace, sample: NDArray[np.int32], recall_floor: float) -> list[Check]:
    """Check recall and number of neighbors of the loaded index, whatever the manifest says.

    Args:
        space: embedding space of the challenger.
        sample: query item numbers, int32 [n].
        recall_floor: the smallest index recall.
    """
    k = min(space.manifest.recall_k, len(space.catalog) - 1)
    neighbors = space.index.neighbors(sample, k)
    exact = ExactIndex(space.vectors, space.distance).neighbors(sample, k)
    found = recall(neighbors, exact, space.vectors, sample, space.distance)
    distinct = (np.diff(np.sort(neighbors, axis=1), axis=1) > 0).all(axis=1)
    full = distinct & (neighbors >= 0).all(axis=1) & (neighbors != sample[:, None]).all(axis=1)
    return [at_least("index_recall", found, recall_floor), at_least("index_fill_rate", float(full.mean()), 1)]


def catalog_check(release_catalog: Catalog, run_catalog: Catalog) -> Check:
    """Check that the release has all items of the run's data, with the same title and features."""
    name, columns = "catalog_covered", run_catalog.frame.columns
    if set(columns) - set(release_catalog.frame.columns):
        return at_least(name, 0, 1)
    release_rows, run_rows = (
        catalog.frame.select("item_id", row=catalog.frame.select(columns).hash_rows())
        for catalog in (release_catalog, run_catalog)
    )
    covered = release_rows.join(run_rows, on=["item_id", "row"], how="semi").height
    return at_least(name, covered / max(len(run_catalog), 1), 1)
