"""Files of co-occurrence pairs, one row per anchor, and their reader.

`write` writes the rows of `recsys.data.cooccurrence.group_by_anchor`. `Pairs` reads them in slices, so memory is
bounded by the size of the slices and not by the number of pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from recsys.data.splits import Weight

ROW_GROUP_PAIRS = 250_000
"""Approximate number of pairs in one row group of a file, the smallest part that is read."""


def write(rows: pl.DataFrame, path: Path) -> None:
    """Write the result of `group_by_anchor`, without `dropped_positives`, in row groups that can be read one by one."""
    size = int(rows["size"].sum())
    rows.drop("dropped_positives").write_parquet(
        path, row_group_size=max(1, rows.height * ROW_GROUP_PAIRS // max(size, 1))
    )


class Block(NamedTuple):
    """Some anchors and their positives."""

    anchors: NDArray[np.int32]
    """Item numbers, int32 [n]."""
    rows: sparse.csr_array
    """Pair weights, float32 [n, num_items], without explicit zeros."""

    def take(self, rows: NDArray[np.int64]) -> Block:
        """Return the given rows in the given order; `rows` is int64 [m]."""
        return Block(self.anchors[rows], self.rows[rows])


class _Slice(NamedTuple):
    path: Path
    offset: int
    rows: int
    size: int
    """Number of pairs."""


@dataclass(frozen=True)
class Pairs:
    """Pairs on disk.

    Args:
        parts: files written by `write`; each anchor is in one of them.
        num_items: size of the catalog.
        weight: which of the weights to read.
    """

    parts: Sequence[Path]
    num_items: int
    weight: Weight

    @cached_property
    def slices(self) -> list[_Slice]:
        """Consecutive rows of about `ROW_GROUP_PAIRS` pairs."""
        slices = []
        for part in self.parts:
            sizes = pl.read_parquet(part, columns=["size"])["size"].to_numpy().astype(np.int64)
            if not len(sizes):
                continue
            group = np.cumsum(sizes) // ROW_GROUP_PAIRS
            starts = np.flatnonzero(np.diff(group, prepend=-1))
            for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(sizes)], strict=True):
                slices.append(_Slice(part, start, end - start, int(sizes[start:end].sum())))
        return slices

    @property
    def size(self) -> int:
        """Number of pairs on disk; both directions are counted unless directed."""
        return sum(part.size for part in self.slices)

    def read_slice(self, part: _Slice) -> Block:
        """Read one slice, without anchors that have no positive with this weight."""
        frame = (
            pl.scan_parquet(part.path)
            .slice(part.offset, part.rows)
            .select("anchor", "positives", pl.col(self.weight).alias("weight"))
            .collect()
        )
        return _to_block(frame, self.num_items)

    def __iter__(self) -> Iterator[Block]:
        """Read all slices in order."""
        return map(self.read_slice, self.slices)

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Number of distinct positives of each item, int64 [num_items]."""
        counts = np.zeros(self.num_items, np.int64)
        for block in self:
            counts[block.anchors] = np.diff(block.rows.indptr)
        return counts

    @cached_property
    def totals(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Weight of each item as anchor, as positive, and its mean share of an anchor's weight.

        Each is float64 [num_items].
        """
        anchor, positive, share = (np.zeros(self.num_items) for _ in range(3))
        num_anchors = 0
        for block in self:
            # float64: the inverse of a weight after many half-lives is infinite in float32
            sums = np.asarray(block.rows.sum(axis=1, dtype=np.float64)).ravel()
            anchor[block.anchors] = sums
            positive += np.asarray(block.rows.sum(axis=0, dtype=np.float64)).ravel()
            share += (1 / sums) @ block.rows
            num_anchors += len(block.anchors)
        return anchor, positive, share / max(num_anchors, 1)

    def shuffled(self, rng: np.random.Generator, buffer_pairs: int) -> Iterator[Block]:
        """Yield all rows once: slices in random order, rows shuffled within buffers of about `buffer_pairs` pairs."""
        buffer: list[Block] = []
        size = 0
        order = rng.permutation(len(self.slices))
        for step, number in enumerate(order.tolist()):
            fits = self.size <= buffer_pairs
            buffer.append(self._blocks[number] if fits else self.read_slice(self.slices[number]))
            size += self.slices[number].size
            if size >= buffer_pairs or step + 1 == len(order):
                block = concatenate(buffer)
                yield block.take(rng.permutation(len(block.anchors)))
                buffer, size = [], 0

    @cached_property
    def _blocks(self) -> list[Block]:
        """All slices in memory, if they fit into one buffer: they are not read again for each pass."""
        return list(self)

    def to_matrix(self) -> sparse.csr_array:
        """Read all pairs as a matrix, float32 [num_items, num_items]."""
        if not self.slices:
            return sparse.csr_array((self.num_items, self.num_items), dtype=np.float32)
        block = concatenate(list(self))
        rows = sparse.coo_array(block.rows)
        coordinates = (block.anchors[rows.row], rows.col)
        return sparse.coo_array((rows.data, coordinates), shape=(self.num_items, self.num_items)).tocsr()


def concatenate(blocks: Sequence[Block]) -> Block:
    """Concatenate blocks."""
    if len(blocks) == 1:
        return blocks[0]
    return Block(
        np.concatenate([block.anchors for block in blocks]),
        sparse.csr_array(sparse.vstack([block.rows for block in blocks], format="csr")),
    )


def _to_block(frame: pl.DataFrame, num_items: int) -> Block:
    lengths = frame["positives"].list.len().to_numpy().astype(np.int64)
    weights = frame["weight"].explode(empty_as_null=False).to_numpy()
    positives = frame["positives"].explode(empty_as_null=False).to_numpy()
    nonzero = weights > 0
    num_positives = np.bincount(np.repeat(np.arange(len(lengths)), lengths)[nonzero], minlength=len(lengths))
    rows = num_positives > 0
    anchors = frame["anchor"].to_numpy()[rows]
    indptr = np.concatenate([[0], np.cumsum(num_positives[rows])])
    shape = (len(anchors), num_items)
    return Block(anchors, sparse.csr_array((weights[nonzero], positives[nonzero], indptr), shape=shape))
