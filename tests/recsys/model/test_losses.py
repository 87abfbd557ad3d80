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
"""Wider than any distance of two unit vectors in three dimensions."""

HAND = {
    "cosine": {0: 0.0, 60: 0.5, 90: 1.0, 180: 2.0},
    "euclidean": {0: 0.0, 60: 1.0, 90: 1.4142136, 180: 2.0},
    "manhattan": {0: 0.0, 60: 1.3660254, 90: 2.0, 180: 2.0},
}
"""Distance on the unit circle from the point at 0° to the one at another angle, by hand."""
HAND_SCORES = {
    "cosine": {0: 1.0, 60: 0.5, 90: 0.0, 180: -1.0},
    "euclidean": {0: 0.0, 60: -0.5, 90: -1.0, 180: -2.0},
    "manhattan": {0: 0.0, 60: -1.3660254, 90: -2.0, 180: -2.0},
}
every_distance = pytest.mark.parametrize("distance", DISTANCES.values(), ids=list(DISTANCES))


def on_circle(*degrees):
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def at_angles(loss, angles, targets, log_inclusion=None, log_popularity=None):
    """The loss of an anchor at 0° against candidates at other angles."""
    nothing = np.zeros(len(angles), np.float32)
    found = values(
        loss,
        on_circle(0),
        on_circle(*angles),
        np.array([targets], np.float32),
        nothing if log_inclusion is None else np.array(log_inclusion, np.float32),
        nothing if log_popularity is None else np.array(log_popularity, np.float32),
    )
    return float(found[0])


def naive_distance(name, one, other):
    if name == "cosine":
        return 1 - sum(a * b for a, b in zip(one, other, strict=True))
    differences = [abs(a - b) for a, b in zip(one, other, strict=True)]
    return sum(differences) if name == "manhattan" else sum(value**2 for value in differences) ** 0.5


def naive_score(name, one, other):
    if name == "cosine":
        return sum(a * b for a, b in zip(one, other, strict=True))
    distance = naive_distance(name, one, other)
    return -distance if name == "manhattan" else -(distance**2) / 2


def each_anchor(name, anchors, candidates, targets):
    """The weights and distances of an anchor's positives, and the distances of its negatives, in pure Python."""
    for anchor, row in zip(anchors.tolist(), targets.tolist(), strict=True):
        apart = [naive_distance(name, anchor, candidate) for candidate in candidates.tolist()]
        positives = [(weight, d) for weight, d in zip(row, apart, strict=True) if weight > 0]
        yield positives, sorted(d for weight, d in zip(row, apart, strict=True) if weight == 0)


# --- distances and scores


@every_distance
@pytest.mark.parametrize("angle", [0, 60, 90, 180], ids="{}°".format)
def test_distances_and_scores_at_known_angles(distance, angle):
    found = np.asarray(losses.distances(distance, on_circle(0), on_circle(angle)))
    assert found == pytest.approx(HAND[distance.name][angle], abs=1e-6)
    scores = np.asarray(losses.scores(distance, on_circle(0), on_circle(angle)))
    assert scores == pytest.approx(HAND_SCORES[distance.name][angle], abs=1e-6)


@every_distance
def test_distances_and_scores_are_those_of_the_definition(distance):
    rng = np.random.default_rng(0)
    one, other = unit(rng.normal(size=(4, 6))), unit(rng.normal(size=(5, 6)))
    if not distance.unit_norm:
        one, other = one * 3, other * 0.5
    for found, naive in ((losses.distances, naive_distance), (losses.scores, naive_score)):
        expected = [[naive(distance.name, a, b) for b in other.tolist()] for a in one.tolist()]
        np.testing.assert_allclose(found(distance, one, other), expected, rtol=1e-5, atol=1e-6)


@every_distance
def test_the_order_by_score_is_the_reverse_of_the_order_by_distance(distance):
    rng = np.random.default_rng(2)
    one, other = unit(rng.normal(size=(5, 8))), unit(rng.normal(size=(30, 8)))
    by_distance = np.argsort(np.asarray(losses.distances(distance, one, other)), axis=1)
    by_score = np.argsort(np.asarray(losses.scores(distance, one, other)), axis=1)
    np.testing.assert_array_equal(by_distance, by_score[:, ::-1])
    by_similarity = np.argsort(distance.similarities(one, other), axis=1)
    np.testing.assert_array_equal(by_similarity, by_score)


# --- cross-entropy


def naive_cross_entropy(name, batch):
    """One anchor and one candidate at a time, in pure Python floats."""
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

    def test_agrees_with_one_pair_at_a_time(self, loss, batch):
        expected = naive_cross_entropy(loss.distance.name, batch)
        np.testing.assert_allclose(values(loss, *batch), expected, rtol=1e-5, atol=1e-6)

    def test_an_anchor_without_positives_loses_nothing(self, loss, batch):
        assert values(loss, *batch)[WITHOUT_POSITIVES] == 0


@every_distance
@pytest.mark.parametrize("positive", [0, 60, 90, 180], ids="positive at {}°".format)
@pytest.mark.parametrize("negative", [0, 60, 90, 180], ids="negative at {}°".format)
def test_cross_entropy_at_known_angles(distance, positive, negative):
    scores = HAND_SCORES[distance.name]
    expected = np.log(1 + np.exp((scores[negative] - scores[positive]) / TEMPERATURE))
    found = at_angles(CrossEntropy(distance, TEMPERATURE), (positive, negative), (1, 0))
    assert found == pytest.approx(expected, rel=1e-5)


def test_positives_share_the_target_in_proportion_to_their_weights():
    """Cosines 1/2, 0 and -1/2; a quarter of the target on the first, three quarters on the second."""
    partition = np.exp(0.5) + 1 + np.exp(-0.5)
    found = at_angles(CrossEntropy(COSINE, 1.0), (60, 90, 120), (2, 6, 0))
    assert found == pytest.approx(np.log(partition) - 0.25 * 0.5, rel=1e-6)


def test_a_negative_drawn_half_of_the_time_counts_twice():
    loss = CrossEntropy(COSINE, 1.0)
    drawn = at_angles(loss, (60, 90, 120), (1, 0, 0), log_inclusion=np.log([1.0, 0.5, 1.0]))
    assert drawn == pytest.approx(at_angles(loss, (60, 90, 90, 120), (1, 0, 0, 0)), rel=1e-6)


def test_a_positive_was_not_drawn_whatever_its_probability():
    loss = CrossEntropy(COSINE, 1.0)
    found = at_angles(loss, (60, 90, 120), (1, 3, 0), log_inclusion=np.log([0.01, 0.2, 1.0]))
    assert found == pytest.approx(at_angles(loss, (60, 90, 120), (1, 3, 0)), rel=1e-6)


def test_popularity_counts_like_so_many_copies():
    loss = CrossEntropy(COSINE, 1.0)
    found = at_angles(loss, (60, 90, 120), (1, 0, 0), log_popularity=np.log([1.0, 2.0, 1.0]))
    assert found == pytest.approx(at_angles(loss, (60, 90, 90, 120), (1, 0, 0, 0)), rel=1e-6)


def test_what_popularity_explains_moves_nothing():
    """All candidates at one place, touched in proportion to their popularity."""
    popularity = np.array([1, 2, 5], np.float32)
    batch = (on_circle(0), on_circle(60, 60, 60), popularity[None], np.zeros(3, np.float32))
    for gradient in gradients(CrossEntropy(COSINE, 0.1), *batch, np.log(popularity)):
        np.testing.assert_allclose(gradient, 0, atol=1e-6)


@every_distance
def test_the_anchor_itself_has_probability_exactly_zero(distance):
    """Masked, the nearest candidate of all takes nothing from the positive: the loss is exactly 0."""
    loss = CrossEntropy(distance, 0.01)
    assert at_angles(loss, (0, 90), (-1, 1)) == 0
    apart = HAND_SCORES[distance.name][0] - HAND_SCORES[distance.name][90]
    assert at_angles(loss, (0, 90), (0, 1)) == pytest.approx(apart / 0.01, rel=1e-5)


def test_a_mask_is_lower_than_any_logit():
    """The only other candidate lies opposite, at a logit of -100,000: a large number for infinity would win."""
    assert at_angles(CrossEntropy(COSINE, 1e-5), (0, 180), (-1, 1)) == 0


def test_is_finite_at_a_very_low_temperature():
    loss = CrossEntropy(COSINE, 1e-3)
    assert at_angles(loss, (0, 90, 180), (0, 0, 1)) == pytest.approx(2000, rel=1e-4)


def test_gradient_by_the_logits_is_softmax_minus_target():
    """By the candidates: (softmax - target) times the anchor, over the temperature."""
    rng = np.random.default_rng(4)
    anchor, candidates = unit(rng.normal(size=(1, DIMENSION))), unit(rng.normal(size=(CANDIDATES, DIMENSION)))
    targets, nothing = np.array([[-1, 2, 0, 0, 6, 0, 0]], np.float32), np.zeros(CANDIDATES, np.float32)
    _, found = gradients(CrossEntropy(COSINE, TEMPERATURE), anchor, candidates, targets, nothing, nothing)
    exponents = np.exp(candidates @ anchor[0] / TEMPERATURE)
    exponents[0] = 0
    slopes = exponents / exponents.sum() - np.maximum(targets[0], 0) / 8
    np.testing.assert_allclose(found, slopes[:, None] * anchor / TEMPERATURE, atol=1e-5)


def test_the_sampled_gradient_tends_to_the_one_over_the_whole_catalog():
    """Negatives take part with a probability of their own; the mean over many draws, by all embeddings."""
    num_items = 60
    rng = np.random.default_rng(8)
    anchors, vectors = unit(rng.normal(size=(2, DIMENSION))), unit(rng.normal(size=(num_items, DIMENSION)))
    targets = np.zeros((2, num_items), np.float32)
    targets[0, [5, 40]] = [2.0, 1.0]
    targets[1, [40, 59]] = [1.0, 0.5]
    probability = rng.uniform(0.3, 1.0, num_items).astype(np.float32)
    loss, nothing = CrossEntropy(COSINE, TEMPERATURE), np.zeros(num_items, np.float32)

    @tf.function
    def gradient(candidates, drawn, log_inclusion):
        with tf.GradientTape() as tape:
            tape.watch(candidates)
            total = tf.reduce_sum(loss(anchors, candidates, drawn, log_inclusion, nothing))
        return tape.gradient(total, candidates)

    def mean_gradient(log_inclusion, draws):
        total = np.zeros_like(vectors)
        for _ in range(draws):
            out = rng.random(num_items) > probability
            drawn = np.where(out & (targets == 0), np.float32(-1), targets)
            total += gradient(*map(tf.constant, (vectors, drawn, log_inclusion))).numpy()
        return total / draws

    whole = gradients(loss, anchors, vectors, targets, nothing, nothing)[1]
    corrected, plain = (mean_gradient(logs, 150) for logs in (np.log(probability), nothing))
    off = [np.linalg.norm(mean - whole) / np.linalg.norm(whole) for mean in (corrected, plain)]
    assert off[0] < 0.06
    assert off[1] > 3 * off[0]


# --- contrastive


class TestContrastive(LossContract):
    @pytest.fixture(params=list(DISTANCES))
    def loss(self, request):
        return Contrastive(DISTANCES[request.param], MARGIN)

    @pytest.mark.parametrize("number", [1, 2, 16], ids="{} negatives".format)
    @pytest.mark.parametrize("margin", [1.2, MARGIN], ids="margin {}".format)
    def test_agrees_with_one_pair_at_a_time(self, loss, batch, monkeypatch, number, margin):
        monkeypatch.setattr(losses, "NUM_NEGATIVES", number)
        expected = []
        for positives, negatives in each_anchor(loss.distance.name, *batch[:3]):
            total = sum(weight for weight, _ in positives)
            pull = sum(weight * d * d for weight, d in positives) / (total or 1)
            nearest = negatives[:number]
            expected.append(pull + sum(max(0, margin - d) ** 2 for d in nearest) / len(nearest))
        found = values(Contrastive(loss.distance, margin), *batch)
        np.testing.assert_allclose(found, expected, rtol=1e-4)

    def test_sampling_and_popularity_correct_no_probability(self, loss, batch):
        anchors, candidates, targets, *logs = batch
        found = values(loss, anchors, candidates, targets, *(part * 0 for part in logs))
        np.testing.assert_array_equal(found, values(loss, *batch))


@every_distance
@pytest.mark.parametrize("positive", [0, 60, 90, 180], ids="positive at {}°".format)
@pytest.mark.parametrize("negative", [0, 60, 90, 180], ids="negative at {}°".format)
def test_contrastive_at_known_angles(distance, positive, negative):
    apart = HAND[distance.name]
    expected = apart[positive] ** 2 + max(0, 1.2 - apart[negative]) ** 2
    assert at_angles(Contrastive(distance, 1.2), (positive, negative), (1, 0)) == pytest.approx(expected, abs=1e-5)


@every_distance
def test_judged_pairs_count_each_by_itself(distance):
    """One pair an anchor, and all other candidates neither."""
    loss, apart = Contrastive(distance, 1.2), HAND[distance.name]
    assert at_angles(loss, (0, 60, 90), (-1, 1, -1)) == pytest.approx(apart[60] ** 2, abs=1e-5)
    assert at_angles(loss, (0, 60, 90), (-1, 0, -1)) == pytest.approx(max(0, 1.2 - apart[60]) ** 2, abs=1e-5)


def test_a_negative_that_comes_within_the_margin_never_helps():
    """A mean over those within the margin would fall from 0.25 to 0.13."""
    loss = Contrastive(COSINE, 1.0)
    one, two = (at_angles(loss, (60, angle), (0, 0)) for angle in (90, 85))
    assert two > one


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
                far = next((other for other in negatives if other > d), negatives[-1])
            else:
                far = negatives[0]
            each = np.log(1 + np.exp(d - far)) if mining == "soft_margin" else max(0, d - far + margin)
            loss += weight / total * each
        yield loss


class TripletContract(LossContract):
    mining = "hard"

    @pytest.fixture(params=list(DISTANCES))
    def loss(self, request):
        return Triplet(DISTANCES[request.param], MARGIN, self.mining)

    @pytest.mark.parametrize("margin", [0.3, MARGIN], ids="margin {}".format)
    def test_agrees_with_one_triplet_at_a_time(self, loss, batch, margin):
        expected = list(naive_triplet(loss.distance.name, self.mining, margin, batch))
        found = values(Triplet(loss.distance, margin, self.mining), *batch)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)

    def test_an_anchor_without_positives_or_negatives_loses_nothing(self, loss, batch):
        anchors, candidates, targets, *logs = batch
        targets[0] = np.where(targets[0] == 0, -1, targets[0])
        found = values(loss, anchors, candidates, targets, *logs)
        assert found[[0, WITHOUT_POSITIVES]].tolist() == [0, 0]


class TestHardTriplet(TripletContract):
    pass


class TestSoftMarginTriplet(TripletContract):
    mining = "soft_margin"


class TestSemiHardTriplet(TripletContract):
    mining = "semi_hard"

    # another negative is the semi-hard one once the positive, or a negative, has passed it
    test_falls_when_a_positive_moves_closer = None
    test_rises_when_a_negative_moves_closer = None

    def test_of_many_positives_the_heaviest_count(self, loss, batch, monkeypatch):
        monkeypatch.setattr(losses, "NUM_POSITIVES", 1)
        anchors, candidates, targets, *logs = batch
        heaviest = np.where((targets > 0) & (targets < targets.max(axis=1, keepdims=True)), np.float32(-1), targets)
        found = values(loss, *batch)
        np.testing.assert_allclose(found, values(loss, anchors, candidates, heaviest, *logs), rtol=1e-6)


@every_distance
@pytest.mark.parametrize("mining", ["semi_hard", "hard", "soft_margin"])
@pytest.mark.parametrize("positive", [0, 60, 90, 180], ids="positive at {}°".format)
@pytest.mark.parametrize("negative", [0, 60, 90, 180], ids="negative at {}°".format)
def test_triplet_at_known_angles(distance, mining, positive, negative):
    """With one negative, all three look at that one."""
    behind = HAND[distance.name][positive] - HAND[distance.name][negative]
    expected = np.log(1 + np.exp(behind)) if mining == "soft_margin" else max(0, behind + 0.5)
    found = at_angles(Triplet(distance, 0.5, mining), (positive, negative), (1, 0))
    assert found == pytest.approx(expected, abs=1e-5)


@every_distance
@pytest.mark.parametrize(
    ("mining", "positive", "chosen"),
    [("hard", 60, 0), ("semi_hard", 60, 90), ("semi_hard", 180, 90)],
    ids=["hard: nearest", "semi-hard: nearest behind the positive", "semi-hard: farthest if none is behind"],
)
def test_which_negative_is_mined(distance, mining, positive, chosen):
    """Negatives at 0°, 30° and 90°; by Manhattan 180° is as far as 90°."""
    apart = HAND[distance.name]
    found = at_angles(Triplet(distance, 3.0, mining), (positive, 30, 90, 0), (1, 0, 0, 0))
    assert found == pytest.approx(apart[positive] - apart[chosen] + 3.0, abs=1e-5)


def test_triplets_count_by_the_weights_of_their_positives():
    """Cosine distances 1/2 and 1 against 2: 1.5 and 2 short of a margin of 3, a quarter and three quarters."""
    found = at_angles(Triplet(COSINE, 3.0, "semi_hard"), (60, 90, 180), (2, 6, 0))
    assert found == pytest.approx(0.25 * 1.5 + 0.75 * 2.0, rel=1e-6)


# --- from the config


@every_distance
def test_the_config_says_which_loss(distance):
    tower = TowerConfig(distance=distance.name)
    made = [losses.from_config(TrainConfig(loss=name), tower) for name in ("cross_entropy", "contrastive", "triplet")]
    assert made == [CrossEntropy(distance, 0.1), Contrastive(distance, 0.5), Triplet(distance, 0.5, "semi_hard")]
    tuned = TrainConfig(loss="triplet", margin=0.2, mining="hard", temperature=0.3)
    assert losses.from_config(tuned, tower) == Triplet(distance, 0.2, "hard")


def test_memory_of_manhattan_does_not_grow_with_the_dimension():
    """Traced, no tensor of anchors, candidates and dimensions is in it, nor in its gradient."""
    step = tf.function(lambda a, c: tf.gradients(losses.distances(DISTANCES["manhattan"], a, c), [a, c]))
    graph = step.get_concrete_function(tf.TensorSpec((5, 11)), tf.TensorSpec((7, 11))).graph
    bodies = [graph, *(function.graph for function in graph._functions.values() if hasattr(function, "graph"))]
    shapes = [tensor.shape for body in bodies for operation in body.get_operations() for tensor in operation.outputs]
    assert all(shape.rank is None or shape.rank < 3 for shape in shapes)
