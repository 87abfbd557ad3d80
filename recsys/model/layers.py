"""The layers that encode one input of the tower each, and the layers that combine their outputs.

The registered names are part of towers on disk and must not change.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from recsys.features.encoding import PADDING
from recsys.model.tables import EmbeddingTable

PACKAGE = "recsys"


@keras.saving.register_keras_serializable(package=PACKAGE)
class IdDropout(keras.layers.Layer):
    """Replaces a share of the ids by 0, "unknown", during training.

    DropoutNet (Volkovs et al., 2017) uses a rate of 0.5 for new items; 0.1 is enough to regularize.
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
        is_visible = keras.random.uniform(ops.shape(ids), seed=self.seed_generator) >= self.rate
        return ops.where(is_visible, ids, 0)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}


@keras.saving.register_keras_serializable(package=PACKAGE, name="KnownOrNew")
class SelectById(keras.layers.Layer):
    """Selects between two embeddings of each item: the first if its id is known, the second if the id is 0."""

    def call(self, ids: Any, known: Any, new: Any) -> Any:
        """int32 [n] and two times float32 [n, dimension] -> float32 [n, dimension]."""
        return ops.where(ids[:, None] > 0, known, new)


class TokenEncoder(keras.layers.Layer):
    """Base class of the encoders that read several tokens per item; has a table of embeddings, [size, dimension]."""

    def __init__(self, size: int, dimension: int, **options: Any) -> None:
        super().__init__(**options)
        self.size = size
        self.dimension = dimension
        self.embedding = EmbeddingTable(size, dimension)

    def build(self, shape: Any) -> None:
        """Create the table."""
        self.embedding.build(shape)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "size": self.size, "dimension": self.dimension}


@keras.saving.register_keras_serializable(package=PACKAGE)
class MeanOfBag(TokenEncoder):
    """Mean of the token embeddings of each row, without padding."""

    def call(self, bags: Any) -> Any:
        """int32 [n, length] -> float32 [n, dimension]."""
        return self.embedding.means(bags)


@keras.saving.register_keras_serializable(package=PACKAGE, name="ConvolvedWords")
class ConvolutionalText(TokenEncoder):
    """Convolution over neighboring words, then the maximum over the text (Kim, 2014, arXiv:1408.5882)."""

    WIDTH = 3

    def __init__(self, size: int, dimension: int, **options: Any) -> None:
        super().__init__(size, dimension, **options)
        self.convolution = keras.layers.Conv1D(dimension, self.WIDTH, padding="same")

    def build(self, shape: Any) -> None:
        """Create the table and the filters."""
        super().build(shape)
        self.convolution.build((*shape, self.dimension))

    def call(self, words: Any) -> Any:
        """int32 [n, length] with at least one word per row -> float32 [n, dimension]."""
        is_word = ops.cast(words != PADDING, "float32")[:, :, None]
        convolved = self.convolution(self.embedding(words) * is_word)
        return ops.max(ops.where(is_word > 0, convolved, -1e9), axis=1)


@keras.saving.register_keras_serializable(package=PACKAGE, name="ReadWords")
class RecurrentText(TokenEncoder):
    """State of a gated recurrent unit after the last word."""

    def __init__(self, size: int, dimension: int, **options: Any) -> None:
        super().__init__(size, dimension, **options)
        self.reader = keras.layers.GRU(dimension, use_cudnn=False)

    def build(self, shape: Any) -> None:
        """Create the table and the unit."""
        super().build(shape)
        self.reader.build((*shape, self.dimension))

    def call(self, words: Any) -> Any:
        """int32 [n, length] -> float32 [n, dimension]."""
        return self.reader(self.embedding(words), mask=words != PADDING)


@keras.saving.register_keras_serializable(package=PACKAGE)
class Gate(keras.layers.Layer):
    """Weighted sum of the encoded features; the weights are a softmax that is computed from all features of the item.

    The weights sum to the number of features and are equal at first, so the initial output is the plain sum.
    """

    def __init__(self, count: int, **options: Any) -> None:
        super().__init__(**options)
        self.count = count
        self.weigh = keras.layers.Dense(count, kernel_initializer="zeros")

    def build(self, shapes: Any) -> None:
        """Create the weights with value zero."""
        self.weigh.build((shapes[0][0], sum(shape[-1] for shape in shapes)))

    def call(self, encoded: Any) -> Any:
        """`count` times float32 [n, dimension] -> float32 [n, dimension]."""
        weights = self.count * ops.softmax(self.weigh(ops.concatenate(encoded, axis=-1)), axis=-1)
        return ops.sum(ops.stack(encoded, axis=1) * weights[:, :, None], axis=1)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "count": self.count}
