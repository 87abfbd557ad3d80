"""Windowed, weighted co-occurrence counts of item pairs in the sequences of users.

The weights of a pair are summed over users, so the result grows with the number of distinct pairs and not with the
log. All weights of `recsys.data.splits.Weight` are computed at once, because different fits use different parts of the
log.

Example: one user with the items 7, 3, 9 (too short for a split), window 2 and decay 1. The pairs (3, 7) and (3, 9)
have the weight 1; the pair (7, 9), two positions apart, has the weight 1/2.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from recsys.config.sections import PrepareConfig
from recsys.data.pair_keys import KEY_BASE, pair_key, pair_of_key
from recsys.data.sequences import Sequences, session_numbers
from recsys.data.splits import DAY_S, WEIGHTS, Split, Weight

COLUMNS: tuple[str, ...] = tuple(WEIGHTS.values())
SCHEMA = {"anchor": pl.Int32, "positive": pl.Int32, **dict.fromkeys(COLUMNS, pl.Float64)}


def count_pairs(split: Split, weights: NDArray[np.float32], config: PrepareConfig, newest: float) -> pl.DataFrame:
    """Sum the pair weights over all users; each unordered pair once, unless `directed`.

    Two interactions of one user in one session, `gap` <= `window` positions apart, add `gap ** -decay` times both
    interaction weights, halved for each `half_life_days` of the age of the later one, and divided by the user's sum
    of these to the power `user_power`. An item makes no pair with itself, and only the newest
    `max_user_interactions` known interactions of a user make pairs.

    Args:
        split: the sequences, and which interactions are training data.
        weights: of the interactions, float32 [num_interactions].
        config: window and weights.
        newest: time of the newest interaction of the whole log, in seconds.

    Returns:
        `anchor` and `positive` (int32; anchor < positive, or the earlier and the later item if `directed`), and the
        weights of `recsys.data.splits.Weight` (float64), sorted.
    """
    sequences = split.sequences
    items, users = sequences.items.astype(np.int64), sequences.users
    session = session_numbers(sequences, config.session_gap_minutes)
    masks: dict[str, NDArray[np.bool_]] = {weight: split.training_mask(target) for target, weight in WEIGHTS.items()}
    recent = {name: _recent(sequences, mask, config.max_user_interactions) for name, mask in masks.items()}
    value = weights.astype(np.float64)
    age = np.ones(len(items))
    if config.half_life_days is not None:
        age = 0.5 ** ((newest - sequences.times) / DAY_S / config.half_life_days)

    def pairs_at(gap: int) -> tuple[NDArray[np.bool_], dict[str, NDArray[np.float64]]]:
        """Return which positions make a pair with the one `gap` before, and the weights of these pairs."""
        is_pair = (session[:-gap] == session[gap:]) & (items[:-gap] != items[gap:])
        used = {name: is_pair & mask[gap:] & recent[name][:-gap] for name, mask in masks.items()}
        rows = np.logical_or.reduce([*used.values()])
        weight = (value[:-gap] * value[gap:] * age[gap:])[rows] * float(gap) ** -config.decay
        return rows, {name: weight * mask[rows] for name, mask in used.items()}

    gaps = range(1, min(config.window, len(items) - 1) + 1)
    user_scale = {name: np.ones(len(sequences)) for name in masks}
    if config.user_power:
        totals = {name: np.zeros(len(sequences)) for name in masks}
        for gap in gaps:
            rows, weight = pairs_at(gap)
            for name in masks:
                totals[name] += np.bincount(users[gap:][rows], weight[name], minlength=len(sequences))
        smallest = np.finfo(np.float64).tiny  # smaller totals have no finite inverse
        user_scale = {
            name: np.where(total >= smallest, total, 1.0) ** -config.user_power for name, total in totals.items()
        }

    chunks = [pl.DataFrame(schema={"key": pl.Int64, **dict.fromkeys(masks, pl.Float64)})]
    for gap in gaps:
        rows, weight = pairs_at(gap)
        first, second = items[:-gap][rows], items[gap:][rows]
        if not config.directed:
            first, second = np.minimum(first, second), np.maximum(first, second)
        user = users[gap:][rows]
        columns = {name: weight[name] * user_scale[name][user] for name in masks}
        chunks.append(pl.DataFrame({"key": first * KEY_BASE + second, **columns}))
    summed = pl.concat(chunks).lazy().group_by("key").agg(pl.col(*masks).sum()).sort("key")
    return summed.select(*pair_of_key("anchor", "positive"), *masks).collect()


def _recent(sequences: Sequences, mask: NDArray[np.bool_], max_interactions: int) -> NDArray[np.bool_]:
    """Return which interactions are not older than the newest `max_interactions` of their user within `mask`."""
    users = sequences.users
    first = sequences.offsets[:-1] + np.bincount(users[mask], minlength=len(sequences)) - max_interactions
    return np.arange(len(mask)) >= first[users]


def mirror(counts: pl.DataFrame) -> pl.DataFrame:
    """Add the opposite direction of each pair."""
    opposite = counts.rename({"anchor": "positive", "positive": "anchor"}).select(counts.columns)
    return pl.concat([counts, opposite])


def group_by_anchor(counts: pl.DataFrame, max_positives: int) -> pl.DataFrame:
    """Sum the weights of equal pairs, and group them to one row per anchor.

    Args:
        counts: `anchor`, `positive` and some of the weights, among them `weight`.
        max_positives: maximum number of positives of an anchor.

    Returns:
        `anchor`; its `max_positives` heaviest `positives` (list of int32), sorted; their weights (lists of float32);
        `size`, the number of these; and `dropped_positives`, the number of dropped positives (both int32).
    """
    weights = [name for name in COLUMNS if name in counts.columns]
    summed = (
        counts.lazy()
        .select(pair_key("anchor", "positive"), *weights)
        .group_by("key")
        .agg(pl.col(*weights).sum().cast(pl.Float32))
        .sort("key")
        .select(*pair_of_key("anchor", "positive"), *weights)
        .collect()
    )
    too_many = pl.len().cast(pl.Int32) - max_positives
    dropped_positives = (
        summed.group_by("anchor").agg(dropped_positives=too_many).filter(pl.col("dropped_positives") > 0)
    )
    if dropped_positives.height:
        summed = summed.filter(pl.col("weight").rank("ordinal", descending=True).over("anchor") <= max_positives)
    rows = summed.group_by("anchor", maintain_order=True).agg(
        pl.col("positive").alias("positives"), *weights, size=pl.len().cast(pl.Int32)
    )
    return rows.join(dropped_positives, on="anchor", how="left", maintain_order="left").with_columns(
        pl.col("dropped_positives").fill_null(0)
    )


def from_matrix(
    matrix: sparse.csr_array, anchors: NDArray[np.integer], anchor_weight: NDArray[np.floating], weight: Weight
) -> pl.DataFrame:
    """Return the values of a matrix as pairs with one weight.

    Args:
        matrix: value of each positive, [n, num_items].
        anchors: item numbers of the rows, [n].
        anchor_weight: factor of each row, [n].
        weight: name of the weight.

    Returns:
        `anchor`, `positive` (int32) and the weight (float64).
    """
    cells = matrix.tocoo()
    return pl.DataFrame(
        {"anchor": anchors[cells.row], "positive": cells.col, weight: cells.data * anchor_weight[cells.row]},
        schema={name: SCHEMA[name] for name in ("anchor", "positive", weight)},
    )


def to_matrix(counts: pl.DataFrame, num_items: int, weight: Weight) -> sparse.csr_array:
    """Return one of the weights as a matrix, float32 [num_items, num_items], without explicit zeros."""
    nonzero = counts.filter(pl.col(weight) > 0)
    coordinates = (nonzero["anchor"].to_numpy(), nonzero["positive"].to_numpy())
    return sparse.coo_array(
        (nonzero[weight].to_numpy().astype(np.float32), coordinates), shape=(num_items, num_items)
    ).tocsr()
