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
        bags = tf.convert_to_tensor(bags)
        is_row = tf.where(bags != 0)
        rows, position = tf.unique(tf.gather_nd(bags, is_row))
        return _means(tf.gather(self.embeddings.value, rows), position, is_row[:, 0], tf.shape(bags)[0])


@tf.custom_gradient  # type: ignore[untyped-decorator]
def _means(rows: Any, position: Any, bag: Any, num_bags: Any) -> tuple[Any, Any]:
    """Return the mean of the rows of each bag: float32 [u, d], position and bag of each entry, int [e] -> [n, d].

    The gradient of TensorFlow takes three times as long.
    """

    def gradient(upstream: Any) -> tuple[Any, None, None, None]:
        sizes = tf.math.unsorted_segment_sum(tf.ones_like(bag, tf.float32), bag, num_bags)
        share = tf.math.divide_no_nan(upstream, sizes[:, None])
        return _sum_by_position(share, bag, position), None, None, None

    return tf.sparse.segment_mean(rows, position, bag, num_segments=num_bags), gradient


def _sum_by_position(values: Any, rows: Any, position: Any) -> Any:
    """Sum the rows of values at each position, from 0 without gaps: float32 [n, d], int [e] and [e] -> float32 [u, d].

    Sums of sorted segments take a third of the time of others.
    """
    order = tf.argsort(position)
    return tf.sparse.segment_sum(values, tf.gather(rows, order), tf.gather(position, order))


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
        return cls(rows, _sum_by_position(gradient.values, tf.range(tf.size(position)), position))

    def read(self, variable: Any) -> Any:
        """Return the same rows of a variable of Keras or TensorFlow, float32 [n, d]."""
        return tf.gather(variable.value if isinstance(variable, keras.Variable) else variable, self.rows)

    def slices(self, values: Any) -> tf.IndexedSlices:
        """Return values of these rows in the form in which Keras's optimizers assign rows."""
        return tf.IndexedSlices(values, self.rows)
