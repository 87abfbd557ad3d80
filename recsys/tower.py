"""The one encoder that both sides of a pair share: item inputs -> unit vector.

Each feature has its own encoder to the tower's dimension; their sum goes through the hidden layers, if any,
and is normalised. The id of some items is hidden at each training step, so that the other features learn to
carry an item alone: new items, whose id is unknown, then find their place.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from recsys.config import TowerConfig
from recsys.errors import InputError
from recsys.features import PADDING, Features, Inputs, token_input

register = keras.saving.register_keras_serializable(package="recsys")


@register
class IdDropout(keras.layers.Layer):
    """Replaces a share of the ids by 0, "unknown", during training.

    DropoutNet (Volkovs et al., 2017) takes 0.5 for new items; 0.1 is enough to regularise.
    """

    def __init__(self, rate: float, seed: int = 0, **options: Any) -> None:
        super().__init__(**options)
        self.rate = rate
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, ids: Any, training: bool = False) -> Any:
        """int32 [n] -> int32 [n]."""
        if not training or self.rate == 0:
            return ids
        kept = keras.random.uniform(ops.shape(ids), seed=self.seed_generator) >= self.rate
        return ops.where(kept, ids, 0)

    def get_config(self) -> dict[str, Any]:
        """What the constructor takes."""
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}


@register
class MeanOfBag(keras.layers.Layer):
    """Mean embedding of the indices of a row, padding left out."""

    def __init__(self, size: int, dimension: int, **options: Any) -> None:
        super().__init__(**options)
        self.size = size
        self.dimension = dimension
        self.embedding = keras.layers.Embedding(size, dimension)

    def build(self, shape: Any) -> None:
        """Create the table."""
        self.embedding.build(shape)

    def call(self, bags: Any) -> Any:
        """int32 [n, length] -> float32 [n, dimension]."""
        present = ops.cast(bags != PADDING, "float32")  # [n, length]
        summed = ops.einsum("nl,nld->nd", present, self.embedding(bags))
        return summed / ops.maximum(ops.sum(present, axis=1, keepdims=True), 1.0)

    def get_config(self) -> dict[str, Any]:
        """What the constructor takes."""
        return {**super().get_config(), "size": self.size, "dimension": self.dimension}


def build(features: Features, config: TowerConfig, seed: int) -> keras.Model:
    """An untrained tower: a dictionary of inputs (see `recsys.features`) -> float32 [n, dimension], unit length."""
    keras.utils.set_random_seed(seed)
    dimension = config.dimension
    ids = keras.Input((), dtype="int32", name="id")
    inputs = {"id": ids}
    hidden_ids = IdDropout(config.id_dropout, seed)(ids)
    encoded = [keras.layers.Embedding(len(features.item_ids) + 1, dimension, name="id_embedding")(hidden_ids)]
    for position, feature in enumerate(features.tokens):
        name = token_input(position)
        if feature.kind == "categorical":
            inputs[name] = keras.Input((), dtype="int32", name=name)
            encoded.append(keras.layers.Embedding(feature.size, dimension)(inputs[name]))
        else:
            inputs[name] = keras.Input((None,), dtype="int32", name=name)
            encoded.append(MeanOfBag(feature.size, dimension)(inputs[name]))
    if features.numeric:
        inputs["numeric"] = keras.Input((2 * len(features.numeric),), name="numeric")
        encoded.append(keras.layers.Dense(dimension)(inputs["numeric"]))
    vector = keras.layers.Add()(encoded) if len(encoded) > 1 else encoded[0]
    for size in config.hidden:
        vector = keras.layers.Dense(size, activation="relu")(vector)
        vector = keras.layers.Dropout(config.dropout)(vector)
    if config.hidden:
        vector = keras.layers.Dense(dimension)(vector)
    return keras.Model(inputs, keras.layers.UnitNormalization(axis=-1)(vector), name="tower")


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
        length = len(inputs["id"])
        vectors = np.empty((length, tower.output.shape[-1]), np.float32)
        for start in range(0, length, batch_size):
            rows = slice(start, start + batch_size)
            vectors[rows] = step({name: array[rows] for name, array in inputs.items()}).numpy()
        return vectors

    return encode
