import numpy as np
import pytest
import tensorflow as tf

from recsys.config.sections import TowerConfig, TrainConfig
from recsys.index.distances import COSINE, DISTANCES
from recsys.model import losses
from recsys.model.losses import Contrastive, CrossEntropy, Triplet
from recsys.testing.loss_contract import CANDIDATES, DIMENSION, WITHOUT_POSITIVES, LossContract, gradients, unit, values

TEMPERATURE = 0.4
MARGIN = 4.0
"""Greater than any distance between two unit vectors in three dimensions."""

CIRCLE_DISTANCES = {
    "cosine": {0: 0.0, 60: 0.5, 90: 1.0, 180: 2.0},
    "euclidean": {0: 0.0, 60: 1.0, 90: 1.4142136, 180: 2.0},
    "manhattan": {0: 0.0, 60: 1.3660254, 90: 2.0, 180: 2.0},
}
"""Distance from the point at 0° of the unit circle to the point at another angle, computed by hand."""
CIRCLE_SCORES = {
    "cosine": {0: 1.0, 60: 0.5, 90: 0.0, 180: -1.0},
    "euclidean": {0: 0.0, 60: -0.5, 90: -1.0, 180: -2.0},
    "manhattan": {0: 0.0, 60: -1.3660254, 90: -2.0, 180: -2.0},
}
every_distance = pytest.mark.parametrize("distance", DISTANCES.values(), ids=list(DISTANCES))


def on_circle(*degrees):
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def at_angles(loss, angles, targets, log_inclusion=None, log_popularity=None):
    """Return the loss of an anchor at 0° with candidates at other angles."""
    zeros = np.zeros(len(angles), np.float32)
    loss_values = values(
        loss,
        on_circle(0),
        on_circle(*angles),
        np.array([targets], np.float32),
        zeros if log_inclusion is None else np.array(log_inclusion, np.float32),
        zeros if log_popularity is None else np.array(log_popularity, np.float32),
    )
    return float(loss_values[0])


def naive_distance(name, left, right):
    if name == "cosine":
        return 1 - sum(a * b for a, b in zip(left, right, strict=True))
    differences = [abs(a - b) for a, b in zip(left, right, strict=True)]
    return sum(differences) if name == "manhattan" else sum(value**2 for value in differences) ** 0.5


def naive_score(name, left, right):
    if name == "cosine":
        return sum(a * b for a, b in zip(left, right, strict=True))
    distance = naive_distance(name, left, right)
    return -distance if name == "manhattan" else -(distance**2) / 2


def each_anchor(name, anchors, candidates, targets):
    """Yield (weight, distance) of the positives and the distances of the negatives of each anchor, in pure Python."""
    for anchor, row in zip(anchors.tolist(), targets.tolist(), strict=True):
        distances = [naive_distance(name, anchor, candidate) for candidate in candidates.tolist()]
        positives = [(weight, d) for weight, d in zip(row, distances, strict=True) if weight > 0]
        yield positives, sorted(d for weight, d in zip(row, distances, strict=True) if weight == 0)


# --- distances and scores


@every_distance
@pytest.mark.parametrize("angle", [0, 60, 90, 180], ids="{}°".format)
def test_distances_and_scores_at_known_angles(distance, angle):
    distances = np.asarray(losses.distances(distance, on_circle(0), on_circle(angle)))
    assert distances == pytest.approx(CIRCLE_DISTANCES[distance.name][angle], abs=1e-6)
    scores = np.asarray(losses.scores(distance, on_circle(0), on_circle(angle)))
    assert scores == pytest.approx(CIRCLE_SCORES[distance.name][angle], abs=1e-6)


@every_distance
def test_distances_and_scores_agree_with_the_definition(distance):
    rng = np.random.default_rng(0)
    anchors, candidates = unit(rng.normal(size=(4, 6))), unit(rng.normal(size=(5, 6)))
    if not distance.unit_norm:
        anchors, candidates = anchors * 3, candidates * 0.5
    for function, naive in ((losses.distances, naive_distance), (losses.scores, naive_score)):
        expected = [[naive(distance.name, a, b) for b in candidates.tolist()] for a in anchors.tolist()]
        np.testing.assert_allclose(function(distance, anchors, candidates), expected, rtol=1e-5, atol=1e-6)


@every_distance
def test_the_order_by_score_is_the_reverse_of_the_order_by_distance(distance):
    rng = np.random.default_rng(2)
    anchors, candidates = unit(rng.normal(size=(5, 8))), unit(rng.normal(size=(30, 8)))
    by_distance = np.argsort(np.asarray(losses.distances(distance, anchors, candidates)), axis=1)
    by_score = np.argsort(np.asarray(losses.scores(distance, anchors, candidates)), axis=1)
    np.testing.assert_array_equal(by_distance, by_score[:, ::-1])
    by_similarity = np.argsort(distance.similarities(anchors, candidates), axis=1)
    np.testing.assert_array_equal(by_similarity, by_score)


# --- cross-entropy


def naive_cross_entropy(name, batch):
    """Return the loss of each anchor by loops over anchors and candidates, in Python floats."""
    anchors, candidates, targets, log_inclusion, log_popularity = batch
    result = []
    for anchor, row in zip(anchors.tolist(), targets.tolist(), strict=True):
        exponents = {}
        for number, (candidate, target) in enumerate(zip(candidates.tolist(), row, strict=True)):
            if target >= 0:
                exponent = np.exp(naive_score(name, anchor, candidate) / TEMPERATURE)
                exponent *= np.exp(float(log_popularity[number]))
                exponents[number] = exponent if target > 0 else exponent / np.exp(float(log_inclusion[number]))
        partition = sum(exponents.values())
        total = sum(target for target in row if target > 0)
        loss = 0.0
        for number, exponent in exponents.items():
            if row[number] > 0:
                loss -= row[number] / total * np.log(exponent / partition)
        result.append(loss)
    return np.array(result)


class TestCrossEntropy(LossContract):
    @pytest.fixture(params=list(DISTANCES))
    def loss(self, request):
        return CrossEntropy(DISTANCES[request.param], TEMPERATURE)

    def test_agrees_with_a_loop_over_pairs(self, loss, batch):
        expected = naive_cross_entropy(loss.distance.name, batch)
        np.testing.assert_allclose(values(loss, *batch), expected, rtol=1e-5, atol=1e-6)

    def test_anchor_without_positives_has_loss_0(self, loss, batch):
        assert values(loss, *batch)[WITHOUT_POSITIVES] == 0


@every_distance
@pytest.mark.parametrize("positive", [0, 60, 90, 180], ids="positive at {}°".format)
@pytest.mark.parametrize("negative", [0, 60, 90, 180], ids="negative at {}°".format)
def test_cross_entropy_at_known_angles(distance, positive, negative):
    scores = CIRCLE_SCORES[distance.name]
    expected = np.log(1 + np.exp((scores[negative] - scores[positive]) / TEMPERATURE))
    loss = at_angles(CrossEntropy(distance, TEMPERATURE), (positive, negative), (1, 0))
    assert loss == pytest.approx(expected, rel=1e-5)


def test_target_is_distributed_over_positives_by_their_weights():
    """The cosines are 1/2, 0 and -1/2. The first positive has a quarter of the target, the second three quarters."""
    partition = np.exp(0.5) + 1 + np.exp(-0.5)
    loss = at_angles(CrossEntropy(COSINE, 1.0), (60, 90, 120), (2, 6, 0))
    assert loss == pytest.approx(np.log(partition) - 0.25 * 0.5, rel=1e-6)


def test_negative_with_inclusion_one_half_counts_twice():
    loss = CrossEntropy(COSINE, 1.0)
    drawn = at_angles(loss, (60, 90, 120), (1, 0, 0), log_inclusion=np.log([1.0, 0.5, 1.0]))
    assert drawn == pytest.approx(at_angles(loss, (60, 90, 90, 120), (1, 0, 0, 0)), rel=1e-6)


def test_inclusion_of_positives_is_ignored():
    loss = CrossEntropy(COSINE, 1.0)
    corrected = at_angles(loss, (60, 90, 120), (1, 3, 0), log_inclusion=np.log([0.01, 0.2, 1.0]))
    assert corrected == pytest.approx(at_angles(loss, (60, 90, 120), (1, 3, 0)), rel=1e-6)


def test_popularity_is_equivalent_to_copies_of_a_candidate():
    loss = CrossEntropy(COSINE, 1.0)
    corrected = at_angles(loss, (60, 90, 120), (1, 0, 0), log_popularity=np.log([1.0, 2.0, 1.0]))
    assert corrected == pytest.approx(at_angles(loss, (60, 90, 90, 120), (1, 0, 0, 0)), rel=1e-6)


def test_gradient_is_zero_if_popularity_explains_the_targets():
    """All candidates are equal, and their weights are proportional to their popularity."""
    popularity = np.array([1, 2, 5], np.float32)
    batch = (on_circle(0), on_circle(60, 60, 60), popularity[None], np.zeros(3, np.float32))
    for gradient in gradients(CrossEntropy(COSINE, 0.1), *batch, np.log(popularity)):
        np.testing.assert_allclose(gradient, 0, atol=1e-6)


@every_distance
def test_masked_anchor_has_probability_0(distance):
    """If the nearest candidate is masked, the positive has probability 1 and the loss is exactly 0."""
    loss = CrossEntropy(distance, 0.01)
    assert at_angles(loss, (0, 90), (-1, 1)) == 0
    difference = CIRCLE_SCORES[distance.name][0] - CIRCLE_SCORES[distance.name][90]
    assert at_angles(loss, (0, 90), (0, 1)) == pytest.approx(difference / 0.01, rel=1e-5)


def test_masked_logit_is_lower_than_any_other():
    """The only unmasked candidate has a logit of -100,000, so a finite mask could be larger."""
    assert at_angles(CrossEntropy(COSINE, 1e-5), (0, 180), (-1, 1)) == 0


def test_is_finite_at_a_very_low_temperature():
    loss = CrossEntropy(COSINE, 1e-3)
    assert at_angles(loss, (0, 90, 180), (0, 0, 1)) == pytest.approx(2000, rel=1e-4)


def test_gradient_of_the_logits_is_softmax_minus_target():
    """The gradient of the candidates is (softmax - target) times the anchor, divided by the temperature."""
    rng = np.random.default_rng(4)
    anchor, candidates = unit(rng.normal(size=(1, DIMENSION))), unit(rng.normal(size=(CANDIDATES, DIMENSION)))
    targets, zeros = np.array([[-1, 2, 0, 0, 6, 0, 0]], np.float32), np.zeros(CANDIDATES, np.float32)
    _, gradient = gradients(CrossEntropy(COSINE, TEMPERATURE), anchor, candidates, targets, zeros, zeros)
    exponents = np.exp(candidates @ anchor[0] / TEMPERATURE)
    exponents[0] = 0
    slopes = exponents / exponents.sum() - np.maximum(targets[0], 0) / 8
    np.testing.assert_allclose(gradient, slopes[:, None] * anchor / TEMPERATURE, atol=1e-5)


def test_mean_sampled_gradient_approximates_the_gradient_over_the_catalog():
    """Each negative is included with its own probability; gradients of all embeddings are averaged over draws."""
    num_items = 60
    rng = np.random.default_rng(8)
    anchors, vectors = unit(rng.normal(size=(2, DIMENSION))), unit(rng.normal(size=(num_items, DIMENSION)))
    targets = np.zeros((2, num_items), np.float32)
    targets[0, [5, 40]] = [2.0, 1.0]
    targets[1, [40, 59]] = [1.0, 0.5]
    probability = rng.uniform(0.3, 1.0, num_items).astype(np.float32)
    loss, zeros = CrossEntropy(COSINE, TEMPERATURE), np.zeros(num_items, np.float32)

    @tf.function
    def gradient(candidates, drawn, log_inclusion):
        with tf.GradientTape() as tape:
            tape.watch(candidates)
            total = tf.reduce_sum(loss(anchors, candidates, drawn, log_inclusion, zeros))
        return tape.gradient(total, candidates)

    def mean_gradient(log_inclusion, draws):
        total = np.zeros_like(vectors)
        for _ in range(draws):
            omitted = rng.random(num_items) > probability
            drawn = np.where(omitted & (targets == 0), np.float32(-1), targets)
            total += gradient(*map(tf.constant, (vectors, drawn, log_inclusion))).numpy()
        return total / draws

    exact = gradients(loss, anchors, vectors, targets, zeros, zeros)[1]
    corrected, plain = (mean_gradient(logs, 150) for logs in (np.log(probability), zeros))
    errors = [np.linalg.norm(mean - exact) / np.linalg.norm(exact) for mean in (corrected, plain)]
    assert errors[0] < 0.06
    assert errors[1] > 3 * errors[0]


# --- contrastive


class TestContrastive(LossContract):
    @pytest.fixture(params=list(DISTANCES))
    def loss(self, request):
        return Contrastive(DISTANCES[request.param], MARGIN)

    @pytest.mark.parametrize("number", [1, 2, 16], ids="{} negatives".format)
    @pytest.mark.parametrize("margin", [1.2, MARGIN], ids="margin {}".format)
    def test_agrees_with_a_loop_over_pairs(self, loss, batch, monkeypatch, number, margin):
        monkeypatch.setattr(losses, "NUM_NEGATIVES", number)
        expected = []
        for positives, negatives in each_anchor(loss.distance.name, *batch[:3]):
            total = sum(weight for weight, _ in positives)
            pull = sum(weight * d * d for weight, d in positives) / (total or 1)
            nearest = negatives[:number]
            expected.append(pull + sum(max(0, margin - d) ** 2 for d in nearest) / len(nearest))
        loss_values = values(Contrastive(loss.distance, margin), *batch)
        np.testing.assert_allclose(loss_values, expected, rtol=1e-4)

    def test_ignores_sampling_and_popularity(self, loss, batch):
        anchors, candidates, targets, *logs = batch
        without_logs = values(loss, anchors, candidates, targets, *(part * 0 for part in logs))
        np.testing.assert_array_equal(without_logs, values(loss, *batch))


@every_distance
@pytest.mark.parametrize("positive", [0, 60, 90, 180], ids="positive at {}°".format)
@pytest.mark.parametrize("negative", [0, 60, 90, 180], ids="negative at {}°".format)
def test_contrastive_at_known_angles(distance, positive, negative):
    distances = CIRCLE_DISTANCES[distance.name]
    expected = distances[positive] ** 2 + max(0, 1.2 - distances[negative]) ** 2
    assert at_angles(Contrastive(distance, 1.2), (positive, negative), (1, 0)) == pytest.approx(expected, abs=1e-5)


@every_distance
def test_labeled_pairs_are_independent(distance):
    """Each anchor has one pair; all other candidates are ignored."""
    loss, distances = Contrastive(distance, 1.2), CIRCLE_DISTANCES[distance.name]
    assert at_angles(loss, (0, 60, 90), (-1, 1, -1)) == pytest.approx(distances[60] ** 2, abs=1e-5)
    assert at_angles(loss, (0, 60, 90), (-1, 0, -1)) == pytest.approx(max(0, 1.2 - distances[60]) ** 2, abs=1e-5)


def test_negative_that_enters_the_margin_raises_the_loss():
    """The mean over only the negatives within the margin would fall from 0.25 to 0.13."""
    loss = Contrastive(COSINE, 1.0)
    outside, inside = (at_angles(loss, (60, angle), (0, 0)) for angle in (90, 85))
    assert inside > outside


def test_far_negatives_of_a_large_catalog_do_not_dilute_the_near_ones():
    near, far = [60] * losses.NUM_NEGATIVES, [180] * 100
    loss = Contrastive(COSINE, 1.0)
    assert at_angles(loss, near + far, [0] * 116) == pytest.approx(at_angles(loss, near, [0] * 16), rel=1e-6)


# --- triplet


def naive_triplet(name, mining, margin, batch):
    for positives, negatives in each_anchor(name, *batch[:3]):
        total, loss = sum(weight for weight, _ in positives), 0.0
        for weight, d in positives:
            if mining == "semi_hard":
                negative = next((farther for farther in negatives if farther > d), negatives[-1])
            else:
                negative = negatives[0]
            difference = d - negative
            term = np.log(1 + np.exp(difference)) if mining == "soft_margin" else max(0, difference + margin)
            loss += weight / total * term
        yield loss


class TripletContract(LossContract):
    mining = "hard"

    @pytest.fixture(params=list(DISTANCES))
    def loss(self, request):
        return Triplet(DISTANCES[request.param], MARGIN, self.mining)

    @pytest.mark.parametrize("margin", [0.3, MARGIN], ids="margin {}".format)
    def test_agrees_with_a_loop_over_triplets(self, loss, batch, margin):
        expected = list(naive_triplet(loss.distance.name, self.mining, margin, batch))
        loss_values = values(Triplet(loss.distance, margin, self.mining), *batch)
        np.testing.assert_allclose(loss_values, expected, rtol=1e-4, atol=1e-6)

    def test_anchor_without_positives_or_negatives_has_loss_0(self, loss, batch):
        anchors, candidates, targets, *logs = batch
        targets[0] = np.where(targets[0] == 0, -1, targets[0])
        loss_values = values(loss, anchors, candidates, targets, *logs)
        assert loss_values[[0, WITHOUT_POSITIVES]].tolist() == [0, 0]


class TestHardTriplet(TripletContract):
    pass


class TestSoftMarginTriplet(TripletContract):
    mining = "soft_margin"


class TestSemiHardTriplet(TripletContract):
    mining = "semi_hard"

    # moving an item can change which negative is semi-hard
    test_falls_when_a_positive_moves_closer = None
    test_rises_when_a_negative_moves_closer = None

    def test_uses_the_positives_with_the_largest_weights(self, loss, batch, monkeypatch):
        monkeypatch.setattr(losses, "NUM_POSITIVES", 1)
        anchors, candidates, targets, *logs = batch
        heaviest = np.where((targets > 0) & (targets < targets.max(axis=1, keepdims=True)), np.float32(-1), targets)
        loss_values = values(loss, *batch)
        np.testing.assert_allclose(loss_values, values(loss, anchors, candidates, heaviest, *logs), rtol=1e-6)


@every_distance
@pytest.mark.parametrize("mining", ["semi_hard", "hard", "soft_margin"])
@pytest.mark.parametrize("positive", [0, 60, 90, 180], ids="positive at {}°".format)
@pytest.mark.parametrize("negative", [0, 60, 90, 180], ids="negative at {}°".format)
def test_triplet_at_known_angles(distance, mining, positive, negative):
    """With one negative, all kinds of mining select it."""
    difference = CIRCLE_DISTANCES[distance.name][positive] - CIRCLE_DISTANCES[distance.name][negative]
    expected = np.log(1 + np.exp(difference)) if mining == "soft_margin" else max(0, difference + 0.5)
    loss = at_angles(Triplet(distance, 0.5, mining), (positive, negative), (1, 0))
    assert loss == pytest.approx(expected, abs=1e-5)


@every_distance
@pytest.mark.parametrize(
    ("mining", "positive", "chosen"),
    [("hard", 60, 0), ("semi_hard", 60, 90), ("semi_hard", 180, 90)],
    ids=["hard: nearest", "semi-hard: nearest beyond the positive", "semi-hard: farthest if none is beyond"],
)
def test_mines_the_expected_negative(distance, mining, positive, chosen):
    """The negatives are at 0°, 30° and 90°. By the Manhattan distance, 180° is as far as 90°."""
    distances = CIRCLE_DISTANCES[distance.name]
    loss = at_angles(Triplet(distance, 3.0, mining), (positive, 30, 90, 0), (1, 0, 0, 0))
    assert loss == pytest.approx(distances[positive] - distances[chosen] + 3.0, abs=1e-5)


def test_triplets_are_weighted_by_their_positives():
    """The cosine distances are 1/2 and 1, and 2 for the negative. A margin of 3 is violated by 1.5 and 2."""
    loss = at_angles(Triplet(COSINE, 3.0, "semi_hard"), (60, 90, 180), (2, 6, 0))
    assert loss == pytest.approx(0.25 * 1.5 + 0.75 * 2.0, rel=1e-6)


# --- from the config


@every_distance
def test_config_selects_the_loss(distance):
    tower = TowerConfig(distance=distance.name)
    built = [losses.from_config(TrainConfig(loss=name), tower) for name in ("cross_entropy", "contrastive", "triplet")]
    assert built == [CrossEntropy(distance, 0.1), Contrastive(distance, 0.5), Triplet(distance, 0.5, "semi_hard")]
    tuned = TrainConfig(loss="triplet", margin=0.2, mining="hard", temperature=0.3)
    assert losses.from_config(tuned, tower) == Triplet(distance, 0.2, "hard")


def test_manhattan_memory_does_not_grow_with_the_dimension():
    """The traced graph and its gradient have no tensor [anchors, candidates, dimension]."""
    step = tf.function(lambda a, c: tf.gradients(losses.distances(DISTANCES["manhattan"], a, c), [a, c]))
    graph = step.get_concrete_function(tf.TensorSpec((5, 11)), tf.TensorSpec((7, 11))).graph
    bodies = [graph, *(function.graph for function in graph._functions.values() if hasattr(function, "graph"))]
    shapes = [tensor.shape for body in bodies for operation in body.get_operations() for tensor in operation.outputs]
    assert all(shape.rank is None or shape.rank < 3 for shape in shapes)
