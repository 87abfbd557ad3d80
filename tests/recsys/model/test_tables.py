"""Tables of embeddings: values and gradients of the rows that are read."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from recsys.model.tables import EmbeddingTable, RowGradient

SIZE, DIMENSION = 9, 4


@pytest.fixture
def table():
    layer = EmbeddingTable(SIZE, DIMENSION)
    layer.build(None)
    return layer


@pytest.mark.parametrize("rows", [[3, 0, 3], [[8, 1], [2, 2], [0, 5]]], ids=["one each", "sequences"])
def test_returns_the_rows(table, rows):
    rows = np.array(rows, np.int32)
    np.testing.assert_array_equal(table(rows), table.embeddings.numpy()[rows])


def test_means_leave_out_padding(table):
    """Empty bags at the beginning, in the middle and at the end."""
    bags = [[], [5, 2, 5], [], [7], [1, 3], []]
    padded = np.array([bag + [0] * (3 - len(bag)) for bag in bags], np.int32)
    values = table.embeddings.numpy()
    expected = [values[bag].mean(axis=0) if bag else np.zeros(DIMENSION) for bag in bags]
    np.testing.assert_allclose(table.means(padded), expected, rtol=1e-6)


@pytest.mark.parametrize("means", [False, True])
def test_gradient_has_only_the_rows_that_were_read(table, means):
    """Compared with the gradient of a whole table; row 6 is read twice."""
    rows, weights = np.array([[6, 1], [2, 6]], np.int32), np.array([[1.0, 2.0, -1.0, 0.5], [3.0, 0.0, 1.0, 1.0]])
    with tf.GradientTape() as tape:
        read = table.means(rows) if means else tf.reduce_mean(table(rows), axis=1)
        loss = tf.reduce_sum(read * weights)
    gradient = RowGradient.of(tape.gradient(loss, table.embeddings.value))
    dense = np.zeros((SIZE, DIMENSION))
    for bag, weight in zip(rows, weights, strict=True):
        for row in bag:
            dense[row] += weight / 2
    assert sorted(gradient.rows.numpy()) == [1, 2, 6]
    np.testing.assert_allclose(gradient.values, dense[gradient.rows.numpy()], rtol=1e-6)


def test_is_loaded_from_a_file(table, tmp_path):
    rows = keras.Input((), dtype="int32")
    model = keras.Model(rows, table(rows))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(loaded(np.arange(SIZE)), model(np.arange(SIZE)))
