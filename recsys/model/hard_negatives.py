"""Hard negatives: near items that are no positives, found with the embeddings as they are now.

The nearest of all are often positives that nobody has seen yet. So ranks begin further out (Facebook's
embedding retrieval takes 101 to 500; Huang et al., 2020), and whoever is about as similar as the anchor's own
positives is left out (NV-Retriever drops above 95% of the positive's score; Moreira et al., 2024).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recsys.config.sections import CandidatesConfig
from recsys.data.pairs import Block, Pairs
from recsys.index.distances import Distance
from recsys.index.embeddings import Vectors
from recsys.index.exact import top_columns

KEPT = 64
"""Hard negatives that are kept for each anchor, from which each step draws: memory."""
BLOCK = 512


class Mined(NamedTuple):
    """What was found, and what was dropped and why."""

    negatives: NDArray[np.int32]
    """int32 [num_items, KEPT], -1 pads."""
    report: dict[str, int]
    """Neighbors in the rank window: `considered`, `known_positive`, `too_similar`, `kept`."""


def mine(
    vectors: Vectors, pairs: Pairs, distance: Distance, config: CandidatesConfig, rng: np.random.Generator
) -> Mined:
    """Hard negatives of every anchor.

    Args:
        vectors: float32 [num_items, dimension].
        pairs: known positives.
        distance: what "near" means.
        config: `hard_ranks` and `hard_margin`.
        rng: which of more than `KEPT` are kept.
    """
    negatives = np.full((pairs.num_items, KEPT), -1, np.int32)
    report = dict.fromkeys(("considered", "known_positive", "too_similar", "kept"), 0)
    for block in pairs:
        for start in range(0, len(block.anchors), BLOCK):
            part = block.take(np.arange(start, min(start + BLOCK, len(block.anchors))))
            negatives[part.anchors] = _of(part, vectors, distance=distance, config=config, rng=rng, report=report)
    return Mined(negatives, report)


def _of(
    block: Block,
    vectors: Vectors,
    *,
    distance: Distance,
    config: CandidatesConfig,
    rng: np.random.Generator,
    report: dict[str, int],
) -> NDArray[np.int32]:
    """Hard negatives of some anchors, int32 [n, KEPT]; adds to the report."""
    anchors, rows = block
    similarities = distance.similarities(vectors[anchors], vectors)
    similarities[np.arange(len(anchors)), anchors] = -np.inf
    first, last = config.hard_ranks
    near = top_columns(similarities, min(last, len(vectors) - 1))[:, first - 1 :]  # [n, width]
    value = np.take_along_axis(similarities, near, axis=1)

    row = np.repeat(np.arange(len(anchors)), np.diff(rows.indptr))
    known = np.zeros(similarities.shape, bool)
    known[row, rows.indices] = True
    positive = np.take_along_axis(known, near, axis=1)
    least = np.full(len(anchors), np.inf)
    np.minimum.at(least, row, similarities[row, rows.indices])
    # a share of the way down from the least similar positive: below it also where that one is negative
    limit = least - config.hard_margin * np.abs(least)
    similar = ~positive & (value >= limit[:, None])
    kept = ~positive & ~similar
    for name, mask in (("known_positive", positive), ("too_similar", similar), ("kept", kept)):
        report[name] += int(mask.sum())
    report["considered"] += near.size

    # the kept ones of each row in random order, KEPT of them at most
    order = np.argsort(np.where(kept, rng.random(kept.shape), 2.0), axis=1)[:, :KEPT]
    chosen = np.where(np.take_along_axis(kept, order, axis=1), np.take_along_axis(near, order, axis=1), -1)
    return np.pad(chosen, ((0, 0), (0, KEPT - chosen.shape[1])), constant_values=-1).astype(np.int32)
