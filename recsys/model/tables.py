"""Tables of embeddings of which a training step reads and changes only the rows of its batch.

Keras reads a table as a whole and its optimizers change all rows, so the time of a step would grow with the catalog.
TensorFlow can gather and scatter rows in place. Whatever depends on that is in this module.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="recsys")
class EmbeddingTable(keras.layers.Embedding):
    """`keras.layers.Embedding` whose gradient has only the rows that were read."""

    def call(self, rows: Any) -> Any:
        """int32 [...] -> float32 [..., dimension]."""
        return tf.gather(self.embeddings.value, rows)

    def means(self, bags: Any) -> Any:
        """Return the mean of the rows of each bag, 0 for an empty bag: int32 [n, length], 0 pads -> float32 [n, d]."""
        return tf.nn.safe_embedding_lookup_sparse(self.embeddings.value, tf.sparse.from_dense(bags), combiner="mean")


class RowGradient(NamedTuple):
    """Gradient of some rows of a variable."""

    rows: Any
    """Distinct row numbers, int [n]."""
    values: Any
    """float32 [n, d]."""

    @classmethod
    def of(cls, gradient: tf.IndexedSlices) -> RowGradient:
        """Sum the gradients of each row."""
        rows, position = tf.unique(gradient.indices)
        order = tf.argsort(position)  # sums of sorted segments take a third of the time
        return cls(rows, tf.sparse.segment_sum(gradient.values, order, tf.gather(position, order)))

    def read(self, variable: Any) -> Any:
        """Return the same rows of a variable of Keras or TensorFlow, float32 [n, d]."""
        return tf.gather(variable.value if isinstance(variable, keras.Variable) else variable, self.rows)

    def slices(self, values: Any) -> tf.IndexedSlices:
        """Return values of these rows in the form in which Keras's optimizers assign rows."""
        return tf.IndexedSlices(values, self.rows)
