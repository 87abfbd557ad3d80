"""How well answers foretell what a user touches next, for whom, and how much of the catalog they show.

Accuracy is HR, NDCG and MRR of one relevant item a question, with bootstrap intervals and by popularity of
that item; exposure is coverage and the Gini coefficient. All of it comes from asking a model once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from recsys.data.splits import Holdout
from recsys.index.queries import Queries

CUTS = (5, 10, 20)
TARGET_METRIC = "ndcg_at_20"
"""What training stops by and releases are compared by."""

SCORE = "validation_score"
"""Name of what `score` gives for the look-ups after a pass of training."""

EXPOSURE_CUT = 10
"""Answers of this length are what users are taken to see."""

STRATA = ("head", "torso", "tail", "new")
"""Names of what `strata` numbers."""

CONFIDENCE = 0.95


class Model(Protocol):
    """What can be asked: an index, exact search, a baseline."""

    def top_k(self, queries: Queries, k: int) -> NDArray[np.int32]:
        """The `k` best items of each query, best first, none of them excluded; int32 [n, k], -1 pads."""
        ...


@runtime_checkable
class Ranking(Protocol):
    """What can tell the rank of an item without sorting the others, as exact search can."""

    def ranks(self, queries: Queries, targets: NDArray[np.int32], k: int) -> NDArray[np.int64]:
        """What the function `ranks` gives."""
        ...


def ranks(model: Model, queries: Queries, targets: NDArray[np.int32], k: int = max(CUTS)) -> NDArray[np.int64]:
    """Rank from 0 of each target among its query's `k` answers, `k` where it is not among them; int64 [n].

    Args:
        model: what is asked.
        queries: n look-ups.
        targets: the right answers, int32 [n].
        k: length of an answer.
    """
    if isinstance(model, Ranking):
        return model.ranks(queries, targets, k)
    return _places(_answers(model, queries, k), targets)


def metrics(rank: NDArray[np.int64]) -> dict[str, float]:
    """Means over the questions, each with one relevant item.

    HR@k is 1 where rank < k; NDCG@k is 1 / log2(rank + 2) there (the ideal gain is 1); MRR@k is
    1 / (rank + 1) there. Without questions there are no figures.

    Args:
        rank: what `ranks` gives, int64 [n].

    Returns:
        Figures under names that MLflow takes: `hr_at_5`, `ndcg_at_20` and so on.
    """
    return {name: float(gain.mean()) for name, gain in gains(rank).items()} if len(rank) else {}


def evaluate(model: Model, holdout: Holdout) -> dict[str, float]:
    """`metrics` of look-ups from the last item before each target, nothing but that item left out."""
    return metrics(ranks(model, Queries.from_items(holdout.queries), holdout.targets))


def score(figures: Iterable[Mapping[str, Any]]) -> float:
    """What training and tuning make as large as possible: the mean NDCG@20 of several look-ups' `metrics`."""
    return float(np.mean([one[TARGET_METRIC] for one in figures]))


def intervals(rank: NDArray[np.int64], resamples: int, seed: int = 0) -> dict[str, list[float]]:
    """95% bootstrap percentile intervals of `metrics` over the questions, [low, high] each.

    A metric is a mean of a function of the rank, so all that matters of a resample is how often each rank is
    in it. Drawing n questions with replacement and counting their ranks is one draw of a multinomial with n
    trials and the measured shares: the same distribution, at a cost that does not depend on n.
    (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.)

    Args:
        rank: what `ranks` gives with k = max(CUTS), int64 [n].
        resamples: number of them.
        seed: of the draws.
    """
    if not len(rank):
        return {}
    worst = max(CUTS)  # from here on all gains are 0
    histogram = np.bincount(np.minimum(rank, worst), minlength=worst + 1)
    draws = np.random.default_rng(seed).multinomial(len(rank), histogram / len(rank), resamples)
    bounds = [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)]
    return {
        name: np.percentile(draws @ gain / len(rank), bounds).tolist()
        for name, gain in gains(np.arange(worst + 1)).items()
    }


def strata(popularity: NDArray[np.integer[Any]]) -> NDArray[np.int8]:
    """Head, torso and tail of a catalog: the stratum of each item, int8 [num_items], an index into `STRATA`.

    Items in the order of their interactions, most first, equals by number: head (0) are those that make up the
    first third of all interactions, torso (1) the second, tail (2) the rest. An item that lies across a border
    belongs to the more popular side, so that there is a head even where one item has most interactions.
    Items without interactions are new (3).

    Args:
        popularity: interactions of each item that training saw, [num_items].
    """
    counts = popularity.astype(np.int64)  # unsigned numbers have no negatives to sort by
    order = np.argsort(-counts, kind="stable")
    sorted_counts = counts[order]
    before = np.cumsum(sorted_counts) - sorted_counts
    stratum = np.empty(len(counts), np.int8)
    stratum[order] = 3 * before // max(int(sorted_counts.sum()), 1)  # whole numbers: no rounding at a border
    stratum[counts == 0] = STRATA.index("new")
    return stratum


def coverage(shown: NDArray[np.int64]) -> float:
    """Share of the catalog that is shown at all; `shown` is how often each item is, int64 [num_items]."""
    return float(np.mean(shown > 0)) if len(shown) else 0.0


def gini(shown: NDArray[np.int64]) -> float:
    """Gini coefficient of how often items are shown: 0 where all are alike, 1 where only one is shown.

    G = sum over j = 1..n of (2 j - n - 1) p_j / (n - 1), with the shares p in ascending order (Shani and
    Gunawardana, Evaluating Recommendation Systems, 2011, section 8.3.2). Where nothing is shown it is 0.

    Args:
        shown: how often each item is shown, int64 [num_items].
    """
    n, total = len(shown), shown.sum()
    if n < 2 or not total:  # noqa: PLR2004  one item cannot be shown more than another
        return 0.0
    return float((2 * np.arange(1, n + 1) - n - 1) @ np.sort(shown) / ((n - 1) * total))


def report(
    model: Model,
    queries: Queries,
    targets: NDArray[np.int32],
    popularity: NDArray[np.integer[Any]],
    resamples: int,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """All figures of a model, which is asked once.

    Args:
        model: what is measured.
        queries: n look-ups.
        targets: the right answers, int32 [n].
        popularity: interactions of each item that training saw, [num_items].
        resamples: bootstrap samples behind each interval.
        seed: of the resamples.

    Returns:
        Ready for JSON: `metrics`, `coverage_at_10` and `gini_at_10`; `intervals` (metric: [low, high]);
        `strata` (for each of `STRATA` the number of `questions` whose target is in it, and their metrics).
        Without questions there are no figures, only the numbers of questions.
    """
    answers = _answers(model, queries, max(CUTS))
    rank, stratum = _places(answers, targets), strata(popularity)[targets]
    figures: dict[str, Any] = dict(metrics(rank))
    if len(rank):
        seen = answers[:, :EXPOSURE_CUT]
        shown = np.bincount(seen[seen >= 0], minlength=len(popularity))
        figures |= {f"coverage_at_{EXPOSURE_CUT}": coverage(shown), f"gini_at_{EXPOSURE_CUT}": gini(shown)}
    figures["intervals"] = intervals(rank, resamples, seed)
    figures["strata"] = {
        name: {"questions": int((stratum == number).sum()), **metrics(rank[stratum == number])}
        for number, name in enumerate(STRATA)
    }
    return figures


def choose_recency(
    model: Model, holdout: Holdout, recencies: Sequence[float], length: int
) -> tuple[float, dict[str, float]]:
    """The recency with which history look-ups have the best NDCG@20, the first of equals, and its metrics.

    Args:
        model: what is asked.
        holdout: the questions to choose by: not those that are reported.
        recencies: weights of a step back to try, each in (0, 1].
        length: newest items of a history that count.
    """
    tried = [
        metrics(ranks(model, Queries.from_histories(holdout, recency, length), holdout.targets))
        for recency in recencies
    ]
    best = int(np.argmax([figures.get(TARGET_METRIC, 0.0) for figures in tried]))
    return recencies[best], tried[best]


def _answers(model: Model, queries: Queries, k: int) -> NDArray[np.int32]:
    """What a model answers, int32 [n, k]; the same question about one item is asked once."""
    if queries.items.shape[1] == 1 and np.array_equal(queries.items, queries.excluded) and (queries.weights > 0).all():
        numbers, question = np.unique(queries.items[:, 0], return_inverse=True)
        return model.top_k(Queries.from_items(numbers), k)[question]
    return model.top_k(queries, k)


def _places(answers: NDArray[np.int32], targets: NDArray[np.int32]) -> NDArray[np.int64]:
    """Where in its answer each target stands, from 0, and the length of an answer where it does not; int64 [n]."""
    found = answers == targets[:, None]
    places: NDArray[np.int64] = np.where(found.any(axis=1), found.argmax(axis=1), answers.shape[1])
    return places


def gains(rank: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """What each question adds to each metric, by the rank of its target, float64 [n]."""
    gains: dict[str, NDArray[np.float64]] = {}
    for k in CUTS:
        hit = rank < k
        gains[f"hr_at_{k}"] = hit.astype(np.float64)
        gains[f"ndcg_at_{k}"] = hit / np.log2(rank + 2.0)
        gains[f"mrr_at_{k}"] = hit / (rank + 1.0)
    return gains
