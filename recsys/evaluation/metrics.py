"""Offline metrics of a recommender: accuracy of its next-item predictions, and its coverage of the catalog.

Accuracy is HR, NDCG and MRR with one relevant item per query, with bootstrap intervals, overall and by popularity of
that item. Exposure is coverage and the Gini coefficient. All figures are computed from one result per query.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from recsys.data.splits import Holdout
from recsys.evaluation.protocol import EvaluationProtocol
from recsys.index.queries import Queries

CUTS = (5, 10, 20)
TARGET_METRIC = "ndcg_at_20"
"""Metric of early stopping and of the comparison of releases."""

VALIDATION_SCORE = "validation_score"
"""Name of `validation_score` in the metrics of a training pass."""

VALIDATION_TOLERANCE = "validation_tolerance"
"""Name of the difference of validation scores within which passes are equally good, in the metrics of a pass."""

EXPOSURE_CUT = 10
"""Number of items per query on which coverage and the Gini coefficient are computed."""

STRATA = ("head", "torso", "tail", "new")
"""Names of the strata that `popularity_strata` returns."""

CONFIDENCE = 0.95
BOUNDS = (50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE))
"""Percentiles of the bootstrap samples that are the bounds of an interval."""


class Recommender(Protocol):
    """Anything that can be evaluated: an index, exact search, a baseline."""

    def top_k(self, queries: Queries, k: int) -> NDArray[np.int32]:
        """Return the `k` best items of each query, best first, without excluded ones; int32 [n, k], -1 pads."""
        ...


@runtime_checkable
class SupportsRanks(Protocol):
    """A recommender that computes the rank of an item without sorting all items, such as exact search."""

    def ranks(self, queries: Queries, targets: NDArray[np.int32], k: int) -> NDArray[np.int64]:
        """Return the same as the function `target_ranks`."""
        ...


def target_ranks(
    model: Recommender, queries: Queries, targets: NDArray[np.int32], k: int = max(CUTS)
) -> NDArray[np.int64]:
    """Return the rank, from 0, of each target in the top `k` of its query, `k` if it is not there; int64 [n].

    Args:
        model: to evaluate.
        queries: n queries.
        targets: the relevant item of each query, int32 [n].
        k: length of a result.
    """
    if isinstance(model, SupportsRanks):
        return model.ranks(queries, targets, k)
    return target_positions(_top_k(model, queries, k), targets)


def ranking_metrics(rank: NDArray[np.int64]) -> dict[str, float]:
    """Return the mean metrics over n queries with one relevant item each.

    HR@k is 1 if rank < k; NDCG@k is 1 / log2(rank + 2) if rank < k (the ideal gain is 1); MRR@k is 1 / (rank + 1) if
    rank < k. Without queries the result is empty.

    Args:
        rank: from `target_ranks`, int64 [n].

    Returns:
        Metrics by names that MLflow accepts: `hr_at_5`, `ndcg_at_20` and so on.
    """
    return {name: float(gain.mean()) for name, gain in gains(rank).items()} if len(rank) else {}


def evaluate_last_item(model: Recommender, holdout: Holdout) -> dict[str, float]:
    """Return `ranking_metrics` of queries with the last item before each target; only that item is excluded."""
    return ranking_metrics(target_ranks(model, Queries.from_items(holdout.queries), holdout.targets))


def validation_score(metrics: Iterable[Mapping[str, Any]]) -> float:
    """Return what training and tuning maximize: the mean NDCG@20 of the `ranking_metrics` of several query kinds."""
    return float(np.mean([each[TARGET_METRIC] for each in metrics]))


def bootstrap_intervals(rank: NDArray[np.int64], resamples: int, seed: int = 0) -> dict[str, list[float]]:
    """Return 95% bootstrap percentile intervals of `ranking_metrics` over the queries, [low, high] each.

    A metric is a mean of a function of the rank, so a resample is described by how often each rank occurs in it.
    Drawing n queries with replacement and counting their ranks is one draw of a multinomial with n trials and the
    measured shares: the same distribution, at a cost that does not depend on n.
    (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.)

    Args:
        rank: from `target_ranks` with k = max(CUTS), int64 [n].
        resamples: number of resamples.
        seed: of the draws.
    """
    if not len(rank):
        return {}
    worst = max(CUTS)  # from this rank on all gains are 0
    histogram = np.bincount(np.minimum(rank, worst), minlength=worst + 1)
    draws = np.random.default_rng(seed).multinomial(len(rank), histogram / len(rank), resamples)
    return {
        name: np.percentile(draws @ gain / len(rank), BOUNDS).tolist()
        for name, gain in gains(np.arange(worst + 1)).items()
    }


def popularity_strata(popularity: NDArray[np.integer[Any]]) -> NDArray[np.int8]:
    """Return the popularity stratum of each item, int8 [num_items], an index into `STRATA`.

    Items are ordered by number of interactions, most first, ties by item number: head (0) are the items with the
    first third of all interactions, torso (1) those with the second, tail (2) the rest. An item across a border
    belongs to the more popular side, so that there is a head even if one item has most interactions. Items without
    interactions are new (3).

    Args:
        popularity: interactions of each item in the training data, [num_items].
    """
    counts = popularity.astype(np.int64)  # unsigned counts cannot be negated
    order = np.argsort(-counts, kind="stable")
    sorted_counts = counts[order]
    before = np.cumsum(sorted_counts) - sorted_counts
    stratum = np.empty(len(counts), np.int8)
    stratum[order] = 3 * before // max(int(sorted_counts.sum()), 1)  # integers: no rounding at a border
    stratum[counts == 0] = STRATA.index("new")
    return stratum


def coverage(exposure: NDArray[np.int64]) -> float:
    """Return the share of the catalog that is recommended at all.

    Args:
        exposure: number of recommendations of each item, int64 [num_items].
    """
    return float(np.mean(exposure > 0)) if len(exposure) else 0.0


def gini(exposure: NDArray[np.int64]) -> float:
    """Return the Gini coefficient of the exposure: 0 if it is equal for all items, 1 if one item has all of it.

    G = sum over j = 1..n of (2 j - n - 1) p_j / (n - 1), with the shares p in ascending order (Shani and
    Gunawardana, Evaluating Recommendation Systems, 2011, section 8.3.2). Without any exposure it is 0.

    Args:
        exposure: number of recommendations of each item, int64 [num_items].
    """
    n, total = len(exposure), exposure.sum()
    if n < 2 or not total:  # noqa: PLR2004  the formula needs two items
        return 0.0
    return float((2 * np.arange(1, n + 1) - n - 1) @ np.sort(exposure) / ((n - 1) * total))


def evaluation_report(
    model: Recommender,
    queries: Queries,
    targets: NDArray[np.int32],
    popularity: NDArray[np.integer[Any]],
    resamples: int,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Return all figures of a model, searching it once per query.

    Args:
        model: to evaluate.
        queries: n queries.
        targets: the relevant item of each query, int32 [n].
        popularity: interactions of each item in the training data, [num_items].
        resamples: number of bootstrap resamples of each interval.
        seed: of the resamples.

    Returns:
        JSON-compatible: the metrics, `coverage_at_10` and `gini_at_10`; `intervals` (metric: [low, high]); `strata`
        (for each of `STRATA` the number of `queries` with a target in it, and their metrics).
        Without queries there are no metrics, only the numbers of queries.
    """
    top = _top_k(model, queries, max(CUTS))
    rank, stratum = target_positions(top, targets), popularity_strata(popularity)[targets]
    figures: dict[str, Any] = dict(ranking_metrics(rank))
    if len(rank):
        recommended = top[:, :EXPOSURE_CUT]
        exposure = np.bincount(recommended[recommended >= 0], minlength=len(popularity))
        figures |= {f"coverage_at_{EXPOSURE_CUT}": coverage(exposure), f"gini_at_{EXPOSURE_CUT}": gini(exposure)}
    figures["intervals"] = bootstrap_intervals(rank, resamples, seed)
    figures["strata"] = {
        name: {"queries": int((stratum == number).sum()), **ranking_metrics(rank[stratum == number])}
        for number, name in enumerate(STRATA)
    }
    return figures


def choose_recency(
    model: Recommender, holdout: Holdout, protocol: EvaluationProtocol
) -> tuple[float, dict[str, float]]:
    """Return the recency with the best NDCG@20 of history queries, ties to the first, and its metrics.

    Args:
        model: to evaluate.
        holdout: held-out users, not those of the reported figures; a sample of them is queried.
        protocol: `recencies`, `history_items` and `settings_queries`.
    """
    sample, length = holdout.subsample(protocol.settings_queries), protocol.history_items
    metrics = [
        ranking_metrics(target_ranks(model, Queries.from_histories(sample, recency, length), sample.targets))
        for recency in protocol.recencies
    ]
    best = int(np.argmax([each.get(TARGET_METRIC, 0.0) for each in metrics]))
    return protocol.recencies[best], metrics[best]


def gains(rank: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Return the contribution of each query to each metric by the rank of its target, float64 [n]."""
    gains: dict[str, NDArray[np.float64]] = {}
    for k in CUTS:
        hit = rank < k
        gains[f"hr_at_{k}"] = hit.astype(np.float64)
        gains[f"ndcg_at_{k}"] = hit / np.log2(rank + 2.0)
        gains[f"mrr_at_{k}"] = hit / (rank + 1.0)
    return gains


def ndcg_of_gains(received: NDArray[np.floating[Any]], available: NDArray[np.floating[Any]], k: int) -> float:
    """Return the NDCG@k of one result with graded relevance.

    Args:
        received: gains of the results, best result first.
        available: gains of all items that could be returned, in any order; at least one is above 0.
        k: number of results that count.
    """
    discount = 1 / np.log2(np.arange(k) + 2.0)
    received, ideal = received[:k], np.sort(available)[::-1][:k]
    return float((received @ discount[: len(received)]) / (ideal @ discount[: len(ideal)]))


def _top_k(model: Recommender, queries: Queries, k: int) -> NDArray[np.int32]:
    """Return the top `k` of each query, int32 [n, k]; equal single-item queries are searched once."""
    if queries.items.shape[1] == 1 and np.array_equal(queries.items, queries.excluded) and (queries.weights > 0).all():
        item_numbers, query_rows = np.unique(queries.items[:, 0], return_inverse=True)
        return model.top_k(Queries.from_items(item_numbers), k)[query_rows]
    return model.top_k(queries, k)


def target_positions(top: NDArray[np.int32], targets: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return the position, from 0, of each target in its row, the length of a row if it is not there; int64 [n]."""
    hits = top == targets[:, None]
    positions: NDArray[np.int64] = np.where(hits.any(axis=1), hits.argmax(axis=1), top.shape[1])
    return positions
