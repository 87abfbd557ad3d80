import numpy as np
import pytest

from recsys.model.layers import ConvolutionalText, Gate, IdDropout, MeanOfBag, RecurrentText


def test_id_dropout_replaces_a_share_of_the_ids_during_training():
    layer, ids = IdDropout(0.3, seed=2), np.arange(1, 10_001, dtype=np.int32)
    dropped = np.asarray(layer(ids, training=True))
    assert set(np.unique(dropped[dropped != ids])) == {0}
    assert (dropped == 0).mean() == pytest.approx(0.3, abs=0.02)
    assert not np.array_equal(dropped, np.asarray(layer(ids, training=True)))


@pytest.mark.parametrize(("rate", "training"), [(0.9, False), (0.0, True)], ids=["inference", "rate 0"])
def test_id_dropout_does_not_change_ids_in_inference_or_at_rate_0(rate, training):
    ids = np.arange(7, dtype=np.int32)
    np.testing.assert_array_equal(np.asarray(IdDropout(rate)(ids, training=training)), ids)


def test_mean_of_a_bag_ignores_padding():
    layer = MeanOfBag(5, 2)
    bags = np.array([[2, 0, 0], [4, 2, 3], [0, 0, 0], [3, 3, 0]], np.int32)
    means = np.asarray(layer(bags))
    table = layer.get_weights()[0]
    expected = [table[2], (table[4] + table[2] + table[3]) / 3, [0, 0], table[3]]
    np.testing.assert_allclose(means, expected, atol=1e-6)


def test_convolution_over_words_takes_the_maximum_and_ignores_padding():
    layer = ConvolutionalText(6, 3)
    words = np.array([[2, 5, 3, 0], [4, 0, 0, 0]], np.int32)
    output = np.asarray(layer(words))
    table, kernel, bias = layer.get_weights()  # kernel [3 words, 3 in, 3 out]
    for row, length in ((0, 3), (1, 1)):
        vectors = [table[word] for word in words[row, :length]]
        padded = [np.zeros(3), *vectors, np.zeros(3)]
        convolved = [sum(padded[position + tap] @ kernel[tap] for tap in range(3)) + bias for position in range(length)]
        np.testing.assert_allclose(output[row], np.max(convolved, axis=0), atol=1e-6)
    np.testing.assert_allclose(np.asarray(layer(np.pad(words, ((0, 0), (0, 3))))), output, atol=1e-6)


def test_recurrent_text_depends_on_word_order_and_ends_with_the_last_word():
    layer = RecurrentText(6, 3)
    words = np.array([[2, 5, 3, 0], [3, 5, 2, 0], [2, 5, 3, 4]], np.int32)
    output = np.asarray(layer(words))
    table, kernel, recurrent, bias = layer.get_weights()
    state = np.zeros(3)
    for word in words[0, :3]:  # Cho et al., 2014, reset after the product, as Keras does
        from_input, from_state = table[word] @ kernel + bias[0], state @ recurrent + bias[1]
        update, reset = (
            1 / (1 + np.exp(-(from_input[part] + from_state[part]))) for part in (slice(0, 3), slice(3, 6))
        )
        state = update * state + (1 - update) * np.tanh(from_input[6:] + reset * from_state[6:])
    np.testing.assert_allclose(output[0], state, atol=1e-6)
    assert np.abs(output[0] - output[1]).max() > 1e-4
    assert np.abs(output[0] - output[2]).max() > 1e-4


def test_untrained_gate_is_a_sum_and_a_trained_one_weighs_by_a_softmax():
    rng = np.random.default_rng(3)
    encoded = [rng.normal(size=(4, 3)).astype(np.float32) for _ in range(2)]
    gate = Gate(2)
    np.testing.assert_allclose(np.asarray(gate(encoded)), encoded[0] + encoded[1], atol=1e-6)
    kernel, bias = rng.normal(size=(6, 2)), rng.normal(size=2)
    gate.set_weights([kernel, bias])
    exponents = np.exp(np.hstack(encoded) @ kernel + bias)
    weights = 2 * exponents / exponents.sum(axis=1, keepdims=True)
    expected = weights[:, :1] * encoded[0] + weights[:, 1:] * encoded[1]
    np.testing.assert_allclose(np.asarray(gate(encoded)), expected, atol=1e-5)
