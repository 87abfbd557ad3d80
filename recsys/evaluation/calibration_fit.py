"""Fit a calibration on labeled pairs of items.

One half of the pairs is used to fit the curve and choose the thresholds, the other half to measure both: measured on
the pairs that it was chosen on, a threshold would look better than it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recsys.data.splits import Holdout
from recsys.evaluation.calibration import EVEN_ODDS, Calibration, Estimate, Rule, Threshold, ThresholdMetrics

MIN_PAIRS = 20
"""Smallest number of pairs that belong together, and of pairs that do not; half of them are for measuring."""
MIN_PREDICTED = 10
"""Smallest number of predicted pairs of a precision threshold: the precision of a single pair is 0 or 1."""
DRAWS = 20
"""Maximum number of draws of another target for a query, while the drawn one belongs to it."""
BINS = 10
RESAMPLES = 1_000
Z = 1.959963984540054
"""Two-sided 95% quantile of the normal distribution."""

Similarities = NDArray[np.float64]


PRECISIONS = (0.8, 0.9, 0.95)
"""Precisions that a release has a threshold for: `recsys verify --precision`."""
FALSE_POSITIVE_RATES = (0.01, 0.05)
"""False-positive rates that a release has a threshold for: `recsys verify --false-positive-rate`."""


class CalibrationPairs(NamedTuple):
    """Pairs of items with labels."""

    first: NDArray[np.int32]
    """Item numbers, int32 [n]."""
    second: NDArray[np.int32]
    """Item numbers, int32 [n]."""
    same: NDArray[np.bool_]
    """Whether they belong together, bool [n]."""


class Half(NamedTuple):
    """Similarities of n pairs that belong together and n pairs that do not, float64 [n] each."""

    same: Similarities
    different: Similarities


def sample_pairs(holdout: Holdout, seed: int) -> CalibrationPairs:
    """Sample pairs from held-out interactions: each query with its target, and with the target of another user.

    Both classes have the same queries and, except for excluded pairs, the same targets, so that popularity alone
    cannot separate them. Pairs of an item with itself are excluded, and from the different pairs those that belong
    together for some user of the holdout. Pairs of the training data are not excluded: in dense data almost every
    pair of popular items occurs there, and without them the different pairs would be pairs of rare items.
    """
    queries, targets = holdout.queries.astype(np.int64), holdout.targets.astype(np.int64)
    distinct = queries != targets
    queries, targets = queries[distinct], targets[distinct]
    size = int(max(queries.max(initial=0), targets.max(initial=0))) + 1

    def keys(partners: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        first, second = queries[rows], partners[rows]
        return np.asarray(np.minimum(first, second) * size + np.maximum(first, second), np.int64)

    def same_rows(rows: NDArray[np.int64]) -> NDArray[np.int64]:
        is_same = (queries[rows] == drawn[rows]) | np.isin(keys(drawn, rows), same_keys)
        return np.asarray(rows[is_same], np.int64)

    all_rows = np.arange(len(queries))
    same_keys = np.unique(keys(targets, all_rows))
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(targets)
    redraw = same_rows(all_rows)
    for _ in range(DRAWS):
        drawn[redraw] = rng.choice(targets, len(redraw))
        redraw = same_rows(redraw)
    different = np.setdiff1d(all_rows, redraw)
    return CalibrationPairs(
        np.concatenate([queries, queries[different]]).astype(np.int32),
        np.concatenate([targets, drawn[different]]).astype(np.int32),
        np.repeat([True, False], [len(queries), len(different)]),
    )


def fit_calibration(
    similarities: Similarities,
    same: NDArray[np.bool_],
    seed: int,
    *,
    precisions: Sequence[float] = PRECISIONS,
    false_positive_rates: Sequence[float] = FALSE_POSITIVE_RATES,
) -> Calibration | None:
    """Fit curve and thresholds on one half of the pairs, and measure them on the other half.

    Args:
        similarities: of the pairs, float64 [n], not rounded: many can differ only in their last digits.
        same: whether each pair belongs together, bool [n]. A random part of the larger class is left out, so
            that both classes are equally large.
        seed: of the split and of the bootstrap.
        precisions: precisions to choose thresholds for.
        false_positive_rates: false-positive rates to choose thresholds for.

    Returns:
        The calibration, or None if a class has fewer than `MIN_PAIRS` pairs.
    """
    rng = np.random.default_rng(seed)
    classes = [rng.permutation(similarities[label].astype(np.float64)) for label in (same, ~same)]
    pairs = min(map(len, classes))
    if pairs < MIN_PAIRS:
        return None
    middle = pairs // 2
    fitting, measuring = Half(*(each[:middle] for each in classes)), Half(*(each[middle:pairs] for each in classes))
    knots, probabilities = isotonic_curve(fitting)
    thresholds: list[tuple[Rule, float, float | None]] = [
        ("probability", EVEN_ODDS, even_odds_threshold(knots, probabilities))
    ]
    thresholds += [("precision", target, precision_threshold(fitting, target)) for target in precisions]
    thresholds += [
        ("false_positive_rate", target, false_positive_threshold(fitting, target)) for target in false_positive_rates
    ]
    return Calibration(
        similarities=tuple(knots.tolist()),
        probabilities=tuple(probabilities.tolist()),
        fitted_pairs=2 * middle,
        measured_pairs=2 * (pairs - middle),
        expected_calibration_error=_calibration_error(np.interp(np.stack(measuring), knots, probabilities), rng),
        auc=auc(measuring),
        thresholds=tuple(
            Threshold(
                rule=rule,
                target=target,
                similarity=similarity,
                measured=None if similarity is None else measure_threshold(measuring, similarity),
            )
            for rule, target, similarity in thresholds
        ),
    )


def isotonic_curve(half: Half) -> tuple[Similarities, NDArray[np.float64]]:
    """Return the knots of the isotonic regression: similarities, ascending, and probabilities, float64 [knots] each.

    The least-squares fit among all non-decreasing curves (Barlow et al., 1972; Zadrozny and Elkan, "Transforming
    classifier scores into accurate multiclass probability estimates", KDD 2002). Equal similarities
    are merged.
    """
    values, group = np.unique(np.concatenate(half), return_inverse=True)
    pairs = np.bincount(group)
    shares = np.bincount(group[: len(half.same)], minlength=len(values)) / pairs
    from scipy.optimize import isotonic_regression  # noqa: PLC0415 - slow to import

    fitted = isotonic_regression(shares, weights=pairs)
    knots = np.unique([fitted.blocks[:-1], fitted.blocks[1:] - 1])  # both ends of each constant segment
    return values[knots], np.clip(fitted.x[knots], 0, 1)


def even_odds_threshold(knots: Similarities, probabilities: NDArray[np.float64]) -> float | None:
    """Return the smallest similarity whose probability is one half; None if the curve is constant."""
    above = int(np.argmax(probabilities >= EVEN_ODDS))
    if above == 0:  # half of the pairs belong together: a curve that starts at one half is constant
        return None
    (low, high), (start, end) = knots[above - 1 : above + 1].tolist(), probabilities[above - 1 : above + 1].tolist()
    return float(min(low + (EVEN_ODDS - start) / (end - start) * (high - low), high))


def precision_threshold(half: Half, target: float) -> float | None:
    """Return the smallest threshold with a precision of at least `target`, over at least `MIN_PREDICTED` pairs."""
    thresholds, same, different = _predicted(half)
    predicted = same + different
    return _smallest(thresholds, (same / predicted >= target) & (predicted >= MIN_PREDICTED))


def false_positive_threshold(half: Half, target: float) -> float | None:
    """Return the smallest threshold with a false-positive rate of at most `target`."""
    thresholds, _, different = _predicted(half)
    return _smallest(thresholds, different / len(half.different) <= target)


def measure_threshold(half: Half, threshold: float) -> ThresholdMetrics:
    """Return the error rates of a threshold on these pairs."""
    true_positives = int((half.same >= threshold).sum())
    false_positives = int((half.different >= threshold).sum())
    predicted, same, different = true_positives + false_positives, len(half.same), len(half.different)
    return ThresholdMetrics(
        precision=estimate_share(true_positives, predicted) if predicted else None,
        recall=estimate_share(true_positives, same),
        false_positive_rate=estimate_share(false_positives, different),
        accuracy=estimate_share(true_positives + different - false_positives, same + different),
    )


def estimate_share(hits: int, total: int) -> Estimate:
    """Return a share with its Wilson interval, which is valid for shares near 0 and 1 too.

    The bootstrap interval of 0 of 50 would be [0, 0]. (Wilson, JASA 22, 1927; recommended by Brown, Cai and DasGupta,
    "Interval estimation for a binomial proportion", Statistical Science 16, 2001.)
    """
    value = hits / total
    center = (value + Z**2 / (2 * total)) / (1 + Z**2 / total)
    half_width = Z / (1 + Z**2 / total) * float(np.sqrt(value * (1 - value) / total + Z**2 / (4 * total**2)))
    # rounding can move the bounds beyond the value
    return Estimate(
        value=value, low=min(max(center - half_width, 0.0), value), high=max(min(center + half_width, 1.0), value)
    )


def auc(half: Half) -> float:
    """Return the area under the ROC curve: the Mann-Whitney statistic of the two classes, ties counting one half."""
    same, different = len(half.same), len(half.different)
    from scipy.stats import rankdata  # noqa: PLC0415 - slow to import

    ranks = rankdata(np.concatenate(half))[:same].sum()
    return float((ranks - same * (same + 1) / 2) / (same * different))


def expected_calibration_error(probabilities: NDArray[np.float64], same: NDArray[np.bool_]) -> float:
    """Return the expected calibration error: sum over bins of pairs / n * |frequency - mean probability|.

    Ten bins of equal width, each including its upper edge (Naeini, Cooper and Hauskrecht, "Obtaining well calibrated
    probabilities using Bayesian binning", AAAI 2015; Guo et al., "On calibration of modern neural networks", ICML
    2017, equation 3).

    Args:
        probabilities: float64 [n].
        same: bool [n].
    """
    return float(np.abs(_gaps(probabilities, same, _bins(probabilities))).sum())


def _bins(probabilities: NDArray[np.float64]) -> NDArray[np.intp]:
    return np.searchsorted(np.arange(1, BINS) / BINS, probabilities)


def _gaps(probabilities: NDArray[np.float64], same: NDArray[np.bool_], bins: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return (sum of outcomes - sum of probabilities) / n of each bin, float64 [BINS]."""
    return np.bincount(bins, same - probabilities, minlength=BINS) / len(probabilities)


def _calibration_error(probabilities: NDArray[np.float64], rng: np.random.Generator) -> Estimate:
    """Return the expected calibration error of probabilities [2, n], first those of pairs that belong together.

    Sampling noise alone causes gaps in the bins, so the figure is biased upwards, its bootstrap even more, and
    bootstrap percentiles almost always miss the true value. Therefore the bootstrap is used only for the variance of
    the gaps. The interval contains every error under which the observed figure is not in the outer 5%, and the
    observed figure: the candidates range from gaps that are reduced by the same number of their standard deviations
    to twice the observed gaps. (The inversion is that of Hansen, "The grid bootstrap and the autoregressive model",
    Review of Economics and Statistics 81, 1999.)
    """
    pairs = probabilities.shape[1]
    flat, same = probabilities.ravel(), np.repeat([True, False], pairs)
    bins = _bins(flat)
    gaps = _gaps(flat, same, bins)
    observed = float(np.abs(gaps).sum())
    noise = np.empty((RESAMPLES, BINS))
    for row in noise:
        drawn = np.concatenate([rng.integers(0, pairs, pairs), rng.integers(pairs, 2 * pairs, pairs)])
        row[:] = _gaps(flat[drawn], same[drawn], bins[drawn]) - gaps
    grid = np.linspace(0, 2, 81)[:, None]
    shrunk = np.maximum(np.abs(gaps) - 4 * np.maximum(1 - grid, 0) * noise.std(axis=0), 0)
    candidates = np.sign(gaps) * shrunk * np.maximum(grid, 1)  # [grid, BINS]
    low, high = np.quantile(np.abs(candidates[:, None] + noise).sum(axis=2), [0.025, 0.975], axis=1)
    errors = np.abs(candidates).sum(axis=1)
    possible = errors[(low <= observed) & (observed <= high)]
    return Estimate(
        value=min(observed, 1.0),
        low=min(float(possible.min(initial=observed)), 1.0),
        high=min(float(possible.max(initial=observed)), 1.0),
    )


def _predicted(half: Half) -> tuple[Similarities, NDArray[np.int64], NDArray[np.int64]]:
    """Return each similarity as a threshold, ascending, and the numbers of predicted pairs of both classes."""
    thresholds = np.unique(np.concatenate(half))
    counts = [len(each) - np.searchsorted(np.sort(each), thresholds) for each in half]
    return thresholds, counts[0], counts[1]


def _smallest(thresholds: Similarities, reaches_target: NDArray[np.bool_]) -> float | None:
    return float(thresholds[np.argmax(reaches_target)]) if reaches_target.any() else None
