"""The one encoder that both sides of a pair share: item inputs -> vector.

Each feature has its own encoder to the tower's dimension; what they give is fused, goes through the hidden
layers, if any, and is normalized where near means cosine. Items whose id is unknown, because nobody touched them
yet, go through encoders of their own (`joined`), which find a place for them by the other features, and by what
these say together.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.config.sections import TowerConfig
from recsys.errors import InputError
from recsys.features.encoding import Features, Inputs, TokenFeature, token_indices, token_input
from recsys.features.tokenization import MAX_WORDS
from recsys.model.layers import ConvolvedWords, Gate, IdDropout, KnownOrNew, MeanOfBag, ReadWords

ID_ENCODER, NUMERIC_ENCODER = "id_embedding", "numeric_encoder"
FUSION, CROSS, HIDDEN = "fusion", "cross", "hidden"
KNOWN, NEW = "known", "new"


def build(features: Features, config: TowerConfig, seed: int, *, ids: bool = True) -> keras.Model:
    """An untrained tower: a dictionary of inputs (see `recsys.features.encoding`) -> float32 [n, dimension].

    Embeddings have unit length if the distance is cosine. The output layer has the distance's name. Without `ids`
    it reads the other features alone, of which there must be one, and crosses them.
    """
    keras.utils.set_random_seed(seed)
    dimension = config.dimension
    inputs, encoded = {}, []
    if ids:
        inputs["id"] = keras.Input((), dtype="int32", name="id")
        hidden_ids = IdDropout(config.id_dropout, seed)(inputs["id"])
        encoded.append(keras.layers.Embedding(features.num_id_rows, dimension, name=ID_ENCODER)(hidden_ids))
    for position, feature in enumerate(features.tokens):
        name = token_input(position)
        shapes: dict[str, tuple[int | None, ...]] = {"value": (), "bag": (None,), "sequence": (MAX_WORDS,)}
        inputs[name] = keras.Input(shapes[feature.shape], dtype="int32", name=name)
        encoded.append(_token_encoder(feature, dimension, _token_layer(position))(inputs[name]))
    if features.numeric:
        inputs["numeric"] = keras.Input((2 * len(features.numeric),), name="numeric")
        encoded.append(keras.layers.Dense(dimension, name=NUMERIC_ENCODER)(inputs["numeric"]))
    vector = _fuse(encoded, config) if len(encoded) > 1 else encoded[0]
    if not ids:
        vector = _cross(vector)
    for position, size in enumerate(config.hidden):
        vector = keras.layers.Dense(size, activation="relu", name=f"{HIDDEN}_{position}")(vector)
        vector = keras.layers.Dropout(config.dropout)(vector)
    if config.hidden:
        vector = keras.layers.Dense(dimension, name=f"{HIDDEN}_{len(config.hidden)}")(vector)
    unit = config.distance == "cosine"
    output = keras.layers.UnitNormalization(name="cosine") if unit else keras.layers.Identity(name=config.distance)
    return keras.Model(inputs, output(vector), name=KNOWN if ids else NEW)


def of_features(known: keras.Model, features: Features, config: TowerConfig, seed: int) -> keras.Model:
    """A tower for new items, without ids, whose encoders begin with what those of `known` learned."""
    new = build(features, config, seed, ids=False)
    learned = {layer.name: layer.get_weights() for layer in known.layers}
    for layer in new.layers:
        weights = learned.get(layer.name, [])
        # what fuses them is of another shape where it weighs the id too
        if [weight.shape for weight in layer.get_weights()] == [weight.shape for weight in weights]:
            layer.set_weights(weights)
    return new


def joined(known: keras.Model, new: keras.Model) -> keras.Model:
    """One tower of two: `new` embeds the items whose id is unknown, `known` the others."""
    inputs = {
        name: keras.Input(tensor.shape[1:], dtype=tensor.dtype, name=name) for name, tensor in known.input.items()
    }
    of_new = new({name: inputs[name] for name in new.input})
    chosen = KnownOrNew(name=distance(known))(inputs["id"], known(inputs), of_new)
    return keras.Model(inputs, chosen, name="tower")


def _token_encoder(feature: TokenFeature, dimension: int, name: str) -> keras.layers.Layer:
    if feature.shape == "value":
        return keras.layers.Embedding(feature.size, dimension, name=name)
    if feature.shape == "bag":
        return MeanOfBag(feature.size, dimension, name=name)
    reads = ConvolvedWords if feature.text_encoder == "convolutional" else ReadWords
    return reads(feature.size, dimension, name=name)


def _fuse(encoded: list[Any], config: TowerConfig) -> Any:
    if config.fusion == "gating":
        return Gate(len(encoded), name=FUSION)(encoded)
    if config.fusion == "concatenation":
        return keras.layers.Dense(config.dimension, name=FUSION)(keras.layers.Concatenate()(encoded))
    return keras.layers.Add()(encoded)


def _cross(fused: Any) -> Any:
    """What the features say, and beside it what only several of them say together, which begins as nothing.

    A sum says of a brand the same in every category, and of a year no more than "older" or "newer"; where there is an
    id, it tells the rest. As a residual (He et al., 2016) it costs nothing of what a sum learns from few items. See
    `docs/decisions/0024-crossed-features-for-new-items.md`.
    """
    dimension = fused.shape[-1]
    together = keras.layers.Dense(2 * dimension, activation="relu", name=f"{CROSS}_{HIDDEN}")(fused)
    crossed = keras.layers.Dense(dimension, kernel_initializer="zeros", use_bias=False, name=CROSS)(together)
    return keras.layers.Add()([fused, crossed])


def _token_layer(position: int) -> str:
    return f"{token_input(position)}_encoder"


def encoder_names(features: Features) -> dict[str, str]:
    """Name of each encoder's layer -> name of the encoder: "id", "numeric", or the column."""
    names = {ID_ENCODER: "id"}
    names |= {_token_layer(position): feature.column for position, feature in enumerate(features.tokens)}
    return names | ({NUMERIC_ENCODER: "numeric"} if features.numeric else {})


def distance(tower: keras.Model) -> str:
    """The distance that a tower was built for."""
    output = tower.layers[-1]
    return "cosine" if isinstance(output, keras.layers.UnitNormalization) else str(output.name)


def warm_start(
    tower: keras.Model, features: Features, earlier_tower: keras.Model, earlier_features: Features
) -> dict[str, dict[str, int]]:
    """Give a new tower what an earlier one learned, in place.

    Rows of ids, tokens and numeric columns that both have are copied; the others start at zero, so that new items
    start from their features, and where features are summed the tower starts as the earlier one. An id that has
    left its bucket starts from that. Encoders for new items are no start: those of a night follow from its others.
    Standardized numbers keep their weights, though their scale may have moved.
    Layers behind the encoders are copied if they read the same encoders and have the same shapes.

    Returns:
        Rows `copied` and `new` of each encoder, by its name; of "fusion" and "hidden", where there are any, weights.

    Raises:
        InputError: the earlier tower has another dimension or distance.
    """
    shapes = [f"{model.output.shape[-1]} dimensions, {distance(model)}" for model in (earlier_tower, tower)]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"the tower to start from must have tower.dimension and tower.distance of the config: {shapes[1]}. "
            f"Received: {shapes[0]}. Change the config, or leave data.warm_start out."
        )
    report = {}
    earlier_tower = next((layer for layer in earlier_tower.layers if layer.name == KNOWN), earlier_tower)
    earlier_encoders = _encoders(earlier_tower, earlier_features)
    for (name, kind), layer in _encoders(tower, features).items():
        earlier_layer = earlier_encoders.get((name, kind))
        rows = _earlier_rows(name, kind, features, earlier_features)
        known = (rows >= 0) & (earlier_layer is not None)
        table, *others = layer.get_weights()
        table[~known] = 0
        if earlier_layer is not None:
            earlier_table, *others = earlier_layer.get_weights()
            table[known] = earlier_table[rows[known]]
        layer.set_weights([table, *others])
        report[name] = {"copied": int(known.sum()), "new": int((~known).sum())}
    same_encoders = list(earlier_encoders) == list(_encoders(tower, features))
    behind, earlier_behind = _behind(tower, features), _behind(earlier_tower, earlier_features)
    for part, layers in behind.items():
        weights = [weight for layer in layers for weight in layer.weights]
        learned = [weight for layer in earlier_behind[part] for weight in layer.weights]
        agree = [weight.shape for weight in weights] == [weight.shape for weight in learned]
        copied = agree and (same_encoders or part == HIDDEN)
        if copied:
            for weight, value in zip(weights, learned, strict=True):
                weight.assign(value)
        if weights:
            report[part] = {"copied": len(weights) * copied, "new": len(weights) * (not copied)}
    return report


def _encoders(tower: keras.Model, features: Features) -> dict[tuple[str, str], keras.layers.Layer]:
    """The encoder layers by name and kind, found by what they read: older towers named them otherwise."""
    readers = {id(layer.input): layer for layer in tower.layers if not isinstance(layer.input, list)}
    encoders = {("id", "id"): readers[id(readers[id(tower.input["id"])].output)]}
    for position, feature in enumerate(features.tokens):
        kind = f"{feature.kind} {feature.text_encoder}"
        encoders[feature.column, kind] = readers[id(tower.input[token_input(position)])]
    if features.numeric:
        encoders["numeric", "numeric"] = readers[id(tower.input["numeric"])]
    return encoders


def _behind(tower: keras.Model, features: Features) -> dict[str, list[keras.layers.Layer]]:
    """The layers with weights that follow the encoders."""
    encoders = list(_encoders(tower, features).values())
    rest = [layer for layer in tower.layers if layer not in encoders and layer.weights]
    return {
        FUSION: [layer for layer in rest if layer.name == FUSION],
        HIDDEN: [layer for layer in rest if isinstance(layer, keras.layers.Dense) and layer.name != FUSION],
    }


def _earlier_rows(name: str, kind: str, features: Features, earlier: Features) -> NDArray[np.int64]:
    """For each row of an encoder's table the row that the earlier tower had for the same, -1 where it had none."""
    if kind == "id":
        own = earlier.id_rows(pl.Series(features.item_ids, dtype=pl.String)).astype(np.int64)
        own[own == 0] = -1
        same = features.hash_buckets == earlier.hash_buckets
        buckets = 1 + len(earlier.item_ids) + np.arange(features.hash_buckets)
        return np.concatenate([[0], own, buckets if same else np.full(features.hash_buckets, -1)])
    if kind == "numeric":
        columns = [feature.column for feature in earlier.numeric]
        found = np.array([columns.index(f.column) if f.column in columns else -1 for f in features.numeric])
        return np.concatenate([found, np.where(found < 0, -1, found + len(columns))])  # values, then missing flags
    (feature,) = (feature for feature in features.tokens if feature.column == name)
    vocabulary = [token for old in earlier.tokens if old.column == name for token in old.vocabulary]
    reserved = np.arange(feature.reserved)
    known = token_indices(pl.Series(feature.vocabulary, dtype=pl.String), vocabulary, feature.reserved, missing=-1)
    return np.concatenate([reserved, known.astype(np.int64)])


def load(path: Path) -> keras.Model:
    """Read a `.keras` file.

    Raises:
        InputError: it is none, or needs code that is not ours.
    """
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"tower must be a Keras file that training wrote. Received {path}: {error}") from None


def encoder(tower: keras.Model, batch_size: int) -> Callable[[Inputs], NDArray[np.float32]]:
    """A function from inputs of any length to embeddings, float32 [n, dimension], in batches of `batch_size`.

    The step is traced once for all batch sizes: 13 to 80 times faster than small or eager calls.
    """
    import tensorflow as tf  # noqa: PLC0415 - the only thing here that Keras does not offer

    signature = {name: tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype) for name, tensor in tower.input.items()}
    step = tf.function(lambda batch: tower(batch, training=False), input_signature=[signature])

    def encode(inputs: Inputs) -> NDArray[np.float32]:
        length = len(next(iter(inputs.values())))
        vectors = np.empty((length, tower.output.shape[-1]), np.float32)
        for start in range(0, length, batch_size):
            rows = slice(start, start + batch_size)
            vectors[rows] = step({name: inputs[name][rows] for name in signature}).numpy()
        return vectors

    return encode
