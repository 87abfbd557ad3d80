"""What a release has to show before it takes over: embeddings, index, quality, neighbors, latency.

Releases with other catalogs, dimensions or distances are asked the same, by item id.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recsys.config.sections import PromoteConfig
from recsys.data.catalog import Catalog
from recsys.evaluation.metrics import CONFIDENCE, CUTS, STRATA, TARGET_METRIC, gains, ranking_metrics, target_ranks
from recsys.index.embeddings import BLOCK, NORM_TOLERANCE, Vectors
from recsys.index.queries import Queries
from recsys.index.recall import index_recall
from recsys.release.bundle import Release
from recsys.release.check import Check, at_least, at_most, skipped

OVERLAP_K, ANSWER_K = 10, 10
LOOK_UPS = 200
"""Look-ups that are timed."""

RESOLUTION = 5.0
"""Standard errors of the difference that no tolerance is smaller than.

The lower bound lies 2 of them below the difference, so that what is 3 below the champion is refused: by chance
alone that happens to one of 700 that are as good.
"""

AGREEMENT = 0.99
"""Smallest similarity of an embedding and what the release's own tower gives for the item: rounding is far less."""


MAX_MEAN_COSINE = 0.8
"""Largest mean cosine of two items: above it the embeddings have collapsed to nearly one direction. Trained towers have
0 to 0.2."""
MIN_EFFECTIVE_RANK = 0.05
"""Smallest effective rank of the embeddings (Roy and Vetterli, 2007), as a share of their dimension: below it they
have collapsed to a few directions."""
MIN_STRATUM_QUERIES = 100
"""A stratum with fewer queries is not compared: the interval would be wider than any useful tolerance."""
LATENCY_RATIO = 3.0
"""A release may be this many times as slow as the champion, measured in the same minute: less is noise."""


class Questions(NamedTuple):
    """Held-out interactions by item id, so that releases with other catalogs can be asked the same."""

    queries: Sequence[str]
    targets: Sequence[str]
    strata: NDArray[np.int8]
    """The stratum of each target in tonight's catalog, an index into `STRATA`."""


class Difference(NamedTuple):
    """How much better one release answers than another, over the same questions."""

    mean: float
    low: float
    """Lower bound of the 95% interval, by the bootstrap over the questions."""
    error: float
    """Standard error of the mean."""


class Overlap(NamedTuple):
    """Neighbors that two releases have in common."""

    items: NDArray[np.int32]
    """Items that both hold, a fixed sample where there are many: numbers of the one, ascending, int32 [n]."""
    others: NDArray[np.int32]
    """The same items as numbers of the other, int32 [n]."""
    shared: NDArray[np.int64]
    """How many of an item's `k` nearest are the same, int64 [n]."""
    k: int


def places(release: Release, questions: Questions) -> NDArray[np.int64]:
    """Rank from 0 of each target; one about an item that the release does not hold is a miss. int64 [n]."""
    numbers = release.catalog.item_numbers
    queries, targets = numbers(questions.queries, missing=-1), numbers(questions.targets, missing=-1)
    known = (queries >= 0) & (targets >= 0)
    rank = np.full(len(known), max(CUTS))
    rank[known] = target_ranks(release.index, Queries.from_items(queries[known]), targets[known])
    return rank


def difference(rank: NDArray[np.int64], before: NDArray[np.int64], resamples: int, seed: int = 0) -> Difference:
    """The paired bootstrap of NDCG@20 over questions, one a user.

    A question adds the difference of two gains, of which there are few values: how often each is drawn is one
    draw of a multinomial, as in `recsys.evaluation.metrics.intervals`.

    Args:
        rank: of the challenger's targets, int64 [n].
        before: of the champion's, int64 [n].
        resamples: number of them.
        seed: of the draws.
    """
    each = gains(rank)[TARGET_METRIC] - gains(before)[TARGET_METRIC]
    values, counts = np.unique(each, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(each), counts / len(each), resamples)
    low = np.percentile(draws @ values / len(each), 50 * (1 - CONFIDENCE))
    return Difference(float(each.mean()), float(low), float(each.std() / np.sqrt(len(each))))


def embedding_checks(release: Release, catalog: Catalog) -> list[Check]:
    """Finite, of unit length, not collapsed, one for each item of tonight's catalog.

    Args:
        release: the challenger.
        catalog: that of tonight's data.
    """
    vectors, distance = release.vectors, release.distance
    wrong, worst = 0, 0.0
    total = np.zeros(vectors.shape[1])
    squares = np.zeros((vectors.shape[1], vectors.shape[1]))
    for start in range(0, len(vectors), BLOCK):
        block = np.asarray(vectors[start : start + BLOCK], np.float64)
        finite = np.isfinite(block).all(axis=1)
        wrong += int((~finite).sum())
        block = block[finite]
        worst = max(worst, float(np.abs(np.linalg.norm(block, axis=1) - 1).max(initial=0)))
        total += block.sum(axis=0)
        squares += block.T @ block
    checks = [at_most("embeddings_not_finite", wrong, 0)]
    sound, unit = max(len(vectors) - wrong, 1), "cosine alone asks for length 1"
    if distance.unit_norm:
        cosine = (total @ total - np.trace(squares)) / max(sound * (sound - 1), 1)
        checks.append(at_most("embeddings_norm_error", worst, NORM_TOLERANCE))
        checks.append(at_most("embeddings_mean_cosine", cosine, MAX_MEAN_COSINE))
    else:
        checks += [skipped(name, unit) for name in ("embeddings_norm_error", "embeddings_mean_cosine")]
    mean = total / sound
    rank = effective_rank(squares / sound - np.outer(mean, mean)) / min(vectors.shape[1], sound)
    checks.append(at_least("embeddings_effective_rank", rank, MIN_EFFECTIVE_RANK))
    checks.append(at_least("catalog_covered", _covered(release.catalog, catalog), 1))
    return checks


def effective_rank(covariance: NDArray[np.float64]) -> float:
    """Dimensions that vectors of this covariance make use of.

    The exponential of the entropy of the singular values' shares (Roy and Vetterli, The effective rank, 2007);
    the singular values of the centerd vectors are the roots of the covariance's eigenvalues.
    """
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(covariance), 0))
    shares = values[values > 0] / values.sum() if values.sum() > 0 else np.ones(1)
    return float(np.exp(-(shares * np.log(shares)).sum()))


def tower_check(release: Release, sample: NDArray[np.int32], embedded: Vectors) -> Check:
    """Whether each item has the embedding that the release's own tower gives it, and not another's.

    Args:
        release: the challenger.
        sample: item numbers, int32 [n].
        embedded: what the tower gives for them, float32 [n, dimension].
    """
    alike = release.distance.similarity(release.distance.between(release.vectors[sample], embedded))
    return at_least("tower_agreement", float(np.min(alike)), AGREEMENT)


def index_checks(release: Release, sample: NDArray[np.int32], recall_floor: float) -> list[Check]:
    """Recall and full answers of the index as it was loaded: what the manifest says is not asked.

    Args:
        release: the challenger.
        sample: item numbers to ask about, int32 [n].
        recall_floor: the smallest index recall.
    """
    measured = index_recall(release.index, release.vectors, sample, release.manifest.recall_k)
    k = min(release.manifest.recall_k, len(release.catalog) - 1)
    found = release.index.neighbors(sample, k)
    distinct = (np.diff(np.sort(found, axis=1), axis=1) > 0).all(axis=1)
    full = distinct & (found >= 0).all(axis=1) & (found != sample[:, None]).all(axis=1)
    return [at_least("index_recall", measured, recall_floor), at_least("index_fill_rate", float(full.mean()), 1)]


def quality_checks(
    challenger: Release,
    champion: Release | None,
    questions: Questions,
    *,
    floor: float | None,
    config: PromoteConfig,
    resamples: int,
    min_stratum_queries: int = MIN_STRATUM_QUERIES,
) -> list[Check]:
    """Against a floor, and against the champion, who is asked the same questions now.

    Without questions nothing shows that the challenger is not worse, so the champion stays.

    Args:
        challenger: the new release.
        champion: the one in service, None before the first.
        questions: today's held-out interactions.
        floor: the smallest NDCG@20, None where there is none to compare with.
        config: tolerances.
        resamples: of the bootstrap.
        min_stratum_queries: a stratum with fewer queries is not compared.
    """
    compared = [f"{TARGET_METRIC}_change", *(f"{TARGET_METRIC}_change_{stratum}" for stratum in STRATA)]
    if not len(questions.queries):
        held_out = [] if champion is None else [at_least("held_out_questions", 0, 1)]
        why = "nothing is held out" if champion else "no champion"
        return [*held_out, skipped(TARGET_METRIC, "nothing is held out"), *(skipped(name, why) for name in compared)]
    rank = places(challenger, questions)
    reached = ranking_metrics(rank)[TARGET_METRIC]
    checks = [skipped(TARGET_METRIC, "no floor") if floor is None else at_least(TARGET_METRIC, reached, floor)]
    if champion is None:
        return [*checks, *(skipped(name, "no champion") for name in compared)]
    before = places(champion, questions)
    checks.append(_change(compared[0], rank, before, config.tolerance, resamples))
    for number, name in enumerate(compared[1:]):
        of_it = questions.strata == number
        count = int(of_it.sum())
        if count < min_stratum_queries:
            checks.append(skipped(name, f"{count} questions, fewer than {min_stratum_queries}"))
        else:
            checks.append(_change(name, rank[of_it], before[of_it], config.stratum_tolerance, resamples))
    return checks


def _change(name: str, rank: NDArray[np.int64], before: NDArray[np.int64], tolerance: float, resamples: int) -> Check:
    """The lower bound of the change, as a share of what the champion reaches."""
    now, then = ranking_metrics(rank)[TARGET_METRIC], ranking_metrics(before)[TARGET_METRIC]
    found = difference(rank, before, resamples)
    scale = then or 1.0
    limit = max(tolerance, RESOLUTION * found.error / scale)
    return at_least(name, found.low / scale, -limit, f"from {then:.4f} to {now:.4f}, {len(rank)} questions")


def overlap(one: Release, other: Release, most: int, seed: int = 0) -> Overlap:
    """Compare the ten nearest, or as many as both have, of at most `most` of the items that two releases hold."""
    numbers = other.catalog.item_numbers(one.catalog.item_ids, missing=-1)
    items = np.flatnonzero(numbers >= 0).astype(np.int32)
    if len(items) > most:
        items = np.sort(np.random.default_rng(seed).choice(items, most, replace=False))
    others = numbers[items]
    k = min(OVERLAP_K, len(one.catalog) - 1, len(other.catalog) - 1)
    if not len(items):
        return Overlap(items, others, np.empty(0, np.int64), k)
    # both in the numbers of the one; what it does not hold is in nobody's list
    held = one.catalog.item_numbers(other.catalog.item_ids, missing=-2)
    lists, others_lists = one.index.neighbors(items, k), held[other.index.neighbors(others, k)]
    return Overlap(items, others, (lists[:, :, None] == others_lists[:, None, :]).any(axis=2).sum(axis=1), k)


def overlap_check(
    challenger: Release, champion: Release | None, config: PromoteConfig, *, sample: int, seed: int = 0
) -> Check:
    """How many of an item's ten nearest are the same for both, by the items that both hold."""
    name = f"overlap_at_{OVERLAP_K}"
    if champion is None:
        return skipped(name, "no champion")
    found = overlap(challenger, champion, sample, seed)
    if not len(found.items):
        return at_least(name, 0, config.overlap_floor, "no item in common")
    return at_least(name, float(found.shared.sum() / (len(found.items) * found.k)), config.overlap_floor)


def latency_check(challenger: Release, champion: Release | None, config: PromoteConfig) -> Check:
    """The median look-up; the champion's in turn with it, so that both meet the same machine."""
    took: list[list[float]] = [[], []]
    both = [(challenger, took[0]), *([] if champion is None else [(champion, took[1])])]
    for turn in range(LOOK_UPS):
        for release, times in both:
            item_id = release.catalog.item_ids[turn * len(release.catalog) // LOOK_UPS]
            started = time.perf_counter()
            release.similar(item_id, ANSWER_K)
            times.append(time.perf_counter() - started)
    now, then = (float(np.median(times)) * 1_000 if times else 0.0 for times in took)
    more = f"the champion {then:.4f}" if champion else None
    return at_most("latency_ms", now, max(config.latency_ms, LATENCY_RATIO * then), more)


def _covered(held: Catalog, wanted: Catalog) -> float:
    """Share of the wanted items that are held with the same title and features."""
    columns = wanted.frame.columns
    if set(columns) - set(held.frame.columns):
        return 0.0
    rows = [
        catalog.frame.select("item_id", row=catalog.frame.select(columns).hash_rows()) for catalog in (held, wanted)
    ]
    same = rows[0].join(rows[1], on=["item_id", "row"], how="semi").height
    return same / max(len(wanted), 1)
