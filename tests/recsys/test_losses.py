import numpy as np
import pytest
import tensorflow as tf
from scipy import sparse

from recsys import losses
from recsys.config import TrainConfig
from recsys.sampling import Sampler
from tests.contracts.losses import BATCH, CANDIDATES, DIMENSION, LossContract, unit

TEMPERATURE = 0.4


def on_circle(*degrees):
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def cross_entropy(anchors, candidates, targets, log_inclusion=None, temperature=1.0):
    targets = np.asarray(targets, np.float32)
    log_inclusion = np.zeros(targets.shape[1], np.float32) if log_inclusion is None else log_inclusion
    return np.asarray(losses.cross_entropy(anchors, candidates, targets, log_inclusion, temperature))


def naive(anchors, candidates, targets, log_inclusion, temperature):
    """One anchor and one candidate at a time, in pure Python floats."""
    result = []
    for anchor, row in zip(anchors.tolist(), targets.tolist(), strict=True):
        exponents = {}
        for number, (candidate, target) in enumerate(zip(candidates.tolist(), row, strict=True)):
            if target >= 0:
                cosine = sum(a * c for a, c in zip(anchor, candidate, strict=True))
                exponents[number] = np.exp(cosine / temperature) / np.exp(float(log_inclusion[number]))
        partition = sum(exponents.values())
        total = sum(target for target in row if target > 0)
        loss = 0.0
        for number, exponent in exponents.items():
            if row[number] > 0:
                loss -= row[number] / total * np.log(exponent / partition)
        result.append(loss)
    return np.array(result)


class TestCrossEntropy(LossContract):
    def loss(self, anchors, candidates, targets, log_inclusion):
        return losses.cross_entropy(anchors, candidates, targets, log_inclusion, TEMPERATURE)

    def test_agrees_with_one_pair_at_a_time(self, batch):
        np.testing.assert_allclose(self.values(*batch), naive(*batch, TEMPERATURE), rtol=1e-5, atol=1e-6)

    def test_an_anchor_without_positives_loses_nothing(self, batch):
        assert self.values(*batch)[BATCH - 1] == 0


@pytest.mark.parametrize(
    ("angles", "expected"),
    [
        ((90, 90), np.log(2)),
        ((0, 180), np.log(1 + np.exp(-2.0))),
        ((60, 90), np.log(1 + np.exp(-0.5))),
        ((180, 0), np.log(1 + np.exp(2.0))),
        ((60, 0, 120), np.log(1 + np.exp(0.5) + np.exp(-1.0))),
    ],
    ids=str,
)
def test_cross_entropy_at_known_angles(angles, expected):
    """The first candidate is the positive; log(1 + sum of exp(other - positive)) by hand."""
    targets = [[1.0] + [0.0] * (len(angles) - 1)]
    assert cross_entropy(on_circle(0), on_circle(*angles), targets) == pytest.approx([expected], abs=1e-6)


def test_temperature_divides_the_cosine():
    loss = cross_entropy(on_circle(0), on_circle(60, 90), [[1.0, 0.0]], temperature=0.1)
    assert loss == pytest.approx([np.log(1 + np.exp(-5.0))], rel=1e-4)


def test_positives_share_the_target_in_proportion_to_their_weights():
    """Cosines 1/2, 0 and -1/2; a quarter of the target on the first, three quarters on the second."""
    loss = cross_entropy(on_circle(0), on_circle(60, 90, 120), [[2.0, 6.0, 0.0]])
    partition = np.exp(0.5) + 1 + np.exp(-0.5)
    assert loss == pytest.approx([np.log(partition) - 0.25 * 0.5], rel=1e-6)


def test_only_the_proportions_of_the_weights_count():
    one = cross_entropy(on_circle(0), on_circle(60, 90, 120), [[2.0, 6.0, 0.0]])
    assert cross_entropy(on_circle(0), on_circle(60, 90, 120), [[5.0, 15.0, 0.0]]) == pytest.approx(one, rel=1e-6)


def test_a_candidate_drawn_half_of_the_time_counts_twice():
    log_inclusion = np.log(np.array([1.0, 0.5, 1.0], np.float32))
    drawn = cross_entropy(on_circle(0), on_circle(60, 90, 120), [[1.0, 0.0, 0.0]], log_inclusion)
    twice = cross_entropy(on_circle(0), on_circle(60, 90, 90, 120), [[1.0, 0.0, 0.0, 0.0]])
    assert drawn == pytest.approx(twice, rel=1e-6)


def test_the_anchor_itself_has_probability_exactly_zero():
    """Masked, the nearest candidate of all takes nothing from the positive: the loss is exactly 0."""
    assert cross_entropy(on_circle(0), on_circle(0, 90), [[-1.0, 1.0]], temperature=0.01).tolist() == [0.0]
    assert cross_entropy(on_circle(0), on_circle(0, 90), [[0.0, 1.0]], temperature=0.01)[0] == pytest.approx(100)


def test_a_mask_is_lower_than_any_logit():
    """The only other candidate lies opposite, at a logit of -100,000: a large number for infinity would win."""
    assert cross_entropy(on_circle(0), on_circle(0, 180), [[-1.0, 1.0]], temperature=1e-5).tolist() == [0.0]


def test_is_finite_at_a_very_low_temperature():
    loss = cross_entropy(on_circle(0, 90), on_circle(0, 90, 180), [[0.0, 0.0, 1.0], [1.0, 0.0, -1.0]], temperature=1e-3)
    assert loss == pytest.approx([2000, 1000], rel=1e-4)


def test_gradient_by_the_logits_is_softmax_minus_target():
    """By the candidates: (softmax - target) times the anchor, over the temperature."""
    rng = np.random.default_rng(4)
    anchor, candidates = unit(rng.normal(size=(1, DIMENSION))), unit(rng.normal(size=(CANDIDATES, DIMENSION)))
    targets = np.array([[-1, 2, 0, 0, 6, 0, 0]], np.float32)
    variable = tf.Variable(candidates)
    with tf.GradientTape() as tape:
        loss = losses.cross_entropy(anchor, variable, targets, np.zeros(CANDIDATES, np.float32), TEMPERATURE)
    exponents = np.exp(candidates @ anchor[0] / TEMPERATURE)
    exponents[0] = 0
    slopes = exponents / exponents.sum() - np.maximum(targets[0], 0) / 8
    expected = slopes[:, None] * anchor / TEMPERATURE
    np.testing.assert_allclose(tape.gradient(loss, variable), expected, atol=1e-5)


@pytest.mark.parametrize("negatives", [8, 40], ids="{} negatives".format)
def test_the_sampled_gradient_tends_to_the_one_over_the_whole_catalogue(negatives):
    """Mean over many draws, by the embeddings of all items; the bias falls with the number of negatives."""
    num_items, anchors = 60, np.array([3, 17], np.int32)
    rng = np.random.default_rng(8)
    dense = np.zeros((num_items, num_items), np.float32)
    for one, other, weight in ((3, 5, 2.0), (3, 40, 1.0), (17, 40, 1.0), (17, 59, 0.5), (5, 9, 1.0), (22, 31, 1.0)):
        dense[one, other] = dense[other, one] = weight
    matrix, vectors = sparse.csr_array(dense), tf.Variable(unit(rng.normal(size=(num_items, DIMENSION))))

    @tf.function(reduce_retracing=True)
    def gradient(batch_candidates, batch_anchors, targets, log_inclusion):
        with tf.GradientTape() as tape:
            candidates = tf.gather(vectors, batch_candidates)
            anchor_vectors = tf.gather(candidates, batch_anchors)
            loss = losses.cross_entropy(anchor_vectors, candidates, targets, log_inclusion, TEMPERATURE)
            total = tf.reduce_sum(loss)
        return tf.convert_to_tensor(tape.gradient(total, vectors))

    def mean_gradient(draws, **options):
        config = TrainConfig(batch_size=2, max_positives=4, negatives=negatives, **options)
        drawn = Sampler(matrix, config, np.random.default_rng(1))
        batches = [drawn.batch(anchors) for _ in range(draws)]
        gradients = [
            gradient(*map(tf.constant, (b.candidates, b.anchors, b.targets, b.log_inclusion))).numpy() for b in batches
        ]
        return np.mean(gradients, axis=0)

    whole = mean_gradient(1, whole_catalogue_up_to=num_items)
    drawn = mean_gradient(600, whole_catalogue_up_to=1)
    off = np.linalg.norm(drawn - whole) / np.linalg.norm(whole)
    assert off < 2.4 / negatives
