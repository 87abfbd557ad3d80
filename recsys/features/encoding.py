"""Encoding of item columns as tower inputs, with vocabularies that are fitted once and saved with the tower.

Every input is a dense array with one row per item, so a batch is a slice:

- `id`: int32 [n], the row of the item in the tower's id table. 0 is "unknown": items without training data. Then
  come the ids with a row of their own, then the hash buckets that rare ids share. This row is not the item number
  (see `recsys.data.catalog`); `Features.id_rows` converts ids to rows.
- one per categorical column: int32 [n]. 0 is "missing or unknown".
- one per multi-categorical column: int32 [n, length]. 0 pads, 1 is "no known token".
- one per text column: a bag of n-grams, encoded like a multi-categorical column; or, for encoders that read words in
  order, int32 [n, MAX_WORDS]. 0 pads at the end, 1 is "unknown word" or "no word".
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
from recsys.features import tokenization

Inputs = dict[str, NDArray[np.int32] | NDArray[np.float32]]

PADDING, NO_KNOWN_TOKEN = 0, 1
MAX_TOKENS = 64
"""Maximum number of tokens of an item in a bag; of a text, the shortest n-grams are dropped first."""
HASH_BUCKETS = 1_024
"""Number of rows of the id table that items with fewer than `tower.min_count` pairs share. Their features distinguish
them."""
TEXT_CHUNK = 50_000
"""Number of texts whose n-grams are in memory at a time."""


@dataclass(frozen=True)
class TokenFeature:
    """A column of tokens and its vocabulary. The index of a token is its position plus the reserved indices."""

    column: str
    kind: Literal["categorical", "multi_categorical", "text"]
    vocabulary: list[str]
    text_encoder: Literal["bag", "convolutional", "recurrent"] | None = None
    """The encoder of a text column."""

    @property
    def shape(self) -> Literal["value", "bag", "sequence"]:
        """One index per item, several unordered indices, or several ordered indices."""
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
    """A numeric column and its scale."""

    column: str
    mean: float
    deviation: float


@dataclass(frozen=True)
class Features:
    """Vocabularies and scales that convert the columns of a catalog to the inputs of one tower."""

    item_ids: list[str]
    """Item ids with a row of their own in the id table: their position plus 1."""
    tokens: list[TokenFeature]
    numeric: list[NumericFeature]
    rare_ids: list[str] = field(default_factory=list)
    """Item ids with too few pairs for a row of their own."""
    hash_buckets: int = 0
    """Number of rows that the rare ids share, after those of `item_ids`."""

    @classmethod
    def fit(
        cls,
        frame: pl.DataFrame,
        items: ItemsConfig,
        tower: TowerConfig,
        pair_counts: NDArray[np.int64],
        hash_buckets: int = HASH_BUCKETS,
    ) -> Features:
        """Fit vocabularies and scales.

        Args:
            frame: the catalog's columns, one row per item.
            items: the roles of the columns.
            tower: the text encoder, and the number of pairs from which an id has a row of its own.
            pair_counts: training pairs of each item, int64 [num_items].
            hash_buckets: rows of the id table that the other ids share.
        """
        tokens = []
        for column in items.categorical:
            vocabulary = frame[column].drop_nulls().unique().sort().to_list()
            tokens.append(TokenFeature(column, "categorical", vocabulary))
        for column in items.multi_categorical:
            vocabulary = frame[column].explode(empty_as_null=False).drop_nulls().unique().sort().to_list()
            tokens.append(TokenFeature(column, "multi_categorical", vocabulary))
        for column in items.text:
            fit_text = tokenization.fit_bag if tower.text_encoder == "bag" else tokenization.fit_sequence
            tokens.append(TokenFeature(column, "text", fit_text(frame[column]), tower.text_encoder))
        numeric = []
        for column in items.numeric:
            values = frame[column].drop_nulls().to_numpy()
            mean = float(values.mean()) if len(values) else 0.0
            varies = (
                len(values) > 0 and values.min() < values.max()
            )  # the deviation of equal values may be a rounding error
            numeric.append(NumericFeature(column, mean, float(values.std()) if varies else 1.0))
        own, rare = pair_counts >= tower.min_count, (pair_counts > 0) & (pair_counts < tower.min_count)
        return cls(
            item_ids=frame["item_id"].filter(pl.Series(own)).to_list(),
            tokens=tokens,
            numeric=numeric,
            rare_ids=frame["item_id"].filter(pl.Series(rare)).to_list(),
            hash_buckets=hash_buckets if tower.min_count > 1 else 0,
        )

    @property
    def num_id_rows(self) -> int:
        """Number of rows of the id table."""
        return 1 + len(self.item_ids) + self.hash_buckets

    @property
    def input_names(self) -> list[str]:
        """Names of the tower's inputs, in order."""
        names = ["id", *(token_input(position) for position in range(len(self.tokens)))]
        return [*names, "numeric"] if self.numeric else names

    def transform(self, frame: pl.DataFrame) -> Inputs:
        """Convert the columns of a catalog to tower inputs; ids and tokens that `fit` did not see are unknown."""
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
        """Return the row of each item id in the id table, int32 [n]."""
        position = self._sorted_ids["token"].search_sorted(item_ids).to_numpy()
        inside = np.flatnonzero(position < self._sorted_ids.height)
        candidates = self._sorted_ids[position[inside]]
        equal = candidates["token"].eq_missing(item_ids.gather(inside)).to_numpy()  # the id of a new item may be null
        id_rows = np.zeros(len(item_ids), np.int32)
        id_rows[inside[equal]] = candidates["index"].to_numpy()[equal]
        if self.rare_ids:
            rare = np.flatnonzero(item_ids.is_in(pl.Series(self.rare_ids, dtype=pl.String).implode()).to_numpy())
            id_rows[rare] = [self.hash_bucket_row(item_id) for item_id in item_ids.gather(rare)]
        return id_rows

    @cached_property
    def _sorted_ids(self) -> pl.DataFrame:
        """Sorted, so that the cost of a lookup grows with the ids to convert and not with all ids."""
        return _vocabulary_frame(self.item_ids, reserved=1).sort("token")

    def hash_bucket_row(self, item_id: str) -> int:
        """Return the row of a rare id in the id table, by SHA-256: stable across platforms and versions."""
        digest = hashlib.sha256(item_id.encode("utf-8", "surrogatepass")).digest()
        return 1 + len(self.item_ids) + int.from_bytes(digest[:8], "big") % self.hash_buckets

    def save(self, path: Path) -> None:
        """Write a JSON file."""
        path.write_text(json.dumps(asdict(self), ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Features:
        """Read a file written by `save`, also by versions without text columns and hash buckets."""
        saved = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            **saved
            | {
                "tokens": [TokenFeature(**feature) for feature in saved["tokens"]],
                "numeric": [NumericFeature(**feature) for feature in saved["numeric"]],
            }
        )


def token_input(position: int) -> str:
    """Return the name of the tower input of a token feature; Keras does not accept every column name."""
    return f"tokens_{position}"


def _token_input(column: pl.Series, feature: TokenFeature) -> NDArray[np.int32]:
    if feature.shape == "value":
        return token_indices(column, feature.vocabulary, feature.reserved, missing=0)
    if feature.kind == "multi_categorical":
        return _bags(column, feature)
    return _text_bags(column, feature) if feature.shape == "bag" else _sequences(column, feature)


def _vocabulary_frame(vocabulary: Sequence[str], reserved: int) -> pl.DataFrame:
    """Return `index` and `token` of a vocabulary."""
    return pl.DataFrame({"token": vocabulary}, schema={"token": pl.String}).with_row_index("index", reserved)


def token_indices(column: pl.Series, vocabulary: Sequence[str], reserved: int, missing: int) -> NDArray[np.int32]:
    """Return the index of each value in the vocabulary, int32 [n]; `missing` for other values."""
    known_tokens = _vocabulary_frame(vocabulary, reserved)
    joined = pl.DataFrame({"token": column}).join(known_tokens, on="token", how="left", maintain_order="left")
    return joined["index"].cast(pl.Int32).fill_null(missing).to_numpy()


def _bags(column: pl.Series, feature: TokenFeature) -> NDArray[np.int32]:
    """Return the padded indices of each list, int32 [n, longest]."""
    lengths = column.list.len().fill_null(0).to_numpy().astype(np.int64)
    tokens = column.explode(empty_as_null=False, keep_nulls=False)
    index = token_indices(tokens, feature.vocabulary, feature.reserved, missing=NO_KNOWN_TOKEN)
    row = np.repeat(np.arange(len(column)), lengths)
    is_known = index != NO_KNOWN_TOKEN  # unknown tokens are dropped if there is a known one
    return _trimmed(_padded([(row[is_known], index[is_known])], len(column), MAX_TOKENS))


def _text_bags(column: pl.Series, feature: TokenFeature) -> NDArray[np.int32]:
    """Return the padded indices of the known n-grams of each text, int32 [n, longest]."""
    known_tokens = _vocabulary_frame(feature.vocabulary, feature.reserved)
    bags = [np.empty((0, MAX_TOKENS), np.int32)]
    for start in range(0, len(column), TEXT_CHUNK):
        texts = column.slice(start, TEXT_CHUNK)
        parts = ((part["row"].to_numpy(), part["index"].to_numpy()) for part in tokenization.bags(texts, known_tokens))
        bags.append(_padded(parts, len(texts), MAX_TOKENS))
    return _trimmed(np.concatenate(bags))


def _sequences(column: pl.Series, feature: TokenFeature) -> NDArray[np.int32]:
    """Return the padded indices of the words of each text, int32 [n, MAX_WORDS]."""
    words = tokenization.words(column)
    index = token_indices(words["token"], feature.vocabulary, feature.reserved, missing=NO_KNOWN_TOKEN)
    return _padded([(words["row"].to_numpy(), index)], len(column), tokenization.MAX_WORDS)


def _padded(
    parts: Iterable[tuple[NDArray[np.integer], NDArray[np.integer]]], num_rows: int, width: int
) -> NDArray[np.int32]:
    """Return the tokens of each row, padded, int32 [num_rows, width]; a row without tokens has `NO_KNOWN_TOKEN`.

    Args:
        parts: rows (ascending) and indices, each [tokens]; later parts are appended to earlier ones.
        num_rows: number of rows of the result.
        width: maximum number of tokens of a row; further tokens are dropped.
    """
    padded = np.full((num_rows, width), PADDING, np.int32)
    filled = np.zeros(num_rows, np.int64)
    for row, index in parts:
        counts = np.bincount(row, minlength=num_rows)
        slot = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts - filled, counts)
        fits = slot < width
        padded[row[fits], slot[fits]] = index[fits]
        filled += counts
    padded[filled == 0, 0] = NO_KNOWN_TOKEN
    return padded


def _trimmed(padded: NDArray[np.int32]) -> NDArray[np.int32]:
    """Remove the columns that contain only padding, except the first."""
    used = int((padded != PADDING).sum(axis=1).max(initial=1))
    return np.ascontiguousarray(padded[:, :used])
