"""Warm start: initialize a new tower with the weights of an earlier one, whose vocabularies may differ."""

from __future__ import annotations

import keras
import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.config.sections import TowerConfig
from recsys.errors import InputError
from recsys.features.encoding import Features, token_indices, token_input
from recsys.model.tower import FUSION, HIDDEN, KNOWN_ITEM_TOWER, distance

Report = dict[str, dict[str, int]]
"""Encoder, "fusion" or "hidden" -> number of rows or weights that were `copied`, and that are `new`."""


def warm_start(
    tower: keras.Model, features: Features, earlier_tower: keras.Model, earlier_features: Features
) -> Report:
    """Copy the weights of an earlier tower into a new one, in place.

    - Rows of ids, tokens and numeric columns that both towers have are copied. All other rows become zero: new items
      start from their features, and with summed features the new tower starts as the earlier one. An id that used to
      share a bucket starts from the row of the bucket.
    - Layers behind the encoders are copied if both towers have the same encoders and shapes.
    - Weights of numeric columns are copied although the scale of a column may have changed.
    - The tower for new items is not copied: it is trained anew from the encoders of each fit.

    Returns:
        For each encoder by name the number of its rows, and for "fusion" and "hidden", if there are such layers, the
        number of their weights.
    """
    earlier_tower = next((layer for layer in earlier_tower.layers if layer.name == KNOWN_ITEM_TOWER), earlier_tower)
    report = _copy_encoders(tower, features, earlier_tower, earlier_features)
    return report | _copy_later_layers(tower, features, earlier_tower, earlier_features)


def require_same_shape(config: TowerConfig, earlier_tower: keras.Model) -> None:
    """Raise an `InputError` if an earlier tower has another dimension or distance than the config."""
    required = f"{config.dimension} dimensions, {config.distance}"
    received = f"{earlier_tower.output.shape[-1]} dimensions, {distance(earlier_tower)}"
    if received != required:
        raise InputError(
            f"the tower to start from must have tower.dimension and tower.distance of the config: {required}. "
            f"Received: {received}. Change the config, or leave data.warm_start out."
        )


def _copy_encoders(
    tower: keras.Model, features: Features, earlier_tower: keras.Model, earlier_features: Features
) -> Report:
    report = {}
    earlier_encoders = _encoders(earlier_tower, earlier_features)
    for (name, kind), layer in _encoders(tower, features).items():
        earlier_layer = earlier_encoders.get((name, kind))
        rows = _earlier_rows(name, kind, features, earlier_features)
        is_copied = (rows >= 0) & (earlier_layer is not None)
        table, *other_weights = layer.get_weights()
        table[~is_copied] = 0
        if earlier_layer is not None:
            earlier_table, *other_weights = earlier_layer.get_weights()
            table[is_copied] = earlier_table[rows[is_copied]]
        layer.set_weights([table, *other_weights])
        report[name] = {"copied": int(is_copied.sum()), "new": int((~is_copied).sum())}
    return report


def _copy_later_layers(
    tower: keras.Model, features: Features, earlier_tower: keras.Model, earlier_features: Features
) -> Report:
    report = {}
    same_encoders = list(_encoders(earlier_tower, earlier_features)) == list(_encoders(tower, features))
    earlier_layers = _later_layers(earlier_tower, earlier_features)
    for part, layers in _later_layers(tower, features).items():
        weights = [weight for layer in layers for weight in layer.weights]
        earlier_weights = [weight for layer in earlier_layers[part] for weight in layer.weights]
        same_shapes = [weight.shape for weight in weights] == [weight.shape for weight in earlier_weights]
        is_copied = same_shapes and (same_encoders or part == HIDDEN)
        if is_copied:
            for weight, value in zip(weights, earlier_weights, strict=True):
                weight.assign(value)
        if weights:
            report[part] = {"copied": len(weights) * is_copied, "new": len(weights) * (not is_copied)}
    return report


def _encoders(tower: keras.Model, features: Features) -> dict[tuple[str, str], keras.layers.Layer]:
    """Encoder layers by name and kind, found by the input that they read: older towers have other layer names."""
    layer_by_input = {id(layer.input): layer for layer in tower.layers if not isinstance(layer.input, list)}
    id_dropout = layer_by_input[id(tower.input["id"])]
    encoders = {("id", "id"): layer_by_input[id(id_dropout.output)]}
    for position, feature in enumerate(features.tokens):
        kind = f"{feature.kind} {feature.text_encoder}"
        encoders[feature.column, kind] = layer_by_input[id(tower.input[token_input(position)])]
    if features.numeric:
        encoders["numeric", "numeric"] = layer_by_input[id(tower.input["numeric"])]
    return encoders


def _later_layers(tower: keras.Model, features: Features) -> dict[str, list[keras.layers.Layer]]:
    """The layers with weights that follow the encoders."""
    encoders = list(_encoders(tower, features).values())
    later = [layer for layer in tower.layers if layer not in encoders and layer.weights]
    return {
        FUSION: [layer for layer in later if layer.name == FUSION],
        HIDDEN: [layer for layer in later if isinstance(layer, keras.layers.Dense) and layer.name != FUSION],
    }


def _earlier_rows(name: str, kind: str, features: Features, earlier: Features) -> NDArray[np.int64]:
    """For each row of an encoder's table the row of the earlier table to copy, -1 if there is none; int64 [rows]."""
    if kind == "id":
        return _earlier_id_rows(features, earlier)
    if kind == "numeric":
        columns = [feature.column for feature in earlier.numeric]
        rows = np.array([columns.index(f.column) if f.column in columns else -1 for f in features.numeric])
        return np.concatenate([rows, np.where(rows < 0, -1, rows + len(columns))])  # values, then missing flags
    (feature,) = (feature for feature in features.tokens if feature.column == name)
    vocabulary = [token for old in earlier.tokens if old.column == name for token in old.vocabulary]
    reserved = np.arange(feature.reserved)
    tokens = token_indices(pl.Series(feature.vocabulary, dtype=pl.String), vocabulary, feature.reserved, missing=-1)
    return np.concatenate([reserved, tokens.astype(np.int64)])


def _earlier_id_rows(features: Features, earlier: Features) -> NDArray[np.int64]:
    own = earlier.id_rows(pl.Series(features.item_ids, dtype=pl.String)).astype(np.int64)
    own[own == 0] = -1
    buckets = np.full(features.hash_buckets, -1)
    if features.hash_buckets == earlier.hash_buckets:
        buckets = 1 + len(earlier.item_ids) + np.arange(features.hash_buckets)
    return np.concatenate([[0], own, buckets])
