"""The layers that turn one input of the tower into a vector, and the gate that weighs the vectors."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from recsys.features.encoding import PADDING

register = keras.saving.register_keras_serializable(package="recsys")


@register
class IdDropout(keras.layers.Layer):
    """Replaces a share of the ids by 0, "unknown", during training.

    DropoutNet (Volkovs et al., 2017) takes 0.5 for new items; 0.1 is enough to regularize.
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
class KnownOrNew(keras.layers.Layer):
    """Of two embeddings of an item the one that its id asks for: is it known, or 0?"""

    def call(self, ids: Any, known: Any, new: Any) -> Any:
        """int32 [n] and float32 [n, dimension] twice -> float32 [n, dimension]."""
        return ops.where(ids[:, None] > 0, known, new)


class TokenEncoder(keras.layers.Layer):
    """Base of the encoders of several tokens an item: a table of `size` rows, [size, dimension]."""

    def __init__(self, size: int, dimension: int, **options: Any) -> None:
        super().__init__(**options)
        self.size = size
        self.dimension = dimension
        self.embedding = keras.layers.Embedding(size, dimension)

    def build(self, shape: Any) -> None:
        """Create the table."""
        self.embedding.build(shape)

    def get_config(self) -> dict[str, Any]:
        """What the constructor takes."""
        return {**super().get_config(), "size": self.size, "dimension": self.dimension}


@register
class MeanOfBag(TokenEncoder):
    """Mean embedding of the indices of a row, padding left out."""

    def call(self, bags: Any) -> Any:
        """int32 [n, length] -> float32 [n, dimension]."""
        # to zero the one row of padding in the table is up to three times faster than to zero what was gathered
        padding = ops.cast(ops.arange(self.size) != PADDING, "float32")[:, None]
        summed = ops.sum(ops.take(self.embedding.embeddings * padding, bags, axis=0), axis=1)
        count = ops.sum(ops.cast(bags != PADDING, "float32"), axis=1, keepdims=True)
        return summed / ops.maximum(count, 1.0)


@register
class ConvolvedWords(TokenEncoder):
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
        """int32 [n, length] -> float32 [n, dimension]; every text has a word."""
        present = ops.cast(words != PADDING, "float32")[:, :, None]
        convolved = self.convolution(self.embedding(words) * present)
        return ops.max(ops.where(present > 0, convolved, -1e9), axis=1)


@register
class ReadWords(TokenEncoder):
    """The state of a gated recurrent unit after the last word."""

    def __init__(self, size: int, dimension: int, **options: Any) -> None:
        super().__init__(size, dimension, **options)
        # neither cuDNN, which XLA does not take, nor unrolled, which compiles six times as long and is no faster
        self.reader = keras.layers.GRU(dimension, use_cudnn=False)

    def build(self, shape: Any) -> None:
        """Create the table and the unit."""
        super().build(shape)
        self.reader.build((*shape, self.dimension))

    def call(self, words: Any) -> Any:
        """int32 [n, length] -> float32 [n, dimension]."""
        return self.reader(self.embedding(words), mask=words != PADDING)


@register
class Gate(keras.layers.Layer):
    """Weighs the encoded features item by item: a softmax over the features, computed from all of them.

    Begins as their plain sum: all weights are equal at first, and add up to the number of features.
    """

    def __init__(self, count: int, **options: Any) -> None:
        super().__init__(**options)
        self.count = count
        self.weigh = keras.layers.Dense(count, kernel_initializer="zeros")

    def build(self, shapes: Any) -> None:
        """Create the weights, at zero."""
        self.weigh.build((shapes[0][0], sum(shape[-1] for shape in shapes)))

    def call(self, encoded: Any) -> Any:
        """`count` times float32 [n, dimension] -> float32 [n, dimension]."""
        weights = self.count * ops.softmax(self.weigh(ops.concatenate(encoded, axis=-1)), axis=-1)
        return ops.sum(ops.stack(encoded, axis=1) * weights[:, :, None], axis=1)

    def get_config(self) -> dict[str, Any]:
        """What the constructor takes."""
        return {**super().get_config(), "count": self.count}
