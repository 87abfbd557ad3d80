"""Calibration against plain counting: the curve, the thresholds, what they are measured by, and the file."""

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
    """Similarities of n pairs that belong together and n others, the former larger on the whole."""
    rng = np.random.default_rng(seed)
    similarities = np.tanh(np.concatenate([rng.normal(0.8, 0.7, n), rng.normal(0, 0.7, n)]))
    same = np.repeat([True, False], n)
    order = rng.permutation(2 * n)
    return (similarities if digits is None else similarities.round(digits))[order], same[order]


def half(n, seed=0, digits=None):
    similarities, same = pairs(n, seed, digits)
    return Half(similarities[same], similarities[~same])


def holdout(queries, targets):
    """Users who touched two items each."""
    items = np.stack([queries, targets], axis=1).ravel().astype(np.int32)
    starts = np.arange(0, len(items), 2)
    return Holdout(items, starts, starts + 1)


def pooled(half):
    """Pool adjacent violators, by the book: {similarity: probability}."""
    outcomes = {}
    for value, outcome in [(v, 1) for v in half.same.tolist()] + [(v, 0) for v in half.different.tolist()]:
        outcomes.setdefault(value, []).append(outcome)
    blocks = []
    for value in sorted(outcomes):
        blocks.append(([value], outcomes[value]))
        while len(blocks) > 1 and np.mean(blocks[-2][1]) >= np.mean(blocks[-1][1]):
            (values, seen), (more, others) = blocks[-2:]
            blocks[-2:] = [(values + more, seen + others)]
    return {value: sum(seen) / len(seen) for values, seen in blocks for value in values}


# --- the curve


@pytest.mark.parametrize("digits", [None, 1], ids=["all different", "with ties"])
@pytest.mark.parametrize("seed", range(5))
def test_the_curve_agrees_with_pooling_adjacent_violators(seed, digits):
    chosen = half(60, seed, digits)
    knots, probabilities = calibration_fit.isotonic_curve(chosen)
    expected = pooled(chosen)
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
    for one, other in zip(saturated.thresholds, fitted.thresholds, strict=True):
        assert (1 - one.similarity) / 1e-9 == pytest.approx(1 - other.similarity, rel=1e-4)


# --- thresholds


@pytest.mark.parametrize("digits", [None, 1], ids=["all different", "with ties"])
@pytest.mark.parametrize("seed", range(5))
def test_thresholds_are_the_smallest_that_reach_their_target(seed, digits):
    chosen = half(80, seed, digits)
    same, others = chosen.same.tolist(), chosen.different.tolist()
    values = sorted({*same, *others})

    def called(heap, threshold):
        return sum(value >= threshold for value in heap)

    for wanted in (0.55, 0.7, 0.8, 0.9, 0.99):
        precise = [
            t
            for t in values
            if called(same, t) + called(others, t) >= calibration_fit.MIN_PREDICTED
            and called(same, t) / (called(same, t) + called(others, t)) >= wanted
        ]
        assert calibration_fit.precision_threshold(chosen, wanted) == (min(precise) if precise else None)
    for wanted in (0.001, 0.01, 0.05, 0.3, 0.9):
        rare = [t for t in values if called(others, t) / len(others) <= wanted]
        assert calibration_fit.false_positive_threshold(chosen, wanted) == (min(rare) if rare else None)


def test_precision_thresholds_need_enough_pairs():
    chosen = Half(np.array([1.0] + [0.0] * 19), np.linspace(0.0, 0.5, 20))
    assert calibration_fit.precision_threshold(chosen, 0.9) is None


def test_an_unreachable_target_is_null_and_an_error():
    """All pairs are equally similar: whatever the threshold, all are called the same, or none."""
    fitted = fit(np.full(100, 0.99), np.repeat([True, False], 50), 0)
    assert {threshold.similarity for threshold in fitted.thresholds} == {None}
    assert {threshold.measured for threshold in fitted.thresholds} == {None}
    assert (fitted.probability(0.5), fitted.auc) == (0.5, 0.5)
    with pytest.raises(InputError, match=r"it has none\. Received: 0\.9, which no similarity reaches"):
        fitted.threshold(precision=0.9)
    with pytest.raises(InputError, match=r"probability must be .* which no similarity reaches"):
        fitted.threshold()


def test_the_default_threshold_has_probability_one_half():
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


# --- what is measured


def test_measures_on_other_pairs_than_it_fits():
    """Without any signal a threshold looks precise on the pairs that chose it, and on others it is not."""
    measured = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        fitted = fit(rng.random(200), np.repeat([True, False], 100), seed, (0.65,))
        assert (fitted.fitted_pairs, fitted.measured_pairs) == (100, 100)
        (threshold,) = [each for each in fitted.thresholds if each.rule == "precision"]
        if threshold.measured and threshold.measured.precision:
            measured.append(threshold.measured.precision.value)
    assert len(measured) > 5
    assert np.mean(measured) == pytest.approx(0.5, abs=0.1)


def test_a_threshold_is_measured_by_counting():
    chosen = Half(np.array([0.1, 0.5, 0.7, 0.9]), np.array([0.0, 0.2, 0.5, 0.3, 0.1]))
    measured = calibration_fit.measure_threshold(chosen, 0.5)
    assert measured.precision.value == 3 / 4
    assert measured.recall.value == 3 / 4
    assert measured.false_positive_rate.value == 1 / 5
    assert measured.accuracy.value == 7 / 9
    assert calibration_fit.measure_threshold(chosen, 1.0).precision is None


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("digits", [None, 1], ids=["all different", "with ties"])
def test_auc_agrees_with_counting_pairs(seed, digits):
    chosen = half(40, seed, digits)
    wins = sum((a > b) + (a == b) / 2 for a in chosen.same.tolist() for b in chosen.different.tolist())
    assert calibration_fit.auc(chosen) == pytest.approx(wins / 1_600)


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


def test_a_share_of_zero_has_an_interval():
    """Wilson's interval of 0 of n ends at z² / (n + z²)."""
    assert calibration_fit.estimate_share(0, 50).low == 0
    assert calibration_fit.estimate_share(0, 50).high == pytest.approx(1.96**2 / (50 + 1.96**2), rel=1e-3)
    assert calibration_fit.estimate_share(50, 50).high == 1


@pytest.mark.parametrize("bent", [False, True], ids=["calibrated", "overconfident"])
def test_calibration_error_interval_covers_the_true_error(bent):
    """Probabilities p that come true with p, or halfway between p and 1/2, at 0.05, 0.15, … 0.95."""
    levels = np.arange(0.05, 1, 0.1)
    true = (levels + 0.5) / 2 if bent else levels
    expected = float(np.abs(levels - true).mean())
    pairs = 400
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(100):
        # given that it is the same, a pair has a level in proportion to how often the level comes true
        same = rng.choice(levels, pairs, p=true / true.sum())
        others = rng.choice(levels, pairs, p=(1 - true) / (1 - true).sum())
        estimate = calibration_fit._calibration_error(np.stack([same, others]), rng)
        inside.append(estimate.low <= expected <= estimate.high)
    assert np.mean(inside) >= 0.88


def test_a_good_curve_has_a_small_error_with_an_interval():
    error = fit(*pairs(5_000), 0).expected_calibration_error
    assert error.low <= error.value <= error.high
    assert error.value < 0.03


# --- which pairs


def test_fewer_than_twenty_pairs_give_no_calibration():
    similarities, same = pairs(19)
    assert fit(similarities, same, 0) is None
    assert fit(np.append(similarities, 0.5), np.append(same, True), 0) is None
    assert fit(*pairs(20), 0).fitted_pairs == 20


def test_balances_the_classes():
    """Labeled pairs may be of any proportion; a probability always means the same."""
    rng = np.random.default_rng(0)
    similarities, same = (
        np.append(rng.normal(0.3, 0.2, 900), rng.normal(0, 0.2, 100)),
        np.repeat([True, False], [900, 100]),
    )
    fitted = fit(similarities, same, 0)
    assert (fitted.fitted_pairs, fitted.measured_pairs) == (100, 100)
    assert 0 < fitted.threshold().similarity < 0.3


def test_the_same_seed_gives_the_same_calibration():
    assert fit(*pairs(300), 7) == fit(*pairs(300), 7)
    assert fit(*pairs(300), 7) != fit(*pairs(300), 8)


@pytest.mark.parametrize("seed", range(5))
def test_different_pairs_belong_together_for_no_user(seed):
    rng = np.random.default_rng(seed)
    queries, targets = rng.integers(0, 30, (2, 200))
    judged = calibration_fit.sample_pairs(holdout(queries, targets), seed)
    true = {frozenset(pair) for pair in zip(queries.tolist(), targets.tolist(), strict=True)}
    first, second, same = judged.first.tolist(), judged.second.tolist(), judged.same.tolist()
    together = [pair for *pair, is_same in zip(first, second, same, strict=True) if is_same]
    others = [pair for *pair, is_same in zip(first, second, same, strict=True) if not is_same]
    assert together == [[a, b] for a, b in zip(queries.tolist(), targets.tolist(), strict=True) if a != b]
    assert len(others) == len(together)
    assert not [pair for pair in others if frozenset(pair) in true or pair[0] == pair[1]]
    assert [a for a, _ in others] == [a for a, _ in together]
    assert {b for _, b in others} <= set(targets.tolist())
    assert [array.dtype for array in judged] == [np.int32, np.int32, np.bool_]


def test_both_classes_have_the_same_popularity():
    """Touched by popularity alone, some items a hundred times as often as others."""
    rng = np.random.default_rng(0)
    weights = 1 / np.sqrt(np.arange(1, 10_001))
    queries, targets = rng.choice(10_000, (2, 5_000), p=weights / weights.sum())
    judged = calibration_fit.sample_pairs(holdout(queries, targets), 0)
    popularity = np.bincount(targets, minlength=10_000)[judged.second]
    assert popularity[judged.same].mean() == pytest.approx(popularity[~judged.same].mean(), rel=0.05)


@pytest.mark.parametrize("users", [0, 1, 5])
def test_there_can_be_no_different_pairs(users):
    judged = calibration_fit.sample_pairs(holdout(np.zeros(users), np.ones(users)), 0)
    assert judged.same.all()
    assert len(judged.same) == users
    assert fit(np.ones(users), judged.same, 0) is None


@pytest.mark.parametrize("name", sorted(DISTANCES))
def test_similarities_of_pairs_agree_with_the_distance(name):
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 50, 7)).astype(np.float32)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second /= np.linalg.norm(second, axis=1, keepdims=True)
    wide = [
        {
            "cosine": sum(x * y for x, y in zip(a, b, strict=True)),
            "euclidean": 1 / (1 + math.dist(a, b)),
            "manhattan": 1 / (1 + sum(abs(x - y) for x, y in zip(a, b, strict=True))),
        }[name]
        for a, b in zip(first.tolist(), second.tolist(), strict=True)
    ]
    found = calibration.similarities(DISTANCES[name], first, second)
    assert found.dtype == np.float64
    assert found == pytest.approx(wide, abs=1e-6)
    assert calibration.similarities(DISTANCES[name], first, first).tolist() == [1.0] * 50


# --- the file


def test_the_file_keeps_every_digit(tmp_path):
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
    ("content", "told"),
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
def test_rejects_a_damaged_file(tmp_path, content, told):
    (tmp_path / "calibration.json").write_text(content)
    with pytest.raises(InputError, match=rf"calibration must be .*calibration\.json: .*{told}"):
        calibration.load(tmp_path / "calibration.json")


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="FileNotFoundError"):
        calibration.load(tmp_path / "calibration.json")


def test_a_calibration_is_what_serving_reads():
    assert isinstance(fit(*pairs(300), 0), Calibration)
