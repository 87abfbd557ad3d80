"""Calibration agrees with naive computations: curve, thresholds, measurements and file."""

import json
import math

import numpy as np
import pytest

from recsys.data.splits import Holdout
from recsys.errors import InputError
from recsys.evaluation import calibration, calibration_fit
from recsys.evaluation.calibration import Calibration
from recsys.evaluation.calibration_fit import Half
from recsys.index.distances import DISTANCES


def fit(similarities, same, seed, precisions=(0.8, 0.9), false_positive_rates=(0.05, 0.2)):
    targets = {"precisions": precisions, "false_positive_rates": false_positive_rates}
    return calibration_fit.fit_calibration(similarities, same, seed, **targets)


def pairs(n, seed=0, digits=None):
    """Return similarities and labels of n same and n different pairs; same pairs are more similar on average."""
    rng = np.random.default_rng(seed)
    similarities = np.tanh(np.concatenate([rng.normal(0.8, 0.7, n), rng.normal(0, 0.7, n)]))
    same = np.repeat([True, False], n)
    order = rng.permutation(2 * n)
    return (similarities if digits is None else similarities.round(digits))[order], same[order]


def half(n, seed=0, digits=None):
    similarities, same = pairs(n, seed, digits)
    return Half(similarities[same], similarities[~same])


def holdout(queries, targets):
    """Return a holdout of users with two items each."""
    items = np.stack([queries, targets], axis=1).ravel().astype(np.int32)
    starts = np.arange(0, len(items), 2)
    return Holdout(items, starts, starts + 1)


def pooled(half):
    """Return {similarity: probability} by a naive pool-adjacent-violators algorithm."""
    outcomes = {}
    for value, outcome in [(v, 1) for v in half.same.tolist()] + [(v, 0) for v in half.different.tolist()]:
        outcomes.setdefault(value, []).append(outcome)
    blocks = []
    for value in sorted(outcomes):
        blocks.append(([value], outcomes[value]))
        while len(blocks) > 1 and np.mean(blocks[-2][1]) >= np.mean(blocks[-1][1]):
            (values, labels), (next_values, next_labels) = blocks[-2:]
            blocks[-2:] = [(values + next_values, labels + next_labels)]
    return {value: sum(labels) / len(labels) for values, labels in blocks for value in values}


# --- the curve


@pytest.mark.parametrize("digits", [None, 1], ids=["distinct", "with ties"])
@pytest.mark.parametrize("seed", range(5))
def test_curve_agrees_with_pooling_adjacent_violators(seed, digits):
    sample = half(60, seed, digits)
    knots, probabilities = calibration_fit.isotonic_curve(sample)
    expected = pooled(sample)
    assert np.interp(list(expected), knots, probabilities) == pytest.approx(list(expected.values()), abs=1e-12)
    assert len(knots) < len(expected)


@pytest.mark.parametrize("seed", range(5))
def test_probability_never_decreases_with_similarity(seed):
    fitted = fit(*pairs(200, seed), seed)
    probabilities = fitted.to_probabilities(np.linspace(-2, 2, 5_000))
    assert (np.diff(probabilities) >= 0).all()
    assert probabilities.min() >= 0
    assert probabilities.max() <= 1
    assert fitted.probability(0.3) == fitted.to_probabilities([0.3])[0]


def test_separates_similarities_that_differ_in_the_last_digits():
    """Trained towers put most similarities above 0.99."""
    similarities, same = pairs(500)
    fitted = fit(similarities, same, 0)
    saturated = fit(1 - (1 - similarities) * 1e-9, same, 0)
    assert saturated.auc == fitted.auc
    assert len(saturated.similarities) == len(fitted.similarities)
    for threshold, expected in zip(saturated.thresholds, fitted.thresholds, strict=True):
        assert (1 - threshold.similarity) / 1e-9 == pytest.approx(1 - expected.similarity, rel=1e-4)


# --- thresholds


@pytest.mark.parametrize("digits", [None, 1], ids=["distinct", "with ties"])
@pytest.mark.parametrize("seed", range(5))
def test_thresholds_are_the_lowest_that_reach_their_target(seed, digits):
    sample = half(80, seed, digits)
    same, different = sample.same.tolist(), sample.different.tolist()
    values = sorted({*same, *different})

    def count_from(similarities, threshold):
        return sum(value >= threshold for value in similarities)

    for target in (0.55, 0.7, 0.8, 0.9, 0.99):
        precise = [
            t
            for t in values
            if count_from(same, t) + count_from(different, t) >= calibration_fit.MIN_PREDICTED
            and count_from(same, t) / (count_from(same, t) + count_from(different, t)) >= target
        ]
        assert calibration_fit.precision_threshold(sample, target) == (min(precise) if precise else None)
    for target in (0.001, 0.01, 0.05, 0.3, 0.9):
        rare = [t for t in values if count_from(different, t) / len(different) <= target]
        assert calibration_fit.false_positive_threshold(sample, target) == (min(rare) if rare else None)


def test_precision_thresholds_need_enough_pairs():
    sample = Half(np.array([1.0] + [0.0] * 19), np.linspace(0.0, 0.5, 20))
    assert calibration_fit.precision_threshold(sample, 0.9) is None


def test_threshold_of_an_unreachable_target_is_null():
    """All pairs are equally similar, so a threshold selects all of them or none."""
    fitted = fit(np.full(100, 0.99), np.repeat([True, False], 50), 0)
    assert {threshold.similarity for threshold in fitted.thresholds} == {None}
    assert {threshold.measured for threshold in fitted.thresholds} == {None}
    assert (fitted.probability(0.5), fitted.auc) == (0.5, 0.5)
    with pytest.raises(InputError, match=r"it has none\. Received: 0\.9, which no similarity reaches"):
        fitted.threshold(precision=0.9)
    with pytest.raises(InputError, match=r"probability must be .* which no similarity reaches"):
        fitted.threshold()


def test_default_threshold_has_probability_one_half():
    fitted = fit(*pairs(500), 0)
    threshold = fitted.threshold()
    assert (threshold.name, threshold.target) == ("probability 0.5", 0.5)
    assert fitted.probability(threshold.similarity) == pytest.approx(0.5, abs=1e-9)
    assert fitted.probability(threshold.similarity - 1e-6) < 0.5


def test_selects_a_threshold_by_its_target():
    fitted = fit(*pairs(500), 0)
    assert (fitted.threshold(precision=0.9).rule, fitted.threshold(precision=0.9).target) == ("precision", 0.9)
    assert fitted.threshold(false_positive_rate=0.05).name == "false-positive rate 0.05"
    with pytest.raises(InputError, match=r"precision must be .* calibrated for: 0\.8, 0\.9\. Received: 0\.85\."):
        fitted.threshold(precision=0.85)
    with pytest.raises(InputError, match=r"false-positive rate must be .* for: 0\.05, 0\.2\. Received: 0\.9\."):
        fitted.threshold(false_positive_rate=0.9)
    with pytest.raises(InputError, match=r"both, 0\.9 and 0\.05"):
        fitted.threshold(precision=0.9, false_positive_rate=0.05)


# --- measurements


def test_measures_on_held_out_pairs():
    """Without a signal, a threshold looks precise on the pairs that selected it, but not on other pairs."""
    measured = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        fitted = fit(rng.random(200), np.repeat([True, False], 100), seed, (0.65,))
        assert (fitted.fitted_pairs, fitted.measured_pairs) == (100, 100)
        (threshold,) = [candidate for candidate in fitted.thresholds if candidate.rule == "precision"]
        if threshold.measured and threshold.measured.precision:
            measured.append(threshold.measured.precision.value)
    assert len(measured) > 5
    assert np.mean(measured) == pytest.approx(0.5, abs=0.1)


def test_threshold_metrics_agree_with_counts():
    sample = Half(np.array([0.1, 0.5, 0.7, 0.9]), np.array([0.0, 0.2, 0.5, 0.3, 0.1]))
    measured = calibration_fit.measure_threshold(sample, 0.5)
    assert measured.precision.value == 3 / 4
    assert measured.recall.value == 3 / 4
    assert measured.false_positive_rate.value == 1 / 5
    assert measured.accuracy.value == 7 / 9
    assert calibration_fit.measure_threshold(sample, 1.0).precision is None


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("digits", [None, 1], ids=["distinct", "with ties"])
def test_auc_agrees_with_counting_pairs(seed, digits):
    sample = half(40, seed, digits)
    wins = sum((a > b) + (a == b) / 2 for a in sample.same.tolist() for b in sample.different.tolist())
    assert calibration_fit.auc(sample) == pytest.approx(wins / 1_600)


@pytest.mark.parametrize("seed", range(3))
def test_calibration_error_agrees_with_ten_bins(seed):
    rng = np.random.default_rng(seed)
    probabilities = np.append(rng.random(300), [0.0, 0.1, 0.2, 0.3, 0.6, 0.7, 0.9, 1.0])
    same = rng.random(308) < probabilities**2
    error = 0.0
    for number in range(10):
        inside = [
            (p, s)
            for p, s in zip(probabilities.tolist(), same.tolist(), strict=True)
            if number / 10 < p <= (number + 1) / 10 or (p == number == 0)
        ]
        if inside:
            share = sum(s for _, s in inside) / len(inside)
            error += len(inside) / 308 * abs(share - sum(p for p, _ in inside) / len(inside))
    assert calibration_fit.expected_calibration_error(probabilities, same) == pytest.approx(error, abs=1e-12)


@pytest.mark.parametrize(("share", "total"), [(0.5, 40), (0.9, 40), (0.02, 50), (0.99, 300)])
def test_share_intervals_have_95_percent_coverage(share, total):
    hits = np.random.default_rng(0).binomial(total, share, 1_000)
    inside = [
        calibration_fit.estimate_share(int(h), total).low <= share <= calibration_fit.estimate_share(int(h), total).high
        for h in hits
    ]
    assert 0.91 <= np.mean(inside) <= 0.99


def test_share_of_zero_has_an_interval():
    """The upper end of Wilson's interval of 0 of n is z² / (n + z²)."""
    assert calibration_fit.estimate_share(0, 50).low == 0
    assert calibration_fit.estimate_share(0, 50).high == pytest.approx(1.96**2 / (50 + 1.96**2), rel=1e-3)
    assert calibration_fit.estimate_share(50, 50).high == 1


@pytest.mark.slow
@pytest.mark.parametrize("overconfident", [False, True], ids=["calibrated", "overconfident"])
def test_calibration_error_interval_covers_the_true_error(overconfident):
    """Pairs with probability p are the same with frequency p, or (p + 1/2) / 2 if overconfident."""
    levels = np.arange(0.05, 1, 0.1)
    true = (levels + 0.5) / 2 if overconfident else levels
    expected = float(np.abs(levels - true).mean())
    pairs = 400
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(100):
        # by Bayes' rule, the levels of same pairs are distributed in proportion to their frequency
        same = rng.choice(levels, pairs, p=true / true.sum())
        different = rng.choice(levels, pairs, p=(1 - true) / (1 - true).sum())
        estimate = calibration_fit._calibration_error(np.stack([same, different]), rng)
        inside.append(estimate.low <= expected <= estimate.high)
    assert np.mean(inside) >= 0.88


def test_calibration_error_is_small_and_within_its_interval():
    error = fit(*pairs(5_000), 0).expected_calibration_error
    assert error.low <= error.value <= error.high
    assert error.value < 0.03


# --- pairs


def test_fewer_than_twenty_pairs_give_no_calibration():
    similarities, same = pairs(19)
    assert fit(similarities, same, 0) is None
    assert fit(np.append(similarities, 0.5), np.append(same, True), 0) is None
    assert fit(*pairs(20), 0).fitted_pairs == 20


def test_balances_the_classes():
    """The probability must not depend on the proportion of the labels."""
    rng = np.random.default_rng(0)
    similarities, same = (
        np.append(rng.normal(0.3, 0.2, 900), rng.normal(0, 0.2, 100)),
        np.repeat([True, False], [900, 100]),
    )
    fitted = fit(similarities, same, 0)
    assert (fitted.fitted_pairs, fitted.measured_pairs) == (100, 100)
    assert 0 < fitted.threshold().similarity < 0.3


def test_seed_determines_the_calibration():
    assert fit(*pairs(300), 7) == fit(*pairs(300), 7)
    assert fit(*pairs(300), 7) != fit(*pairs(300), 8)


@pytest.mark.parametrize("seed", range(5))
def test_different_pairs_are_not_pairs_of_any_user(seed):
    rng = np.random.default_rng(seed)
    queries, targets = rng.integers(0, 30, (2, 200))
    sampled = calibration_fit.sample_pairs(holdout(queries, targets), seed)
    true = {frozenset(pair) for pair in zip(queries.tolist(), targets.tolist(), strict=True)}
    first, second, same = sampled.first.tolist(), sampled.second.tolist(), sampled.same.tolist()
    same_pairs = [pair for *pair, is_same in zip(first, second, same, strict=True) if is_same]
    different_pairs = [pair for *pair, is_same in zip(first, second, same, strict=True) if not is_same]
    assert same_pairs == [[a, b] for a, b in zip(queries.tolist(), targets.tolist(), strict=True) if a != b]
    assert len(different_pairs) == len(same_pairs)
    assert not [pair for pair in different_pairs if frozenset(pair) in true or pair[0] == pair[1]]
    assert [a for a, _ in different_pairs] == [a for a, _ in same_pairs]
    assert {b for _, b in different_pairs} <= set(targets.tolist())
    assert [array.dtype for array in sampled] == [np.int32, np.int32, np.bool_]


def test_both_classes_have_the_same_popularity():
    """Items are drawn by popularity only; some are a hundred times as popular as others."""
    rng = np.random.default_rng(0)
    weights = 1 / np.sqrt(np.arange(1, 10_001))
    queries, targets = rng.choice(10_000, (2, 5_000), p=weights / weights.sum())
    sampled = calibration_fit.sample_pairs(holdout(queries, targets), 0)
    popularity = np.bincount(targets, minlength=10_000)[sampled.second]
    assert popularity[sampled.same].mean() == pytest.approx(popularity[~sampled.same].mean(), rel=0.05)


@pytest.mark.parametrize("users", [0, 1, 5])
def test_no_calibration_if_all_users_have_the_same_items(users):
    sampled = calibration_fit.sample_pairs(holdout(np.zeros(users), np.ones(users)), 0)
    assert sampled.same.all()
    assert len(sampled.same) == users
    assert fit(np.ones(users), sampled.same, 0) is None


@pytest.mark.parametrize("name", sorted(DISTANCES))
def test_similarities_of_pairs_agree_with_the_distance(name):
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 50, 7)).astype(np.float32)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second /= np.linalg.norm(second, axis=1, keepdims=True)
    expected = [
        {
            "cosine": sum(x * y for x, y in zip(a, b, strict=True)),
            "euclidean": 1 / (1 + math.dist(a, b)),
            "manhattan": 1 / (1 + sum(abs(x - y) for x, y in zip(a, b, strict=True))),
        }[name]
        for a, b in zip(first.tolist(), second.tolist(), strict=True)
    ]
    similarities = calibration.similarities(DISTANCES[name], first, second)
    assert similarities.dtype == np.float64
    assert similarities == pytest.approx(expected, abs=1e-6)
    assert calibration.similarities(DISTANCES[name], first, first).tolist() == [1.0] * 50


# --- file


def test_file_preserves_all_digits(tmp_path):
    fitted = fit(*pairs(300), 0)
    calibration.save(fitted, tmp_path / "calibration.json")
    loaded = calibration.load(tmp_path / "calibration.json")
    assert loaded == fitted
    assert loaded.similarities == fitted.similarities
    assert loaded.threshold(precision=0.8).similarity == fitted.threshold(precision=0.8).similarity


def test_saves_the_reason_for_no_calibration(tmp_path):
    calibration.save(None, tmp_path / "calibration.json", "too few pairs")
    assert "too few pairs" in (tmp_path / "calibration.json").read_text()
    assert calibration.load(tmp_path / "calibration.json") is None


def damaged(**changed):
    content = fit(*pairs(300), 0).model_dump(mode="json")
    return json.dumps({"calibration": {**content, **changed}})


def without(key):
    content = json.loads(damaged())
    del content["calibration"][key]
    return json.dumps(content)


UNMEASURED = {"rule": "precision", "target": 0.9, "similarity": 0.5, "measured": None}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "JSONDecodeError"),
        ("[]", "TypeError"),
        ("{}", "KeyError"),
        ('{"calibration": 1}', "Input should be"),
        (damaged(similarities=[0.1, 0.2]), "the same length"),
        (damaged(similarities=[], probabilities=[]), "similarities: .*at least 1"),
        (damaged(similarities=[0.2, 0.1], probabilities=[0, 1]), "similarities must ascend"),
        (damaged(similarities=[0.1, 0.1], probabilities=[0, 1]), "similarities must ascend"),
        (damaged(similarities=[0.1, 0.2], probabilities=[0.8, 0.3]), "probabilities must not descend"),
        (damaged(similarities=[0.1, 0.2], probabilities=[0.8, 1.3]), "probabilities.1: .*less than or equal to 1"),
        (damaged(similarities=[0.1, math.nan], probabilities=[0.1, 0.3]), "similarities.1: .*finite"),
        (damaged(similarities=[0.1, "0.2"], probabilities=[0.1, 0.3]), "similarities.1: .*number"),
        (damaged(fitted_pairs=0), "fitted_pairs"),
        (damaged(auc=2), "auc"),
        (damaged(thresholds=[]), "must include the one of probability 0.5"),
        (damaged(thresholds=[UNMEASURED]), "both be set, or both be null"),
        (damaged(surprise=1), "surprise"),
        (without("expected_calibration_error"), "expected_calibration_error: Field required"),
    ],
)
def test_rejects_a_damaged_file(tmp_path, content, message):
    (tmp_path / "calibration.json").write_text(content)
    with pytest.raises(InputError, match=rf"calibration must be .*calibration\.json: .*{message}"):
        calibration.load(tmp_path / "calibration.json")


def test_rejects_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="FileNotFoundError"):
        calibration.load(tmp_path / "calibration.json")


def test_fit_returns_a_calibration():
    assert isinstance(fit(*pairs(300), 0), Calibration)
