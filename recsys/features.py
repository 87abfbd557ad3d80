"""Item columns -> tower inputs. Vocabularies are fitted once and saved beside the tower.

Every input is a dense array with one row an item, so a batch is a slice:

- `id`: int32 [n]. 0 is "unknown": items that training did not see.
- one per categorical column: int32 [n]. 0 is "missing or unknown".
- one per multi-categorical column: int32 [n, length]. 0 pads, 1 is "none known".
- `numeric`: float32 [n, 2 c] for c numeric columns: standardised values (0 where missing), then 1 where missing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.config import ItemsConfig

Inputs = dict[str, NDArray[np.int32] | NDArray[np.float32]]

PADDING, NONE_KNOWN = 0, 1
MAX_TOKENS = 64
"""Tokens of a multi-categorical column that an item can have; the rest is left out."""


@dataclass(frozen=True)
class TokenFeature:
    """A column of tokens and its vocabulary; the index of a token is its position plus the reserved ones."""

    column: str
    kind: Literal["categorical", "multi_categorical"]
    vocabulary: list[str]

    @property
    def reserved(self) -> int:
        """Indices before the first token."""
        return 1 if self.kind == "categorical" else 2

    @property
    def size(self) -> int:
        """Rows of the embedding table."""
        return len(self.vocabulary) + self.reserved


@dataclass(frozen=True)
class NumericFeature:
    """A column of numbers and its scale."""

    column: str
    mean: float
    deviation: float


@dataclass(frozen=True)
class Features:
    """All that turns a catalogue's columns into the inputs of one tower."""

    item_ids: list[str]
    """Ids that training saw; the index of an id is its position plus 1."""
    tokens: list[TokenFeature]
    numeric: list[NumericFeature]

    @classmethod
    def fit(cls, frame: pl.DataFrame, items: ItemsConfig, seen: NDArray[np.bool_]) -> Features:
        """Collect vocabularies and scales.

        Args:
            frame: the catalogue's columns, one row an item.
            items: which column is what.
            seen: items that have pairs to train on, bool [num_items].
        """
        tokens = []
        for column in items.categorical:
            vocabulary = frame[column].drop_nulls().unique().sort().to_list()
            tokens.append(TokenFeature(column, "categorical", vocabulary))
        for column in items.multi_categorical:
            vocabulary = frame[column].explode(empty_as_null=False).drop_nulls().unique().sort().to_list()
            tokens.append(TokenFeature(column, "multi_categorical", vocabulary))
        numeric = []
        for column in items.numeric:
            values = frame[column].drop_nulls().to_numpy()
            mean = float(values.mean()) if len(values) else 0.0
            varies = len(values) > 0 and values.min() < values.max()  # equal values may deviate by a rounding error
            numeric.append(NumericFeature(column, mean, float(values.std()) if varies else 1.0))
        return cls(frame["item_id"].filter(pl.Series(seen)).to_list(), tokens, numeric)

    @property
    def input_names(self) -> list[str]:
        """Names of the tower's inputs, in order."""
        names = ["id", *(token_input(position) for position in range(len(self.tokens)))]
        return [*names, "numeric"] if self.numeric else names

    def transform(self, frame: pl.DataFrame) -> Inputs:
        """Tower inputs of a catalogue's columns; ids and tokens that `fit` did not see are unknown."""
        inputs: Inputs = {"id": _positions(frame["item_id"], self.item_ids, reserved=1, missing=0)}
        for position, feature in enumerate(self.tokens):
            name, column = token_input(position), frame[feature.column]
            if feature.kind == "categorical":
                inputs[name] = _positions(column, feature.vocabulary, feature.reserved, missing=0)
            else:
                inputs[name] = _bags(column, feature)
        if self.numeric:
            scaled = frame.select(
                ((pl.col(f.column) - f.mean) / f.deviation).cast(pl.Float32).alias(str(position))
                for position, f in enumerate(self.numeric)
            )
            missing = scaled.select(pl.all().is_null().cast(pl.Float32)).to_numpy()
            inputs["numeric"] = np.hstack([scaled.fill_null(0.0).to_numpy(), missing]).astype(np.float32)
        return inputs

    def save(self, path: Path) -> None:
        """Write JSON."""
        path.write_text(json.dumps(asdict(self), ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Features:
        """Read what `save` wrote."""
        saved = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            saved["item_ids"],
            [TokenFeature(**feature) for feature in saved["tokens"]],
            [NumericFeature(**feature) for feature in saved["numeric"]],
        )


def token_input(position: int) -> str:
    """Name of the tower's input for a token feature: columns may have names that Keras does not take."""
    return f"tokens_{position}"


def _positions(column: pl.Series, vocabulary: Sequence[str], reserved: int, missing: int) -> NDArray[np.int32]:
    """Index of each value in the vocabulary, int32 [n]."""
    known = pl.DataFrame({"token": vocabulary}, schema={"token": pl.String}).with_row_index("index", reserved)
    joined = pl.DataFrame({"token": column}).join(known, on="token", how="left", maintain_order="left")
    return joined["index"].cast(pl.Int32).fill_null(missing).to_numpy()


def _bags(column: pl.Series, feature: TokenFeature) -> NDArray[np.int32]:
    """Padded indices of each list, int32 [n, longest]."""
    lengths = column.list.len().fill_null(0).to_numpy().astype(np.int64)
    tokens = column.explode(empty_as_null=False, keep_nulls=False)
    index = _positions(tokens, feature.vocabulary, feature.reserved, missing=NONE_KNOWN)
    row = np.repeat(np.arange(len(column)), lengths)
    known = index != NONE_KNOWN  # an unknown token says nothing beside a known one
    row, index = row[known], index[known]
    counts = np.bincount(row, minlength=len(column))
    slot = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = slot < MAX_TOKENS
    bags = np.full((len(column), max(1, min(MAX_TOKENS, int(counts.max(initial=0))))), PADDING, np.int32)
    bags[row[kept], slot[kept]] = index[kept]
    bags[counts == 0, 0] = NONE_KNOWN
    return bags
