"""Pairs of items that people judged: the same, or not. Classic siamese training starts from these.

Takes raw rows, hands on the usable ones and the others with a reason each, as `recsys.data.validation` does; and
the numbered pairs, a part of them held out to calibrate with.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.data.validation import REASON, Checked, first_reason, identifier, number, require, split

SCHEMA = {"item_a": pl.String, "item_b": pl.String, "same": pl.Boolean}

HELD_OUT = 0.1
"""Share of the pairs that no fit sees."""


def check_labeled(raw: pl.DataFrame, origin: str) -> Checked:
    """Split a chunk of judged pairs into usable rows (`SCHEMA` and `row`) and rejects.

    Args:
        raw: `item_a`, `item_b` (text or integers) and `same` (0 or 1, or a truth value).
        origin: the file, for messages.

    Raises:
        InputError: a column is missing, or of a type that can never fit.
    """
    require(raw, tuple(SCHEMA), origin)
    truth = pl.col("same").cast(pl.Float64) if raw.schema["same"] == pl.Boolean else number(raw, "same", origin)
    typed = raw.select(item_a=identifier(raw, "item_a", origin), item_b=identifier(raw, "item_b", origin), same=truth)
    reason = first_reason(
        {
            "item_a is missing": pl.col("item_a").fill_null("") == "",
            "item_b is missing": pl.col("item_b").fill_null("") == "",
            "item_a and item_b are one item": pl.col("item_a") == pl.col("item_b"),
            "same is neither 0 nor 1": ~pl.col("same").is_in([0.0, 1.0]).fill_null(False),
        }
    )
    judged = typed.with_columns(reason.alias(REASON), same=pl.col("same") == 1)
    return split(raw, judged, [*SCHEMA])


@dataclass(frozen=True)
class LabeledPairs:
    """Judged pairs of a catalog's items."""

    first: NDArray[np.int32]
    """Item numbers, int32 [n]."""
    second: NDArray[np.int32]
    """Item numbers, int32 [n]."""
    same: NDArray[np.bool_]
    """Whether they belong together, bool [n]."""

    def __len__(self) -> int:
        return len(self.same)

    @classmethod
    def load(cls, path: Path) -> LabeledPairs:
        """Read a Parquet file of `first`, `second` and `same`."""
        frame = pl.read_parquet(path)
        return cls(*(frame[name].to_numpy() for name in ("first", "second", "same")))

    def parts(self, seed: int) -> tuple[LabeledPairs, LabeledPairs]:
        """Pairs to train on, and a tenth to calibrate with; a pair and its mirror are on one side."""
        low, high = np.minimum(self.first, self.second), np.maximum(self.first, self.second)
        _, pair = np.unique(np.stack([low, high]), axis=1, return_inverse=True)
        held = np.random.default_rng(seed).random(int(pair.max(initial=-1)) + 1)[pair.ravel()] < HELD_OUT
        return self._only(~held), self._only(held)

    def _only(self, rows: NDArray[np.bool_]) -> LabeledPairs:
        return LabeledPairs(self.first[rows], self.second[rows], self.same[rows])
