"""Mining of hard negatives: items near an anchor in the current embeddings that are not its positives.

The nearest items of all are often positives that have not been observed yet. So mining starts further out (Facebook's
embedding-based retrieval uses ranks 101 to 500; Huang et al., 2020), and omits items that are about as similar as the
anchor's positives (NV-Retriever omits those above 95% of the positive's score; Moreira et al., 2024).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recsys.data.pairs import Block, Pairs
from recsys.index.distances import Distance
from recsys.index.embeddings import Vectors
from recsys.index.exact import top_columns

MAX_NEGATIVES = 64
"""Maximum number of hard negatives per anchor, from which each step draws; limits memory."""
ANCHORS_PER_BLOCK = 512


RANKS = (100, 500)
"""First and last rank among an anchor's neighbors: nearer ones are often positives that were not observed."""
MARGIN = 0.05
"""A hard negative must be less similar than the least similar positive by this share, for the same reason."""


class Mined(NamedTuple):
    """Hard negatives, and how many items were omitted by which rule."""

    negatives: NDArray[np.int32]
    """Item numbers, int32 [num_items, MAX_NEGATIVES], -1 pads."""
    report: dict[str, int]
    """Number of neighbors in the rank window: `considered`, `known_positive`, `too_similar`, `kept`."""


def mine(embeddings: Vectors, pairs: Pairs, distance: Distance, rng: np.random.Generator) -> Mined:
    """Mine hard negatives for every anchor.

    Args:
        embeddings: of the catalog, float32 [num_items, d].
        pairs: known positives.
        distance: ranks the neighbors.
        rng: selects `MAX_NEGATIVES` if an anchor has more.
    """
    negatives = np.full((pairs.num_items, MAX_NEGATIVES), -1, np.int32)
    report = dict.fromkeys(("considered", "known_positive", "too_similar", "kept"), 0)
    for block in pairs:
        for start in range(0, len(block.anchors), ANCHORS_PER_BLOCK):
            part = block.take(np.arange(start, min(start + ANCHORS_PER_BLOCK, len(block.anchors))))
            mined = _mine_block(part, embeddings, distance, rng)
            negatives[part.anchors] = mined.negatives
            for name, count in mined.report.items():
                report[name] += count
    return Mined(negatives, report)


def _mine_block(block: Block, embeddings: Vectors, distance: Distance, rng: np.random.Generator) -> Mined:
    """Mine hard negatives for some anchors, int32 [n, MAX_NEGATIVES]."""
    anchors, rows = block
    similarities = distance.similarities(embeddings[anchors], embeddings)  # [n, num_items]
    similarities[np.arange(len(anchors)), anchors] = -np.inf
    first, last = RANKS
    neighbors = top_columns(similarities, min(last, len(embeddings) - 1))[:, first - 1 :]  # [n, width]
    neighbor_similarity = np.take_along_axis(similarities, neighbors, axis=1)

    row = np.repeat(np.arange(len(anchors)), np.diff(rows.indptr))
    is_positive = np.zeros(similarities.shape, bool)
    is_positive[row, rows.indices] = True
    known_positive = np.take_along_axis(is_positive, neighbors, axis=1)
    least_similar = np.full(len(anchors), np.inf)
    np.minimum.at(least_similar, row, similarities[row, rows.indices])
    # the absolute value keeps the limit below a negative similarity
    limit = least_similar - MARGIN * np.abs(least_similar)
    too_similar = ~known_positive & (neighbor_similarity >= limit[:, None])
    kept = ~known_positive & ~too_similar

    # kept neighbors of each row in random order come first
    order = np.argsort(np.where(kept, rng.random(kept.shape), 2.0), axis=1)[:, :MAX_NEGATIVES]
    negatives = np.where(np.take_along_axis(kept, order, axis=1), np.take_along_axis(neighbors, order, axis=1), -1)
    padding = ((0, 0), (0, MAX_NEGATIVES - negatives.shape[1]))
    report = {
        "considered": neighbors.size,
        "known_positive": int(known_positive.sum()),
        "too_similar": int(too_similar.sum()),
        "kept": int(kept.sum()),
    }
    return Mined(np.pad(negatives, padding, constant_values=-1).astype(np.int32), report)
