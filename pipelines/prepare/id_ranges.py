"""Ranges of item ids, to assign item numbers without all ids in the memory of one process.

An item number is the rank of the id among all ids of the catalog. The ids are divided into ranges of about equal size
by a sample. Each range is ranked separately; its item numbers start after those of the previous range.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from operator import methodcaller
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

_as_text = methodcaller("as_py")

SAMPLE_SIZE = 256
"""Maximum number of ids that are sampled from each chunk."""


def sample_ids(ids: pl.Series) -> tuple[list[str], float]:
    """Sample at most `SAMPLE_SIZE` evenly spaced ids from sorted ids; return them and the ids per sampled id."""
    step = max(1, -(-len(ids) // SAMPLE_SIZE))
    sample = ids.gather_every(step).to_list()
    return sample, len(ids) / max(len(sample), 1)


@dataclass(frozen=True)
class IdRanges:
    """Consecutive ranges of sorted ids: range r is `starts[r - 1] <= id < starts[r]`; the outer ends are unbounded."""

    starts: tuple[str, ...]
    """First id of each range except the first range."""

    @classmethod
    def from_samples(cls, samples: Sequence[tuple[list[str], float]], count: int) -> IdRanges:
        """Choose `count` ranges that contain about the same number of ids, estimated from samples."""
        ids = np.array([item_id for sample, _ in samples for item_id in sample], object)
        weights = np.array([weight for sample, weight in samples for _ in sample])
        if not len(ids):
            return cls(("",) * (count - 1))
        order = np.argsort(ids, kind="stable")
        cumulative = np.cumsum(weights[order])
        boundaries = np.searchsorted(cumulative, cumulative[-1] * np.arange(1, count) / count)
        return cls(tuple(ids[order][boundaries].tolist()))

    def rows_within(self, ids: pa.Array, number: int) -> slice:
        """Return the slice of sorted ids that belongs to a range, found by bisection."""
        start = bisect_left(ids, self.starts[number - 1], key=_as_text) if number else 0
        end = bisect_left(ids, self.starts[number], key=_as_text) if number < len(self.starts) else len(ids)
        return slice(start, end)

    def save(self, path: Path) -> None:
        """Write a JSON file."""
        path.write_text(json.dumps(self.starts), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> IdRanges:
        """Read a file written by `save`."""
        return cls(tuple(json.loads(path.read_text(encoding="utf-8"))))
