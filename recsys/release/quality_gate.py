"""Gate checks of a new release against the champion: quality, neighbors and latency.

Both releases get the same queries, by item id, so their catalogs, dimensions and distances may differ.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recsys.config.sections import PromoteConfig
from recsys.evaluation.metrics import CONFIDENCE, CUTS, STRATA, TARGET_METRIC, gains, ranking_metrics, target_positions
from recsys.release.bundle import Release
from recsys.release.check import Check, at_least, at_most, skipped
from recsys.release.embedding_space import EmbeddingSpace

OVERLAP_K = 10
"""Neighbors of an item that are compared."""
LATENCY_K = 10
"""Neighbors of a timed query."""
TIMED_QUERIES = 200

MIN_STANDARD_ERRORS = 5.0
"""No tolerance is smaller than this many standard errors of the difference.

The lower bound of the interval is 2 standard errors below the difference, so a release that is 3 below the champion
is rejected. By chance that happens to one of 700 releases that are as good as the champion.
"""
MIN_STRATUM_QUERIES = 100
"""A stratum with fewer queries is not compared: the interval would be wider than any useful tolerance."""
LATENCY_RATIO = 3.0
"""A release may be this many times as slow as the champion, measured in the same minute: less is noise."""


class HeldOutQueries(NamedTuple):
    """Held-out interactions by item id."""

    query_ids: Sequence[str]
    target_ids: Sequence[str]
    strata: NDArray[np.int8]
    """Stratum of each target in the run's catalog, an index into `STRATA`, int8 [n]."""


class Difference(NamedTuple):
    """Mean difference of a metric between two releases on the same queries."""

    mean: float
    low: float
    """Lower bound of the 95% bootstrap interval."""
    standard_error: float
    """Standard error of the mean."""


class NeighborOverlap(NamedTuple):
    """Neighbors that two releases have in common."""

    item_numbers: NDArray[np.int32]
    """Items that both releases have, or a sample of them, in the first release: ascending, int32 [n]."""
    other_item_numbers: NDArray[np.int32]
    """The same items in the other release, int32 [n]."""
    shared: NDArray[np.int64]
    """Number of shared neighbors of each item, at most `k`, int64 [n]."""
    k: int


def held_out_ranks(space: EmbeddingSpace, queries: HeldOutQueries) -> NDArray[np.int64]:
    """Return the rank of each target, from 0, int64 [n]. Queries with an item that the release lacks are misses."""
    to_numbers = space.catalog.item_numbers
    query_numbers, targets = to_numbers(queries.query_ids, missing=-1), to_numbers(queries.target_ids, missing=-1)
    in_catalog = (query_numbers >= 0) & (targets >= 0)
    rank = np.full(len(in_catalog), max(CUTS))
    nearest = space.nearest_items(query_numbers[in_catalog], max(CUTS))
    rank[in_catalog] = target_positions(nearest, targets[in_catalog])
    return rank


def paired_difference(
    values: NDArray[np.float64], champion_values: NDArray[np.float64], resamples: int, seed: int = 0
) -> Difference:
    """Compare a metric of two releases by the paired bootstrap over queries.

    NDCG@20 takes few distinct values, so a resample is one draw of how often each value occurs, from a multinomial
    distribution, as in `recsys.evaluation.metrics.intervals`.

    Args:
        values: metric of the challenger for each query, float64 [n].
        champion_values: metric of the champion for each query, float64 [n].
        resamples: number of bootstrap resamples.
        seed: seed of the resamples.
    """
    differences = values - champion_values
    distinct, counts = np.unique(differences, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(differences), counts / len(differences), resamples)
    low = np.percentile(draws @ distinct / len(differences), 50 * (1 - CONFIDENCE))
    standard_error = float(differences.std() / np.sqrt(len(differences)))
    return Difference(float(differences.mean()), float(low), standard_error)


def quality_checks(
    challenger: EmbeddingSpace,
    champion: EmbeddingSpace | None,
    queries: HeldOutQueries,
    *,
    floor: float | None,
    config: PromoteConfig,
    resamples: int,
    min_stratum_queries: int = MIN_STRATUM_QUERIES,
) -> list[Check]:
    """Compare NDCG@20 with a floor and with the champion on the same queries.

    Without held-out queries a challenger cannot be compared, so it does not replace a champion.

    Args:
        challenger: the space `next` of the new release.
        champion: that of the current champion, None before the first.
        queries: held-out interactions of the run.
        floor: the smallest NDCG@20, None for no floor.
        config: tolerances.
        resamples: number of bootstrap resamples.
        min_stratum_queries: a stratum with fewer queries is not compared.
    """
    change_names = [f"{TARGET_METRIC}_change", *(f"{TARGET_METRIC}_change_{stratum}" for stratum in STRATA)]
    if not len(queries.query_ids):
        held_out = [] if champion is None else [at_least("held_out_queries", 0, 1)]
        reason = "no held-out queries" if champion else "no champion"
        return [
            *held_out,
            skipped(TARGET_METRIC, "no held-out queries"),
            *(skipped(name, reason) for name in change_names),
        ]
    rank = held_out_ranks(challenger, queries)
    quality = ranking_metrics(rank)[TARGET_METRIC]
    checks = [skipped(TARGET_METRIC, "no floor") if floor is None else at_least(TARGET_METRIC, quality, floor)]
    if champion is None:
        return [*checks, *(skipped(name, "no champion") for name in change_names)]
    values, champion_values = (gains(each)[TARGET_METRIC] for each in (rank, held_out_ranks(champion, queries)))
    checks.append(paired_change_check(change_names[0], values, champion_values, config.tolerance, resamples))
    for stratum, name in enumerate(change_names[1:]):
        in_stratum = queries.strata == stratum
        count = int(in_stratum.sum())
        if count < min_stratum_queries:
            checks.append(skipped(name, f"{count} queries, fewer than {min_stratum_queries}"))
        else:
            checks.append(
                paired_change_check(
                    name, values[in_stratum], champion_values[in_stratum], config.stratum_tolerance, resamples
                )
            )
    return checks


def paired_change_check(
    name: str,
    values: NDArray[np.float64],
    champion_values: NDArray[np.float64],
    tolerance: float,
    resamples: int,
) -> Check:
    """Check the change of a metric on the same queries; see `paired_difference` and `change_check`."""
    difference = paired_difference(values, champion_values, resamples)
    return change_check(name, difference, float(champion_values.mean()), tolerance, f"{len(values)} queries")


def change_check(name: str, difference: Difference, champion_value: float, tolerance: float, details: str) -> Check:
    """Check the lower bound of the change of a metric, as a share of the champion's.

    Args:
        name: name of the check.
        difference: from the champion.
        champion_value: metric of the champion.
        tolerance: the largest decrease as a share; at least `MIN_STANDARD_ERRORS` are tolerated.
        details: what the metric was measured on.
    """
    scale = champion_value or 1.0
    limit = max(tolerance, MIN_STANDARD_ERRORS * difference.standard_error / scale)
    change = f"from {champion_value:.4f} to {champion_value + difference.mean:.4f}"
    return at_least(name, difference.low / scale, -limit, f"{change}, {details}")


def neighbor_overlap(space: EmbeddingSpace, other: EmbeddingSpace, max_items: int, seed: int = 0) -> NeighborOverlap:
    """Count the shared neighbors of items that two releases have.

    Args:
        space: embedding space of one release.
        other: that of the other release.
        max_items: with more common items, a random sample of this size is compared.
        seed: seed of the sample.
    """
    numbers = other.catalog.item_numbers(space.catalog.item_ids, missing=-1)
    items = np.flatnonzero(numbers >= 0).astype(np.int32)
    if len(items) > max_items:
        items = np.sort(np.random.default_rng(seed).choice(items, max_items, replace=False))
    other_items = numbers[items]
    k = min(OVERLAP_K, len(space.catalog) - 1, len(other.catalog) - 1)
    if not len(items):
        return NeighborOverlap(items, other_items, np.empty(0, np.int64), k)
    # compared in the item numbers of `space`: -2 equals no neighbor
    to_space = space.catalog.item_numbers(other.catalog.item_ids, missing=-2)
    neighbors, other_neighbors = space.nearest_items(items, k), to_space[other.nearest_items(other_items, k)]
    shared = (neighbors[:, :, None] == other_neighbors[:, None, :]).any(axis=2).sum(axis=1)
    return NeighborOverlap(items, other_items, shared, k)


def overlap_check(
    challenger: EmbeddingSpace, champion: EmbeddingSpace | None, config: PromoteConfig, *, sample: int, seed: int = 0
) -> Check:
    """Check the mean share of ten nearest neighbors that both releases return for their common items.

    Without a champion, or if it has no such space, the neighbors are meant to change, and the check is skipped.
    """
    name = f"overlap_at_{OVERLAP_K}"
    if champion is None:
        return skipped(name, "no champion with this space")
    overlap = neighbor_overlap(challenger, champion, sample, seed)
    if not len(overlap.item_numbers):
        return at_least(name, 0, config.overlap_floor, "no common items")
    share = float(overlap.shared.sum() / (len(overlap.item_numbers) * overlap.k))
    return at_least(name, share, config.overlap_floor)


def latency_check(challenger: Release, champion: Release | None, config: PromoteConfig) -> Check:
    """Check the median query latency. Queries alternate between the releases, so both see the same machine load."""
    seconds: list[list[float]] = [[], []]
    timed = [(challenger, seconds[0]), *([] if champion is None else [(champion, seconds[1])])]
    for query in range(TIMED_QUERIES):
        for release, durations in timed:
            item_id = release.catalog.item_ids[query * len(release.catalog) // TIMED_QUERIES]
            started = time.perf_counter()
            release.similar(item_id, LATENCY_K)
            durations.append(time.perf_counter() - started)
    median_ms, champion_ms = (float(np.median(durations)) * 1_000 if durations else 0.0 for durations in seconds)
    details = f"champion: {champion_ms:.4f}" if champion else None
    return at_most("latency_ms", median_ms, max(config.latency_ms, LATENCY_RATIO * champion_ms), details)
