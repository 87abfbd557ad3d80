"""Embed a new item from its features with the tower of a release. Imports Keras and TensorFlow on the first call."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.errors import InputError
from recsys.features.encoding import Features
from recsys.release.embedding_space import EmbeddingSpace
from recsys.release.formats import FEATURES, TOWER
from recsys.retrieval.query import is_finite

MAX_LOADED_TOWERS = 4
"""Champion and challenger have up to two embedding spaces each."""


def embed(space: EmbeddingSpace, features: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return the embedding of one item, equal to that of an item without interactions in a nightly run.

    Args:
        space: the embedding space whose tower encodes the item.
        features: column -> string, list of strings, or number. Columns that are left out are missing values.

    Returns:
        float32 [dimension].

    Raises:
        InputError: a column is not an input of the tower, or a value has the wrong type.
    """
    fitted, encode = _load(space.path)
    types: dict[str, Any] = {
        token.column: pl.List(pl.String) if token.kind == "multi_categorical" else pl.String for token in fitted.tokens
    }
    types |= {number.column: pl.Float64 for number in fitted.numeric}
    row = {column: _value(column, value, types) for column, value in features.items()}
    columns = {column: [row.get(column)] for column in types}
    frame = pl.DataFrame({"item_id": [None], **columns}, schema={"item_id": pl.String, **types})
    vector: NDArray[np.float32] = encode(fitted.transform(frame))[0]
    return vector


@lru_cache(MAX_LOADED_TOWERS)
def _load(path: Path) -> tuple[Features, Any]:
    from recsys.model import tower  # noqa: PLC0415 - TensorFlow takes seconds, and a supervisor embeds nothing

    return Features.load(path / FEATURES), tower.make_encoder(tower.load(path / TOWER), batch_size=1)


def _value(column: str, value: Any, types: Mapping[str, Any]) -> Any:
    if column not in types:
        raise InputError(f"features must be columns of the tower: {', '.join(types) or 'none'}. Received: {column!r}.")
    kind = types[column]
    if kind == pl.Float64:
        valid, rule = isinstance(value, int | float) and not isinstance(value, bool) and is_finite(value), "a number"
    elif kind == pl.String:
        valid, rule = isinstance(value, str), "a string"
    else:
        valid, rule = isinstance(value, list) and all(isinstance(term, str) for term in value), "a list of strings"
    if not (valid or value is None):
        raise InputError(f"features.{column} must be {rule}. Received: {value!r}.")
    return value
