"""Pairs of items that people labeled as the same or different; input of contrastive training.

`check_labeled_pairs` splits raw rows into usable rows and rejects, as `recsys.data.validation` does for the other
tables. `LabeledPairs` holds the usable pairs by item number and splits off a part for calibration.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.data.validation import REASON, CheckedRows, as_id, as_number, first_reason, require_columns, split_rows

SCHEMA = {"item_a": pl.String, "item_b": pl.String, "same": pl.Boolean}

CALIBRATION_SHARE = 0.1
"""Share of the pairs that is held out from training, for calibration."""


def check_labeled_pairs(raw: pl.DataFrame, origin: str) -> CheckedRows:
    """Split a chunk of labeled pairs into usable rows (`SCHEMA` and `row`) and rejects.

    Args:
        raw: `item_a`, `item_b` (text or integers) and `same` (0 or 1, or a boolean).
        origin: the file, for messages.

    Raises:
        InputError: a column is missing, or its type cannot be converted.
    """
    require_columns(raw, tuple(SCHEMA), origin)
    same = pl.col("same").cast(pl.Float64) if raw.schema["same"] == pl.Boolean else as_number(raw, "same", origin)
    typed = raw.select(item_a=as_id(raw, "item_a", origin), item_b=as_id(raw, "item_b", origin), same=same)
    reason = first_reason(
        {
            "item_a is missing": pl.col("item_a").fill_null("") == "",
            "item_b is missing": pl.col("item_b").fill_null("") == "",
            "item_a and item_b are the same item": pl.col("item_a") == pl.col("item_b"),
            "same is neither 0 nor 1": ~pl.col("same").is_in([0.0, 1.0]).fill_null(False),
        }
    )
    checked = typed.with_columns(reason.alias(REASON), same=pl.col("same") == 1)
    return split_rows(raw, checked, [*SCHEMA])


@dataclass(frozen=True)
class LabeledPairs:
    """Labeled pairs of a catalog's items."""

    first: NDArray[np.int32]
    """Item numbers, int32 [n]."""
    second: NDArray[np.int32]
    """Item numbers, int32 [n]."""
    same: NDArray[np.bool_]
    """Whether the items belong together, bool [n]."""

    def __len__(self) -> int:
        return len(self.same)

    @classmethod
    def load(cls, path: Path) -> LabeledPairs:
        """Read a Parquet file of `first`, `second` and `same`."""
        frame = pl.read_parquet(path)
        return cls(*(frame[name].to_numpy() for name in ("first", "second", "same")))

    def split(self, seed: int) -> tuple[LabeledPairs, LabeledPairs]:
        """Return the pairs for training and those for calibration; (a, b) and (b, a) are always in the same part."""
        low, high = np.minimum(self.first, self.second), np.maximum(self.first, self.second)
        _, pair = np.unique(np.stack([low, high]), axis=1, return_inverse=True)
        held_out = np.random.default_rng(seed).random(int(pair.max(initial=-1)) + 1)[pair.ravel()] < CALIBRATION_SHARE
        return self._select(~held_out), self._select(held_out)

    def _select(self, rows: NDArray[np.bool_]) -> LabeledPairs:
        return LabeledPairs(self.first[rows], self.second[rows], self.same[rows])
