"""The encoder that both sides of a pair share: item inputs -> embedding.

Each feature has an encoder of its own with the dimension of the tower. The encoded features are fused, pass through
the hidden layers, if there are any, and are normalized if the distance is cosine. Items without a known id, because
they had no interactions, pass through a second tower that reads the other features only (`combine`).
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from recsys.config.sections import TowerConfig
from recsys.errors import InputError
from recsys.features.encoding import Features, Inputs, TokenFeature, token_input
from recsys.features.tokenization import MAX_WORDS
from recsys.model.layers import ConvolutionalText, Gate, IdDropout, MeanOfBag, RecurrentText, SelectById
from recsys.model.tables import EmbeddingTable

ID_ENCODER, NUMERIC_ENCODER = "id_embedding", "numeric_encoder"
FUSION, CROSS, HIDDEN = "fusion", "cross", "hidden"
KNOWN_ITEM_TOWER, NEW_ITEM_TOWER = "known", "new"
"""Names of the two towers in a combined one. Towers in releases on disk have these names."""


def build(features: Features, config: TowerConfig, seed: int) -> keras.Model:
    """Return an untrained tower: inputs (see `recsys.features.encoding`) -> float32 [n, dimension].

    Embeddings have unit length if the distance is cosine. The output layer has the name of the distance.
    """
    keras.utils.set_random_seed(seed)
    id_input = keras.Input((), dtype="int32", name="id")
    visible_ids = IdDropout(config.id_dropout, seed)(id_input)
    encoded_id = EmbeddingTable(features.num_id_rows, config.dimension, name=ID_ENCODER)(visible_ids)
    inputs, encoded = _encode_features(features, config.dimension)
    fused = _fuse([encoded_id, *encoded], config)
    return keras.Model({"id": id_input, **inputs}, _output(fused, config), name=KNOWN_ITEM_TOWER)


def build_without_ids(features: Features, config: TowerConfig, seed: int) -> keras.Model:
    """Return an untrained tower for new items, which reads the features other than the id, and crosses them.

    Args:
        features: at least one feature other than the id.
        config: shape of the tower.
        seed: of the initial weights.
    """
    keras.utils.set_random_seed(seed)
    inputs, encoded = _encode_features(features, config.dimension)
    fused = _cross(_fuse(encoded, config))
    return keras.Model(inputs, _output(fused, config), name=NEW_ITEM_TOWER)


def build_for_new_items(known: keras.Model, features: Features, config: TowerConfig, seed: int) -> keras.Model:
    """Return a tower for new items whose layers start from the weights of the same layers in `known`."""
    new = build_without_ids(features, config, seed)
    known_weights = {layer.name: layer.get_weights() for layer in known.layers}
    for layer in new.layers:
        weights = known_weights.get(layer.name, [])
        # the fusion layer has another shape if it also weighs the id
        if [weight.shape for weight in layer.get_weights()] == [weight.shape for weight in weights]:
            layer.set_weights(weights)
    return new


def combine(known: keras.Model, new: keras.Model) -> keras.Model:
    """Return one tower that embeds items with an unknown id (0) by `new` and all other items by `known`."""
    inputs = {
        name: keras.Input(tensor.shape[1:], dtype=tensor.dtype, name=name) for name, tensor in known.input.items()
    }
    new_embeddings = new({name: inputs[name] for name in new.input})
    selected = SelectById(name=distance(known))(inputs["id"], known(inputs), new_embeddings)
    return keras.Model(inputs, selected, name="tower")


def _encode_features(features: Features, dimension: int) -> tuple[dict[str, Any], list[Any]]:
    """Inputs by name, and the encoded feature of each, float32 [n, dimension]; the id is not among them."""
    inputs, encoded = {}, []
    for position, feature in enumerate(features.tokens):
        name = token_input(position)
        shapes: dict[str, tuple[int | None, ...]] = {"value": (), "bag": (None,), "sequence": (MAX_WORDS,)}
        inputs[name] = keras.Input(shapes[feature.shape], dtype="int32", name=name)
        encoded.append(_token_encoder(feature, dimension, token_encoder_name(position))(inputs[name]))
    if features.numeric:
        inputs["numeric"] = keras.Input((2 * len(features.numeric),), name="numeric")
        encoded.append(keras.layers.Dense(dimension, name=NUMERIC_ENCODER)(inputs["numeric"]))
    return inputs, encoded


def _token_encoder(feature: TokenFeature, dimension: int, name: str) -> keras.layers.Layer:
    if feature.shape == "value":
        return EmbeddingTable(feature.size, dimension, name=name)
    if feature.shape == "bag":
        return MeanOfBag(feature.size, dimension, name=name)
    encoder = ConvolutionalText if feature.text_encoder == "convolutional" else RecurrentText
    return encoder(feature.size, dimension, name=name)


def _fuse(encoded: list[Any], config: TowerConfig) -> Any:
    """Several encoded features as one vector, float32 [n, dimension]."""
    if len(encoded) == 1:
        return encoded[0]
    if config.fusion == "gating":
        return Gate(len(encoded), name=FUSION)(encoded)
    if config.fusion == "concatenation":
        return keras.layers.Dense(config.dimension, name=FUSION)(keras.layers.Concatenate()(encoded))
    return keras.layers.Add()(encoded)


def _cross(fused: Any) -> Any:
    """Add a residual block of feature interactions, which is zero at first.

    A sum of features cannot express that a brand means something else in another category; for known items the id
    embedding expresses it. See He et al., 2016, and `docs/decisions/0024-crossed-features-for-new-items.md`.
    """
    dimension = fused.shape[-1]
    hidden = keras.layers.Dense(2 * dimension, activation="relu", name=f"{CROSS}_{HIDDEN}")(fused)
    crossed = keras.layers.Dense(dimension, kernel_initializer="zeros", use_bias=False, name=CROSS)(hidden)
    return keras.layers.Add()([fused, crossed])


def _output(vector: Any, config: TowerConfig) -> Any:
    """The hidden layers and the output layer."""
    for position, size in enumerate(config.hidden):
        vector = keras.layers.Dense(size, activation="relu", name=f"{HIDDEN}_{position}")(vector)
        vector = keras.layers.Dropout(config.dropout)(vector)
    if config.hidden:
        vector = keras.layers.Dense(config.dimension, name=f"{HIDDEN}_{len(config.hidden)}")(vector)
    if config.distance == "cosine":
        return keras.layers.UnitNormalization(name="cosine")(vector)
    return keras.layers.Identity(name=config.distance)(vector)


def token_encoder_name(position: int) -> str:
    """Name of the layer that encodes a token feature."""
    return f"{token_input(position)}_encoder"


def encoder_names(features: Features) -> dict[str, str]:
    """Layer name of each encoder -> its name in the settings: "id", "numeric", or the column."""
    names = {ID_ENCODER: "id"}
    names |= {token_encoder_name(position): feature.column for position, feature in enumerate(features.tokens)}
    return names | ({NUMERIC_ENCODER: "numeric"} if features.numeric else {})


def distance(tower: keras.Model) -> str:
    """Name of the distance that a tower was built for."""
    output = tower.layers[-1]
    return "cosine" if isinstance(output, keras.layers.UnitNormalization) else str(output.name)


def load(path: Path) -> keras.Model:
    """Load a tower from a `.keras` file.

    Raises:
        InputError: the file cannot be read, is not a Keras model, or contains code from outside this package.
    """
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"tower must be a Keras file written by the train stage. Received {path}: {error}") from None


def make_encoder(tower: keras.Model, batch_size: int) -> Callable[[Inputs], NDArray[np.float32]]:
    """Return a function from inputs of any length to embeddings, float32 [n, dimension].

    The tower is called on batches of `batch_size`. The call is traced once for all batch sizes, which makes it 13 to 80
    times faster than small or eager calls.
    """
    import tensorflow as tf  # noqa: PLC0415 - the only thing here that Keras does not offer

    signature = {name: tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype) for name, tensor in tower.input.items()}
    call = tf.function(lambda batch: tower(batch, training=False), input_signature=[signature])

    def encode(inputs: Inputs) -> NDArray[np.float32]:
        length = len(next(iter(inputs.values())))
        embeddings = np.empty((length, tower.output.shape[-1]), np.float32)
        for start in range(0, length, batch_size):
            rows = slice(start, start + batch_size)
            embeddings[rows] = call({name: inputs[name][rows] for name in signature}).numpy()
        return embeddings

    return encode
