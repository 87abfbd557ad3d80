"""Windowed, weighted co-occurrence pairs of one user's interactions.

Takes users' items in the order of time, hands on for each pair of items the summed weight. The sum over
users is far smaller than the raw pairs: what comes after costs by distinct pairs, not by the log.

Two weights are kept at once, since tuning and the final fit see different parts of the log:
`weight` of everything before the test targets, `weight_before_validation` of everything before the validation
targets.

Example, one user who touched 7, 3, 9 (too short for a split), window 2, decay 1: the pairs (3, 7) and (3, 9)
weigh 1, the pair (7, 9), two positions apart, weighs 1/2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from recsys.config.sections import PrepareConfig
from recsys.data.sequences import Sequences
from recsys.data.splits import DAY_S, Split

Weight = Literal["weight", "weight_before_validation"]
SCHEMA = {
    "anchor": pl.Int32,
    "positive": pl.Int32,
    "weight": pl.Float64,
    "weight_before_validation": pl.Float64,
}
ROW_GROUP_PAIRS = 250_000
"""Pairs that one row group of a file holds, about: what is read at least."""


def count(
    split: Split, weights: NDArray[np.float32], num_items: int, config: PrepareConfig, newest: float
) -> pl.DataFrame:
    """Summed pair weights; each unordered pair once, unless `directed`.

    Two interactions of one user and session `gap` <= `window` positions apart add `gap ** -decay` times both
    interaction weights, halved for each `half_life_days` of the later one's age, and divided by the user's sum
    of these to `user_power`. An item makes no pair with itself, and only the `max_user_interactions` newest of
    what is known of a user make pairs.

    Args:
        split: users' items, oldest first, and what of them is known.
        weights: of the interactions, float32 [num_interactions].
        num_items: size of the catalog.
        config: window and weights.
        newest: time of the newest interaction of the whole log, in seconds.

    Returns:
        `anchor` and `positive` (int32; anchor < positive, or where `directed` the earlier and the later),
        `weight` and `weight_before_validation` (float64), sorted.
    """
    sequences = split.sequences
    items, users = sequences.items.astype(np.int64), sequences.users
    session = _sessions(sequences, config.session_gap_minutes)
    known = {"weight": split.known_before("test"), "weight_before_validation": split.known_before("validation")}
    recent = {name: _recent(sequences, mask, config.max_user_interactions) for name, mask in known.items()}
    value = weights.astype(np.float64)
    age = np.ones(len(items))
    if config.half_life_days is not None:
        age = 0.5 ** ((newest - sequences.times) / DAY_S / config.half_life_days)

    def at(gap: int) -> tuple[NDArray[np.bool_], dict[str, NDArray[np.float64]]]:
        """Which positions make a pair with the one `gap` before, and its weights."""
        pair = (session[:-gap] == session[gap:]) & (items[:-gap] != items[gap:])
        used = {name: pair & mask[gap:] & recent[name][:-gap] for name, mask in known.items()}
        keep = np.logical_or.reduce([*used.values()])
        weight = (value[:-gap] * value[gap:] * age[gap:])[keep] * float(gap) ** -config.decay
        return keep, {name: weight * mask[keep] for name, mask in used.items()}

    gaps = range(1, min(config.window, len(items) - 1) + 1)
    share = {name: np.ones(len(sequences)) for name in known}
    if config.user_power:
        totals = {name: np.zeros(len(sequences)) for name in known}
        for gap in gaps:
            keep, weight = at(gap)
            for name in known:
                totals[name] += np.bincount(users[gap:][keep], weight[name], minlength=len(sequences))
        smallest = np.finfo(np.float64).tiny  # what is below has no finite inverse
        share = {name: np.where(total >= smallest, total, 1.0) ** -config.user_power for name, total in totals.items()}

    chunks = [pl.DataFrame(schema={"key": pl.Int64, **dict.fromkeys(known, pl.Float64)})]
    for gap in gaps:
        keep, weight = at(gap)
        first, second = items[:-gap][keep], items[gap:][keep]
        if not config.directed:
            first, second = np.minimum(first, second), np.maximum(first, second)
        user = users[gap:][keep]
        columns = {name: weight[name] * share[name][user] for name in known}
        chunks.append(pl.DataFrame({"key": first * num_items + second, **columns}))
    return (
        pl.concat(chunks)
        .group_by("key")
        .agg(pl.col(*known).sum())
        .sort("key")
        .select(
            (pl.col("key") // num_items).cast(pl.Int32).alias("anchor"),
            (pl.col("key") % num_items).cast(pl.Int32).alias("positive"),
            *known,
        )
    )


def _sessions(sequences: Sequences, gap_minutes: float | None) -> NDArray[np.int64]:
    """Number of the session of each interaction: another user, or a longer pause, begins a new one."""
    begins = np.diff(sequences.users, prepend=-1) > 0
    if gap_minutes is not None:
        begins |= np.diff(sequences.times, prepend=sequences.times[:1]) > gap_minutes * 60
    return np.cumsum(begins)


def _recent(sequences: Sequences, known: NDArray[np.bool_], most: int) -> NDArray[np.bool_]:
    """Which interactions are no older than the `most` newest known ones of their user, bool [num_interactions]."""
    users = sequences.users
    first = sequences.offsets[:-1] + np.bincount(users[known], minlength=len(sequences)) - most
    return np.arange(len(known)) >= first[users]


def mirror(pairs: pl.DataFrame) -> pl.DataFrame:
    """Both directions of each pair."""
    other = pairs.rename({"anchor": "positive", "positive": "anchor"}).select(pairs.columns)
    return pl.concat([pairs, other])


def by_anchor(pairs: pl.DataFrame, most: int) -> pl.DataFrame:
    """Sum the weights of each pair, and make one row an anchor.

    Returns:
        `anchor`, its `most` heaviest `positives` (list of int32), sorted, their two weights (lists of float32),
        `size`, how many they are, and `left_out`, how many more there were (both int32).
    """
    summed = (
        pairs.group_by("anchor", "positive")
        .agg(pl.col("weight", "weight_before_validation").sum().cast(pl.Float32))
        .sort("anchor", "positive")
    )
    sizes = summed.group_by("anchor").agg(left_out=pl.len().cast(pl.Int32) - most).filter(pl.col("left_out") > 0)
    if sizes.height:
        summed = summed.filter(pl.col("weight").rank("ordinal", descending=True).over("anchor") <= most)
    rows = summed.group_by("anchor", maintain_order=True).agg(
        pl.col("positive").alias("positives"), "weight", "weight_before_validation", size=pl.len().cast(pl.Int32)
    )
    left_out = pl.col("left_out").fill_null(0)
    return rows.join(sizes, on="anchor", how="left", maintain_order="left").with_columns(left_out)


def write(rows: pl.DataFrame, path: Path) -> None:
    """Write what `by_anchor` gives, but for `left_out`, in row groups that can be read one by one."""
    size = int(rows["size"].sum())
    rows.drop("left_out").write_parquet(path, row_group_size=max(1, rows.height * ROW_GROUP_PAIRS // max(size, 1)))


class Block(NamedTuple):
    """Some anchors and their positives."""

    anchors: NDArray[np.int32]
    """Item numbers, int32 [n]."""
    rows: sparse.csr_array
    """Pair weights, float32 [n, num_items]; explicit zeros left out."""

    def take(self, chosen: NDArray[np.int64]) -> Block:
        """Some of them, in the order of `chosen`, int64 [m]."""
        return Block(self.anchors[chosen], self.rows[chosen])


class _Slice(NamedTuple):
    path: Path
    offset: int
    rows: int
    size: int


@dataclass(frozen=True)
class Pairs:
    """Pairs on disk, read a slice at a time: memory follows the slices, not the pairs.

    Args:
        parts: files that `write` wrote, each anchor in one of them.
        num_items: size of the catalog.
        weight: which of the two weights.
    """

    parts: Sequence[Path]
    num_items: int
    weight: Weight

    @cached_property
    def slices(self) -> list[_Slice]:
        """Runs of rows of about a row group's pairs."""
        found = []
        for part in self.parts:
            sizes = pl.read_parquet(part, columns=["size"])["size"].to_numpy().astype(np.int64)
            if not len(sizes):
                continue
            group = np.cumsum(sizes) // ROW_GROUP_PAIRS
            starts = np.flatnonzero(np.diff(group, prepend=-1))
            for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(sizes)], strict=True):
                found.append(_Slice(part, start, end - start, int(sizes[start:end].sum())))
        return found

    @property
    def size(self) -> int:
        """Pairs on disk, counted in both directions unless directed."""
        return sum(piece.size for piece in self.slices)

    def read(self, piece: _Slice) -> Block:
        """One slice; anchors without a positive of this weight left out."""
        frame = (
            pl.scan_parquet(piece.path)
            .slice(piece.offset, piece.rows)
            .select("anchor", "positives", pl.col(self.weight).alias("weight"))
            .collect()
        )
        return _block(frame, self.num_items)

    def __iter__(self) -> Iterator[Block]:
        """All slices, in order."""
        return map(self.read, self.slices)

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Different positives of each item, int64 [num_items]."""
        counts = np.zeros(self.num_items, np.int64)
        for block in self:
            counts[block.anchors] = np.diff(block.rows.indptr)
        return counts

    @cached_property
    def totals(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """By item, float64 [num_items]: its weight as anchor, as positive, and its mean share of an anchor's weight."""
        anchor, positive, share = (np.zeros(self.num_items) for _ in range(3))
        anchors = 0
        for block in self:
            # float64: the inverse of a weight of many half-lives ago is infinite in float32
            sums = np.asarray(block.rows.sum(axis=1, dtype=np.float64)).ravel()
            anchor[block.anchors] = sums
            positive += np.asarray(block.rows.sum(axis=0, dtype=np.float64)).ravel()
            share += (1 / sums) @ block.rows
            anchors += len(block.anchors)
        return anchor, positive, share / max(anchors, 1)

    def shuffled(self, rng: np.random.Generator, at_once: int) -> Iterator[Block]:
        """All rows once: slices in random order, and the rows within each `at_once` pairs of them."""
        held: list[Block] = []
        size = 0
        order = rng.permutation(len(self.slices))
        for place, number in enumerate(order.tolist()):
            held.append(self._kept[number] if self.size <= at_once else self.read(self.slices[number]))
            size += self.slices[number].size
            if size >= at_once or place + 1 == len(order):
                block = join(held)
                yield block.take(rng.permutation(len(block.anchors)))
                held, size = [], 0

    @cached_property
    def _kept(self) -> list[Block]:
        """All slices, where they fit into memory together: no need to read them again each pass."""
        return list(self)

    def matrix(self) -> sparse.csr_array:
        """All pairs in memory, float32 [num_items, num_items]."""
        if not self.slices:
            return sparse.csr_array((self.num_items, self.num_items), dtype=np.float32)
        everything = join(list(self))
        rows = sparse.coo_array(everything.rows)
        coordinates = (everything.anchors[rows.row], rows.col)
        return sparse.coo_array((rows.data, coordinates), shape=(self.num_items, self.num_items)).tocsr()


def matrix(pairs: pl.DataFrame, num_items: int, weight: Weight) -> sparse.csr_array:
    """Pairs in memory, float32 [num_items, num_items]; zeros left out."""
    there = pairs.filter(pl.col(weight) > 0)
    coordinates = (there["anchor"].to_numpy(), there["positive"].to_numpy())
    return sparse.coo_array(
        (there[weight].to_numpy().astype(np.float32), coordinates), shape=(num_items, num_items)
    ).tocsr()


def join(blocks: Sequence[Block]) -> Block:
    """Several blocks as one."""
    if len(blocks) == 1:
        return blocks[0]
    return Block(
        np.concatenate([block.anchors for block in blocks]),
        sparse.csr_array(sparse.vstack([block.rows for block in blocks], format="csr")),
    )


def _block(frame: pl.DataFrame, num_items: int) -> Block:
    lengths = frame["positives"].list.len().to_numpy().astype(np.int64)
    weights = frame["weight"].explode(empty_as_null=False).to_numpy()
    positives = frame["positives"].explode(empty_as_null=False).to_numpy()
    there = weights > 0
    kept = np.bincount(np.repeat(np.arange(len(lengths)), lengths)[there], minlength=len(lengths))
    anchors = frame["anchor"].to_numpy()[kept > 0]
    indptr = np.concatenate([[0], np.cumsum(kept[kept > 0])])
    shape = (len(anchors), num_items)
    return Block(anchors, sparse.csr_array((weights[there], positives[there], indptr), shape=shape))
