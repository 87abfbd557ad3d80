"""Judged pairs of items -> calibration.

Half of the pairs fit the curve and choose the thresholds, the other half measures both: a threshold that is
measured on the pairs that chose it looks better than it is.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.stats import rankdata

from recsys.config.sections import CalibrateConfig
from recsys.data.splits import Holdout
from recsys.evaluation.calibration import EVEN, Calibration, Estimate, Measured, Rule, Threshold

MIN_PAIRS = 20
"""Pairs that belong together, and others, without which there is no calibration: half of them measure."""
MIN_CALLED = 10
"""A precision is only believed of so many pairs: the nearest pair alone has a precision of 0 or 1."""
DRAWS = 20
"""How often a query is given another target while it has one that belongs to it."""
BINS = 10
RESAMPLES = 1_000
Z = 1.959963984540054
"""Two-sided 95% quantile of the normal distribution."""

Similarities = NDArray[np.float64]


class Judged(NamedTuple):
    """Pairs of items of which it is known whether they belong together."""

    first: NDArray[np.int32]
    """Item numbers, int32 [n]."""
    second: NDArray[np.int32]
    """Item numbers, int32 [n]."""
    same: NDArray[np.bool_]
    """Whether they belong together, bool [n]."""


class Half(NamedTuple):
    """As many similarities of pairs that belong together as of others, float64 [n] each."""

    same: Similarities
    others: Similarities


def sample(holdout: Holdout, seed: int) -> Judged:
    """Pairs out of held-out interactions: each query with its target, and with the target of another user.

    Both heaps have the same queries and, but for what is left out, the same targets, so none is told apart by
    popularity alone. Left out are pairs of an item with itself and, from the others, pairs that belong together
    for some user of the holdout. Pairs of the training data stay: where users touch much in common almost every
    pair of two popular items is one, and without them the others would be pairs of rare items.
    """
    queries, targets = holdout.queries.astype(np.int64), holdout.targets.astype(np.int64)
    apart = queries != targets
    queries, targets = queries[apart], targets[apart]
    size = int(max(queries.max(initial=0), targets.max(initial=0))) + 1

    def keys(others: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        one, other = queries[rows], others[rows]
        return np.asarray(np.minimum(one, other) * size + np.maximum(one, other), np.int64)

    def belonging(rows: NDArray[np.int64]) -> NDArray[np.int64]:
        wrongly = (queries[rows] == drawn[rows]) | np.isin(keys(drawn, rows), together)
        return np.asarray(rows[wrongly], np.int64)

    every = np.arange(len(queries))
    together = np.unique(keys(targets, every))
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(targets)
    wrong = belonging(every)
    for _ in range(DRAWS):
        drawn[wrong] = rng.choice(targets, len(wrong))
        wrong = belonging(wrong)
    kept = np.setdiff1d(every, wrong)
    return Judged(
        np.concatenate([queries, queries[kept]]).astype(np.int32),
        np.concatenate([targets, drawn[kept]]).astype(np.int32),
        np.repeat([True, False], [len(queries), len(kept)]),
    )


def fit(similarities: Similarities, same: NDArray[np.bool_], config: CalibrateConfig, seed: int) -> Calibration | None:
    """Fit curve and thresholds on one half of the pairs, and measure them on the other.

    Args:
        similarities: of the pairs, float64 [n]. Not rounded: many may differ in their last digits only.
        same: whether each pair belongs together, bool [n]. Of the larger heap a part is left out by chance, so
            that as many belong together as do not.
        config: the targets to choose thresholds for.
        seed: of the split and of the bootstrap.

    Returns:
        The calibration, or None where one of the heaps has fewer than `MIN_PAIRS` pairs.
    """
    rng = np.random.default_rng(seed)
    heaps = [rng.permutation(similarities[chosen].astype(np.float64)) for chosen in (same, ~same)]
    pairs = min(map(len, heaps))
    if pairs < MIN_PAIRS:
        return None
    middle = pairs // 2
    fitting, measuring = Half(*(heap[:middle] for heap in heaps)), Half(*(heap[middle:pairs] for heap in heaps))
    knots, probabilities = curve(fitting)
    chosen: list[tuple[Rule, float, float | None]] = [("probability", EVEN, crossing(knots, probabilities))]
    chosen += [("precision", wanted, least_precise(fitting, wanted)) for wanted in config.precision]
    chosen += [("false_positive_rate", wanted, most_false(fitting, wanted)) for wanted in config.false_positive_rate]
    return Calibration(
        similarities=tuple(knots.tolist()),
        probabilities=tuple(probabilities.tolist()),
        fitted_pairs=2 * middle,
        measured_pairs=2 * (pairs - middle),
        expected_calibration_error=_estimated_error(np.interp(np.stack(measuring), knots, probabilities), rng),
        auc=auc(measuring),
        thresholds=tuple(
            Threshold(
                rule=rule,
                wanted=wanted,
                similarity=similarity,
                measured=None if similarity is None else measure(measuring, similarity),
            )
            for rule, wanted, similarity in chosen
        ),
    )


def curve(half: Half) -> tuple[Similarities, NDArray[np.float64]]:
    """Knots of the isotonic regression: similarities, ascending, and probabilities, float64 [knots] each.

    The least-squares fit among all curves that do not fall (Barlow et al., 1972; Zadrozny and Elkan, "Transforming
    classifier scores into accurate multiclass probability estimates", KDD 2002). Equal similarities are one point.
    """
    values, group = np.unique(np.concatenate(half), return_inverse=True)
    pairs = np.bincount(group)
    shares = np.bincount(group[: len(half.same)], minlength=len(values)) / pairs
    fitted = isotonic_regression(shares, weights=pairs)
    knots = np.unique([fitted.blocks[:-1], fitted.blocks[1:] - 1])  # both ends of each level stretch
    return values[knots], np.clip(fitted.x[knots], 0, 1)


def crossing(knots: Similarities, probabilities: NDArray[np.float64]) -> float | None:
    """The smallest similarity whose probability is one half; None where the curve tells nothing."""
    above = int(np.argmax(probabilities >= EVEN))
    if above == 0:  # half of the pairs belong together: a curve that starts here is level
        return None
    (low, high), (start, end) = knots[above - 1 : above + 1].tolist(), probabilities[above - 1 : above + 1].tolist()
    return float(min(low + (EVEN - start) / (end - start) * (high - low), high))


def least_precise(half: Half, wanted: float) -> float | None:
    """The smallest similarity from which on the precision is `wanted`, of at least `MIN_CALLED` pairs."""
    values, same, others = _called(half)
    called = same + others
    return _smallest(values, (same / called >= wanted) & (called >= MIN_CALLED))


def most_false(half: Half, wanted: float) -> float | None:
    """The smallest similarity from which on at most `wanted` of the others are called the same."""
    values, _, others = _called(half)
    return _smallest(values, others / len(half.others) <= wanted)


def measure(half: Half, similarity: float) -> Measured:
    """What a threshold does on these pairs."""
    right, wrong = int((half.same >= similarity).sum()), int((half.others >= similarity).sum())
    same, others = len(half.same), len(half.others)
    return Measured(
        precision=share(right, right + wrong) if right + wrong else None,
        recall=share(right, same),
        false_positive_rate=share(wrong, others),
        accuracy=share(right + others - wrong, same + others),
    )


def share(hits: int, total: int) -> Estimate:
    """A share with Wilson's interval, which holds for shares of nearly none and nearly all too.

    A bootstrap would put 0 of 50 between 0 and 0. (Wilson, JASA 22, 1927; recommended by Brown, Cai and DasGupta,
    "Interval estimation for a binomial proportion", Statistical Science 16, 2001.)
    """
    value = hits / total
    center = (value + Z**2 / (2 * total)) / (1 + Z**2 / total)
    reach = Z / (1 + Z**2 / total) * float(np.sqrt(value * (1 - value) / total + Z**2 / (4 * total**2)))
    # the ends belong to the interval; rounding may leave them just outside
    return Estimate(value=value, low=min(max(center - reach, 0.0), value), high=max(min(center + reach, 1.0), value))


def auc(half: Half) -> float:
    """Area under the ROC curve: the Mann-Whitney statistic of the two heaps, equals counting half."""
    same, others = len(half.same), len(half.others)
    ranks = rankdata(np.concatenate(half))[:same].sum()
    return float((ranks - same * (same + 1) / 2) / (same * others))


def expected_calibration_error(probabilities: NDArray[np.float64], same: NDArray[np.bool_]) -> float:
    """How far probabilities are from what happens: sum over bins of pairs / n * |share - mean probability|.

    Ten bins of equal width, each with its upper edge (Naeini, Cooper and Hauskrecht, "Obtaining well calibrated
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
    """(Sum of outcomes - sum of probabilities) / n of each bin, float64 [BINS]."""
    return np.bincount(bins, same - probabilities, minlength=BINS) / len(probabilities)


def _estimated_error(probabilities: NDArray[np.float64], rng: np.random.Generator) -> Estimate:
    """The expected calibration error of probabilities [2, n], first those of pairs that belong together.

    Chance alone opens gaps in the bins, so the figure is too high, a bootstrap of it higher still, and the
    percentiles of that miss the true value almost always. So the bootstrap only says how much gaps vary, and
    the interval holds every error under which the figure that was seen would not be among the outer 5%, and that
    figure itself: gaps are tried from none, each brought down by the same number of its standard deviations, to
    twice what was seen. (The inversion is that of Hansen, "The grid bootstrap and the autoregressive model",
    Review of Economics and Statistics 81, 1999.)
    """
    pairs = probabilities.shape[1]
    flat, same = probabilities.ravel(), np.repeat([True, False], pairs)
    bins = _bins(flat)
    gaps = _gaps(flat, same, bins)
    seen = float(np.abs(gaps).sum())
    noise = np.empty((RESAMPLES, BINS))
    for row in noise:
        drawn = np.concatenate([rng.integers(0, pairs, pairs), rng.integers(pairs, 2 * pairs, pairs)])
        row[:] = _gaps(flat[drawn], same[drawn], bins[drawn]) - gaps
    grid = np.linspace(0, 2, 81)[:, None]
    shrunk = np.maximum(np.abs(gaps) - 4 * np.maximum(1 - grid, 0) * noise.std(axis=0), 0)
    supposed = np.sign(gaps) * shrunk * np.maximum(grid, 1)  # [grid, BINS]
    low, high = np.quantile(np.abs(supposed[:, None] + noise).sum(axis=2), [0.025, 0.975], axis=1)
    errors = np.abs(supposed).sum(axis=1)
    possible = errors[(low <= seen) & (seen <= high)]
    return Estimate(
        value=min(seen, 1.0),
        low=min(float(possible.min(initial=seen)), 1.0),
        high=min(float(possible.max(initial=seen)), 1.0),
    )


def _called(half: Half) -> tuple[Similarities, NDArray[np.int64], NDArray[np.int64]]:
    """Each similarity as a threshold, ascending, and how many of both heaps it calls the same."""
    values = np.unique(np.concatenate(half))
    counts = [len(heap) - np.searchsorted(np.sort(heap), values) for heap in half]
    return values, counts[0], counts[1]


def _smallest(values: Similarities, reached: NDArray[np.bool_]) -> float | None:
    return float(values[np.argmax(reached)]) if reached.any() else None
