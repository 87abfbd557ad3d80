"""An item that a release does not know, by its features: the place that its tower gives it.

Needs Keras and TensorFlow, as training does.
"""

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
from recsys.model import tower
from recsys.release.bundle import Release
from recsys.release.formats import FEATURES, TOWER
from recsys.retrieval.query import is_finite

KEPT = 2
"""Towers that stay loaded."""


def embed(release: Release, features: Mapping[str, Any]) -> NDArray[np.float32]:
    """The embedding of one item, as the nightly job would give it to an item that nobody touched.

    Args:
        release: whose tower.
        features: columns of the config -> a text, a list of texts, or a number. What is left out is missing.

    Returns:
        float32 [dimension].

    Raises:
        InputError: a column that the tower does not read, or a value of another type.
    """
    vocabularies, encode = _load(release.path)
    types: dict[str, Any] = {
        token.column: pl.List(pl.String) if token.kind == "multi_categorical" else pl.String
        for token in vocabularies.tokens
    }
    types |= {number.column: pl.Float64 for number in vocabularies.numeric}
    row = {column: _value(column, value, types) for column, value in features.items()}
    columns = {column: [row.get(column)] for column in types}
    frame = pl.DataFrame({"item_id": [None], **columns}, schema={"item_id": pl.String, **types})
    vector: NDArray[np.float32] = encode(vocabularies.transform(frame))[0]
    return vector


@lru_cache(KEPT)
def _load(path: Path) -> tuple[Features, Any]:
    return Features.load(path / FEATURES), tower.make_encoder(tower.load(path / TOWER), batch_size=1)


def _value(column: str, value: Any, types: Mapping[str, Any]) -> Any:
    if column not in types:
        raise InputError(f"features must be of the columns {', '.join(types) or 'none'}. Received: {column!r}.")
    kind = types[column]
    if kind == pl.Float64:
        sound, rule = isinstance(value, int | float) and not isinstance(value, bool) and is_finite(value), "a number"
    elif kind == pl.String:
        sound, rule = isinstance(value, str), "a text"
    else:
        sound, rule = isinstance(value, list) and all(isinstance(term, str) for term in value), "a list of texts"
    if not (sound or value is None):
        raise InputError(f"features.{column} must be {rule}. Received: {value!r}.")
    return value
