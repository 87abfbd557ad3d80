"""A phase of prepare: the pairs of the sense `similar`, from the association of items over whole histories.

The phase writes nothing if the window of the pairs of `next` contains most pairs of items of a history: from such
histories both senses have about the same pairs.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.prepare.job import Job
from recsys.config.sections import PrepareConfig
from recsys.data import cooccurrence, pairs
from recsys.data.association import partial_weights
from recsys.data.sequences import Sequences
from recsys.data.splits import WEIGHTS, Split, Target, time_cut
from recsys.evaluation.baselines import interaction_matrix

MAX_SHARE_IN_WINDOW = 0.5
"""Share of the pairs of items of a history within the window of `next`, above which both senses share their pairs. On
Amazon Beauty and Toys, with .93 and .94, no tower for `similar` is better than that for `next`; on MovieLens 100k, with
.09, it is."""
POWER, MAX_POSITIVES = 3.0, 100
"""Exponent and number of the partial weights of an anchor; without the exponent, most of their sum is noise."""


def count_pairs_of_histories(split: Split, config: PrepareConfig) -> tuple[int, int]:
    """Return how many pairs of interactions the histories before the test targets have, and how many in the window."""
    users = split.sequences.users[split.training_mask("test")]
    lengths = np.bincount(users, minlength=len(split.sequences)).astype(np.int64)
    gaps = np.minimum(config.window, np.maximum(lengths - 1, 0))
    in_window = gaps * lengths - gaps * (gaps + 1) // 2  # the sum of length - gap over the gaps
    return int((lengths * (lengths - 1) // 2).sum()), int(in_window.sum())


def share_in_window(job: Job) -> float:
    """Return the share of the pairs of histories within the window; available after the phase `sequences`."""
    entries = job.entries("sequences")
    total, in_window = (sum(entry[name] for entry in entries) for name in ("history_pairs", "history_pairs_in_window"))
    return float(in_window / max(total, 1))


def associate(job: Job, part: int) -> None:
    """Write the pairs of one range of anchors, unless both senses share the pairs of `next`."""
    size = 0
    if job.config.similar.enabled and not job.labeled and share_in_window(job) <= MAX_SHARE_IN_WINDOW:
        first_item_numbers = job.first_item_numbers
        sequences = Sequences.load(sorted(job.sequences.iterdir()))
        split = Split(sequences, time_cut(job.newest, job.config.evaluate))
        anchors = np.arange(first_item_numbers[part], first_item_numbers[part + 1])
        penalty, num_items = job.config.similar.penalty, first_item_numbers[-1]
        weights = [_weights(split, target, penalty, num_items, anchors) for target in WEIGHTS]
        columns = pl.concat(weights, how="diagonal").with_columns(pl.col(*WEIGHTS.values()).fill_null(0))
        rows = cooccurrence.group_by_anchor(columns, 2 * MAX_POSITIVES)
        pairs.write(rows, job.similar_pairs / f"part-{part:05d}.parquet")
        size = int(rows["size"].sum())
    job.finish("similar", part, pairs=size)


def _weights(
    split: Split, target: Target, penalty: float, num_items: int, anchors: NDArray[np.integer]
) -> pl.DataFrame:
    """Return the partial weights of anchors in the training data. An anchor counts with the root of its popularity."""
    interactions = interaction_matrix(split, target, num_items)
    weights = partial_weights(interactions, penalty, POWER, MAX_POSITIVES, anchors)
    root_popularity = np.sqrt(np.asarray(interactions.sum(axis=0)).ravel()[anchors])
    return cooccurrence.from_matrix(weights, anchors, root_popularity, WEIGHTS[target])
