"""Item columns -> tower inputs. Vocabularies are fitted once and saved beside the tower.

Every input is a dense array with one row an item, so a batch is a slice:

- `id`: int32 [n]. 0 is "unknown": items that training did not see. Then the ids that have an index of their own,
  then the buckets that rarer ids share.
- one per categorical column: int32 [n]. 0 is "missing or unknown".
- one per multi-categorical column: int32 [n, length]. 0 pads, 1 is "none known".
- one per text column: a bag of n-grams, which looks like a multi-categorical column; or for the encoders that
  read in order the words, int32 [n, MAX_WORDS]. 0 pads at the end, 1 is "unknown word" or "no word".
- `numeric`: float32 [n, 2 c] for c numeric columns: standardized values (0 where missing), then 1 where missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.config.sections import ItemsConfig, TowerConfig
from recsys.features import tokenization as text

Inputs = dict[str, NDArray[np.int32] | NDArray[np.float32]]

PADDING, NONE_KNOWN = 0, 1
MAX_TOKENS = 64
"""Tokens of a bag that an item can have; the rest is left out, of a text its shortest n-grams first."""
TEXT_CHUNK = 50_000
"""Texts whose n-grams are held at a time: memory."""


@dataclass(frozen=True)
class TokenFeature:
    """A column of tokens and its vocabulary; the index of a token is its position plus the reserved ones."""

    column: str
    kind: Literal["categorical", "multi_categorical", "text"]
    vocabulary: list[str]
    text_encoder: Literal["bag", "convolutional", "recurrent"] | None = None
    """What reads it, if it is a text."""

    @property
    def shape(self) -> Literal["value", "bag", "sequence"]:
        """One index an item, several without an order, or several in their order."""
        if self.kind == "categorical":
            return "value"
        return "sequence" if self.text_encoder in ("convolutional", "recurrent") else "bag"

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
    """All that turns a catalog's columns into the inputs of one tower."""

    item_ids: list[str]
    """Ids with an index of their own: their position plus 1."""
    tokens: list[TokenFeature]
    numeric: list[NumericFeature]
    rare_ids: list[str] = field(default_factory=list)
    """Ids that training saw too seldom for an index of their own."""
    hash_buckets: int = 0
    """Indices that the rare ids share, after those of `item_ids`."""

    @classmethod
    def fit(
        cls, frame: pl.DataFrame, items: ItemsConfig, tower: TowerConfig, pair_counts: NDArray[np.int64]
    ) -> Features:
        """Collect vocabularies and scales.

        Args:
            frame: the catalog's columns, one row an item.
            items: which column is what.
            tower: how texts are read, and from which count on an id has an index of its own.
            pair_counts: pairs that each item has to train on, int64 [num_items].
        """
        tokens = []
        for column in items.categorical:
            vocabulary = frame[column].drop_nulls().unique().sort().to_list()
            tokens.append(TokenFeature(column, "categorical", vocabulary))
        for column in items.multi_categorical:
            vocabulary = frame[column].explode(empty_as_null=False).drop_nulls().unique().sort().to_list()
            tokens.append(TokenFeature(column, "multi_categorical", vocabulary))
        for column in items.text:
            fit_text = text.fit_bag if tower.text_encoder == "bag" else text.fit_sequence
            tokens.append(TokenFeature(column, "text", fit_text(frame[column]), tower.text_encoder))
        numeric = []
        for column in items.numeric:
            values = frame[column].drop_nulls().to_numpy()
            mean = float(values.mean()) if len(values) else 0.0
            varies = len(values) > 0 and values.min() < values.max()  # equal values may deviate by a rounding error
            numeric.append(NumericFeature(column, mean, float(values.std()) if varies else 1.0))
        own, rare = pair_counts >= tower.min_count, (pair_counts > 0) & (pair_counts < tower.min_count)
        return cls(
            item_ids=frame["item_id"].filter(pl.Series(own)).to_list(),
            tokens=tokens,
            numeric=numeric,
            rare_ids=frame["item_id"].filter(pl.Series(rare)).to_list(),
            hash_buckets=tower.hash_buckets if tower.min_count > 1 else 0,
        )

    @property
    def num_id_rows(self) -> int:
        """Rows of the id's embedding table."""
        return 1 + len(self.item_ids) + self.hash_buckets

    @property
    def input_names(self) -> list[str]:
        """Names of the tower's inputs, in order."""
        names = ["id", *(token_input(position) for position in range(len(self.tokens)))]
        return [*names, "numeric"] if self.numeric else names

    def transform(self, frame: pl.DataFrame) -> Inputs:
        """Tower inputs of a catalog's columns; ids and tokens that `fit` did not see are unknown."""
        inputs: Inputs = {"id": self.id_rows(frame["item_id"])}
        for position, feature in enumerate(self.tokens):
            inputs[token_input(position)] = _token_input(frame[feature.column], feature)
        if self.numeric:
            scaled = frame.select(
                ((pl.col(f.column) - f.mean) / f.deviation).cast(pl.Float32).alias(str(position))
                for position, f in enumerate(self.numeric)
            )
            missing = scaled.select(pl.all().is_null().cast(pl.Float32)).to_numpy()
            inputs["numeric"] = np.hstack([scaled.fill_null(0.0).to_numpy(), missing]).astype(np.float32)
        return inputs

    def id_rows(self, item_ids: pl.Series) -> NDArray[np.int32]:
        """Index of each id, int32 [n]."""
        place = self._known_ids["token"].search_sorted(item_ids).to_numpy()
        inside = np.flatnonzero(place < self._known_ids.height)
        nearest = self._known_ids[place[inside]]
        same = nearest["token"].eq_missing(item_ids.gather(inside)).to_numpy()  # a new item may have no id
        index = np.zeros(len(item_ids), np.int32)
        index[inside[same]] = nearest["index"].to_numpy()[same]
        if self.rare_ids:
            rare = np.flatnonzero(item_ids.is_in(pl.Series(self.rare_ids, dtype=pl.String).implode()).to_numpy())
            index[rare] = [self.hash_bucket_row(item_id) for item_id in item_ids.gather(rare)]
        return index

    @cached_property
    def _known_ids(self) -> pl.DataFrame:
        """Sorted, so that a unit of a catalog costs by its own ids and not by all."""
        return _known(self.item_ids, reserved=1).sort("token")

    def hash_bucket_row(self, item_id: str) -> int:
        """The index that a rare id shares. SHA-256: the same everywhere, and in all versions."""
        digest = hashlib.sha256(item_id.encode("utf-8", "surrogatepass")).digest()
        return 1 + len(self.item_ids) + int.from_bytes(digest[:8], "big") % self.hash_buckets

    def save(self, path: Path) -> None:
        """Write JSON."""
        path.write_text(json.dumps(asdict(self), ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Features:
        """Read what `save` wrote, or wrote before there were texts and buckets."""
        saved = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            **saved
            | {
                "tokens": [TokenFeature(**feature) for feature in saved["tokens"]],
                "numeric": [NumericFeature(**feature) for feature in saved["numeric"]],
            }
        )


def token_input(position: int) -> str:
    """Name of the tower's input for a token feature: columns may have names that Keras does not take."""
    return f"tokens_{position}"


def _token_input(column: pl.Series, feature: TokenFeature) -> NDArray[np.int32]:
    if feature.shape == "value":
        return token_indices(column, feature.vocabulary, feature.reserved, missing=0)
    if feature.kind == "multi_categorical":
        return _bags(column, feature)
    return _text_bags(column, feature) if feature.shape == "bag" else _sequences(column, feature)


def _known(vocabulary: Sequence[str], reserved: int) -> pl.DataFrame:
    """Index of each token of a vocabulary."""
    return pl.DataFrame({"token": vocabulary}, schema={"token": pl.String}).with_row_index("index", reserved)


def token_indices(column: pl.Series, vocabulary: Sequence[str], reserved: int, missing: int) -> NDArray[np.int32]:
    """Index of each value in the vocabulary, int32 [n]."""
    known = _known(vocabulary, reserved)
    joined = pl.DataFrame({"token": column}).join(known, on="token", how="left", maintain_order="left")
    return joined["index"].cast(pl.Int32).fill_null(missing).to_numpy()


def _bags(column: pl.Series, feature: TokenFeature) -> NDArray[np.int32]:
    """Padded indices of each list, int32 [n, longest]."""
    lengths = column.list.len().fill_null(0).to_numpy().astype(np.int64)
    tokens = column.explode(empty_as_null=False, keep_nulls=False)
    index = token_indices(tokens, feature.vocabulary, feature.reserved, missing=NONE_KNOWN)
    row = np.repeat(np.arange(len(column)), lengths)
    known = index != NONE_KNOWN  # an unknown token says nothing beside a known one
    return _trimmed(_padded([(row[known], index[known])], len(column), MAX_TOKENS))


def _text_bags(column: pl.Series, feature: TokenFeature) -> NDArray[np.int32]:
    """Padded indices of each text's known n-grams, int32 [n, longest]."""
    known = _known(feature.vocabulary, feature.reserved)
    bags = [np.empty((0, MAX_TOKENS), np.int32)]
    for start in range(0, len(column), TEXT_CHUNK):
        texts = column.slice(start, TEXT_CHUNK)
        parts = ((part["row"].to_numpy(), part["index"].to_numpy()) for part in text.bags(texts, known))
        bags.append(_padded(parts, len(texts), MAX_TOKENS))
    return _trimmed(np.concatenate(bags))


def _sequences(column: pl.Series, feature: TokenFeature) -> NDArray[np.int32]:
    """Padded indices of each text's words, int32 [n, MAX_WORDS]."""
    read = text.words(column)
    index = token_indices(read["token"], feature.vocabulary, feature.reserved, missing=NONE_KNOWN)
    return _padded([(read["row"].to_numpy(), index)], len(column), text.MAX_WORDS)


def _padded(
    parts: Iterable[tuple[NDArray[np.integer], NDArray[np.integer]]], num_rows: int, width: int
) -> NDArray[np.int32]:
    """Tokens put side by side, int32 [num_rows, width]; a row without any has `NONE_KNOWN`.

    Args:
        parts: rows (ascending) and indices, each [tokens]; a later part goes behind the earlier ones.
        num_rows: rows of the result.
        width: tokens that a row takes; the rest is left out.
    """
    padded = np.full((num_rows, width), PADDING, np.int32)
    filled = np.zeros(num_rows, np.int64)
    for row, index in parts:
        counts = np.bincount(row, minlength=num_rows)
        slot = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts - filled, counts)
        kept = slot < width
        padded[row[kept], slot[kept]] = index[kept]
        filled += counts
    padded[filled == 0, 0] = NONE_KNOWN
    return padded


def _trimmed(padded: NDArray[np.int32]) -> NDArray[np.int32]:
    """Without the columns that only pad, but at least one."""
    used = int((padded != PADDING).sum(axis=1).max(initial=1))
    return np.ascontiguousarray(padded[:, :used])
