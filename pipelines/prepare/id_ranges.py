"""Item ids -> item numbers, without one process ever holding all ids.

A number is the rank of an id among all ids of the catalog. So ids are cut into ranges of about equal size,
by a sample; each range is ranked by itself, and its numbers begin where those of the range before end.
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

_text = methodcaller("as_py")

SAMPLE = 256
"""Ids that stand for a chunk where ranges are chosen."""


def sample(ids: pl.Series) -> tuple[list[str], float]:
    """At most `SAMPLE` of sorted ids, evenly, and how many ids each of them stands for."""
    step = max(1, -(-len(ids) // SAMPLE))
    chosen = ids.gather_every(step).to_list()
    return chosen, len(ids) / max(len(chosen), 1)


@dataclass(frozen=True)
class Ranges:
    """Ranges of sorted ids: range r holds `starts[r - 1] <= id < starts[r]`, the outermost are open."""

    starts: tuple[str, ...]
    """Of all ranges but the first."""

    @classmethod
    def of(cls, samples: Sequence[tuple[list[str], float]], count: int) -> Ranges:
        """So many ranges, each of about the same number of the ids that the samples stand for."""
        ids = np.array([text for chosen, _ in samples for text in chosen], object)
        weights = np.array([weight for chosen, weight in samples for _ in chosen])
        if not len(ids):
            return cls(("",) * (count - 1))
        order = np.argsort(ids, kind="stable")
        reached = np.cumsum(weights[order])
        at = np.searchsorted(reached, reached[-1] * np.arange(1, count) / count)
        return cls(tuple(ids[order][at].tolist()))

    def within(self, ids: pa.Array, number: int) -> slice:
        """Where in sorted ids those of one range stand; ids are looked at one by one, few of them."""
        start = bisect_left(ids, self.starts[number - 1], key=_text) if number else 0
        end = bisect_left(ids, self.starts[number], key=_text) if number < len(self.starts) else len(ids)
        return slice(start, end)

    def save(self, path: Path) -> None:
        """Write JSON."""
        path.write_text(json.dumps(self.starts), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Ranges:
        """Read what `save` wrote."""
        return cls(tuple(json.loads(path.read_text(encoding="utf-8"))))
