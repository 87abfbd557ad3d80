import json
import math

import numpy as np
import pytest

from recsys.data.splits import Holdout
from recsys.evaluation.metrics import (
    bootstrap_intervals,
    choose_recency,
    coverage,
    evaluate_last_item,
    evaluation_report,
    gini,
    popularity_strata,
    ranking_metrics,
    target_ranks,
)
from recsys.evaluation.protocol import PROTOCOL
from recsys.index.exact import ExactIndex
from recsys.index.queries import Queries
from recsys.testing.neighbors_contract import build_queries

NAMES = [f"{name}_at_{k}" for name in ("hr", "ndcg", "mrr") for k in (5, 10, 20)]


class TableModel:
    """Model that returns results from a table by the first item of the query, and records its calls."""

    def __init__(self, answers):
        self.answers = answers
        self.calls = []

    def top_k(self, queries, k):
        self.calls.append((queries.items.tolist(), k))
        rows = [(self.answers[number] + [-1] * k)[:k] for number, *_ in queries.items.tolist()]
        return np.array(rows, np.int32).reshape(len(queries), k)


def held_out(*pairs):
    """Return queries with one item each, and their targets."""
    queries, targets = zip(*pairs, strict=True) if pairs else ((), ())
    return Queries.from_items(np.array(queries, np.int32)), np.array(targets, np.int32)


def holdout(*histories):
    """Return a holdout of histories; the last item of each is its target."""
    items = np.array([item for history in histories for item in history], np.int32)
    lengths = np.array([len(history) for history in histories], np.int64)
    ends = np.cumsum(lengths)
    return Holdout(items, ends - lengths, ends - 1)


def naive(positions):
    """Return the metrics by a loop over users; a position is a rank from 1, or None for a miss."""
    figures = {}
    for k in (5, 10, 20):
        gains = {"hr": 0.0, "ndcg": 0.0, "mrr": 0.0}
        for position in positions:
            if position is not None and position <= k:
                gains["hr"] += 1
                gains["ndcg"] += 1 / math.log2(1 + position)
                gains["mrr"] += 1 / position
        figures |= {f"{name}_at_{k}": gain / len(positions) for name, gain in gains.items()}
    return figures


def shuffled(num_items, seed=3):
    """Return for each item all other items in random order."""
    rng = np.random.default_rng(seed)
    return {
        number: rng.permutation([neighbor for neighbor in range(num_items) if neighbor != number]).tolist()
        for number in range(num_items)
    }


def test_ranks_are_the_positions_of_the_targets():
    model = TableModel({4: [7, 1, 2], 9: [1, 0, 7], 2: []})
    rank = target_ranks(model, *held_out((9, 7), (4, 7), (4, 2), (2, 1), (9, 5)), k=3)
    assert rank.tolist() == [2, 0, 2, 3, 3]
    assert rank.dtype == np.int64


def test_searches_equal_single_item_queries_once():
    model = TableModel({4: [7], 9: [1]})
    target_ranks(model, *held_out((9, 7), (4, 7), (9, 1), (9, 7)), k=3)
    assert model.calls == [([[4], [9]], 3)]


@pytest.mark.parametrize(
    "queries",
    [
        build_queries([[(9, 1.0)], [(4, 1.0)], [(9, 1.0)]], [[9], [4], [8]]),
        build_queries([[(9, 1.0)], [(4, 1.0)], [(9, 1.0)]], [[9], [4], [9, 8]]),
        build_queries([[(9, 1.0)], [(4, 1.0)], [(9, 0.0)]]),
        build_queries([[(9, 1.0), (4, 0.5)], [(4, 1.0)], [(9, 1.0)]]),
    ],
    ids=["another exclusion", "two exclusions", "no weight", "several items"],
)
def test_searches_other_queries_unchanged(queries):
    model = TableModel({4: [7], 9: [1, 7]})
    assert target_ranks(model, queries, np.array([7, 7, 1], np.int32), k=3).tolist() == [1, 0, 0]
    assert model.calls == [(queries.items.tolist(), 3)]


@pytest.mark.parametrize(
    ("rank", "expected"),
    [
        (0, (1, 1, 1, 1, 1, 1, 1, 1, 1)),
        (2, (1, 1, 1, 0.5, 0.5, 0.5, 1 / 3, 1 / 3, 1 / 3)),
        (4, (1, 1, 1, 1 / math.log2(6), 1 / math.log2(6), 1 / math.log2(6), 0.2, 0.2, 0.2)),
        (5, (0, 1, 1, 0, 1 / math.log2(7), 1 / math.log2(7), 0, 1 / 6, 1 / 6)),
        (9, (0, 1, 1, 0, 1 / math.log2(11), 1 / math.log2(11), 0, 0.1, 0.1)),
        (10, (0, 0, 1, 0, 0, 1 / math.log2(12), 0, 0, 1 / 11)),
        (19, (0, 0, 1, 0, 0, 1 / math.log2(21), 0, 0, 1 / 20)),
        (20, (0, 0, 0, 0, 0, 0, 0, 0, 0)),
    ],
    ids=lambda value: f"rank {value}" if isinstance(value, int) else "",
)
def test_metrics_of_one_query(rank, expected):
    figures = ranking_metrics(np.array([rank]))
    assert [figures[name] for name in NAMES] == pytest.approx(list(expected))
    assert len(figures) == len(NAMES)


def test_metrics_are_means_over_the_queries():
    answers = shuffled(40)
    drawn = np.random.default_rng(5).integers(0, 40, (61, 2)).tolist()
    pairs = [(query, target) for query, target in drawn if query != target]
    positions = [answers[query].index(target) + 1 for query, target in pairs]
    assert ranking_metrics(target_ranks(TableModel(answers), *held_out(*pairs))) == pytest.approx(naive(positions))
    assert evaluate_last_item(TableModel(answers), holdout(*pairs)) == pytest.approx(naive(positions))


def test_evaluates_the_last_item_before_the_target():
    model = TableModel({4: [7], 9: [1]})
    assert evaluate_last_item(model, holdout((9, 4, 7), (4, 9, 4, 1), (4, 9, 1)))["hr_at_5"] == pytest.approx(2 / 3)
    assert model.calls == [([[4], [9]], 20)]


def test_evaluates_exact_search_by_its_ranks():
    """The vectors are on a circle, so neighbors are the nearest by angle."""
    angles = np.radians([0, 30, 70, 120])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    figures = evaluate_last_item(ExactIndex(vectors), holdout((0, 1), (0, 3), (2, 3)))
    assert figures == pytest.approx(naive([1, 3, 2]))


def test_padding_is_not_a_hit():
    assert evaluate_last_item(TableModel({1: []}), holdout((1, 0)))["hr_at_20"] == 0


def test_no_queries_have_no_metrics():
    assert evaluate_last_item(TableModel({}), holdout()) == {}
    assert bootstrap_intervals(np.empty(0, np.int64), 10) == {}


def test_intervals_agree_with_resampling_queries():
    """Compares percentiles of 4,000 resamples with naive ones.

    Both estimate the same quantile q = 0.025 from n draws of a nearly normal mean of deviation s: the standard
    error is sqrt(q (1 - q) / n) / density = sqrt(0.025 * 0.975 / 4000) / (0.0584 / s) = 0.042 s, times sqrt(2)
    for the difference of two. Six such errors are 0.36 s. HR of 83 queries is a multiple of 1 / 83 = 0.012,
    so a further step is allowed.
    """
    rng = np.random.default_rng(1)
    rank = np.minimum(rng.geometric(0.08, 83) - 1, 20)
    intervals = bootstrap_intervals(rank, 4_000, seed=2)
    resampled = [ranking_metrics(rng.choice(rank, len(rank))) for _ in range(4_000)]
    assert sorted(intervals) == sorted(NAMES)
    for name in NAMES:
        values = [figures[name] for figures in resampled]
        assert intervals[name] == pytest.approx(
            np.percentile(values, [2.5, 97.5]).tolist(), abs=0.36 * np.std(values) + 1 / 83
        )


def test_intervals_contain_the_figure_and_shrink_with_more_queries():
    rank = np.random.default_rng(0).integers(0, 21, 50)
    wide, narrow = bootstrap_intervals(rank, 500), bootstrap_intervals(np.tile(rank, 100), 500)
    for name, value in ranking_metrics(rank).items():
        assert wide[name][0] < value < wide[name][1]
        assert narrow[name][0] < value < narrow[name][1]
        # 100 times as many queries have a tenth of the width; 500 resamples give it to about 10%
        width = narrow[name][1] - narrow[name][0]
        assert width == pytest.approx((wide[name][1] - wide[name][0]) / 10, rel=0.4)


def test_the_seed_determines_the_intervals():
    rank = np.random.default_rng(0).integers(0, 21, 50)
    assert bootstrap_intervals(rank, 100, seed=4) == bootstrap_intervals(rank, 100, seed=4)
    assert bootstrap_intervals(rank, 100, seed=4) != bootstrap_intervals(rank, 100, seed=5)


def test_constant_ranks_have_intervals_of_width_zero():
    for low, high in bootstrap_intervals(np.zeros(7, np.int64), 50).values():
        assert (low, high) == pytest.approx((1, 1))


@pytest.mark.parametrize(
    ("popularity", "expected"),
    [
        ([1, 1, 1], [0, 1, 2]),
        ([0, 4, 0, 5, 2, 1, 0], [3, 1, 3, 0, 2, 2, 3]),
        ([2, 2, 2, 2, 2, 2], [0, 0, 1, 1, 2, 2]),
        ([10, 1, 1], [0, 2, 2]),
        ([3, 4, 3], [1, 0, 2]),
        ([0, 0], [3, 3]),
        ([7], [0]),
        ([], []),
    ],
    ids=str,
)
def test_strata_are_thirds_of_the_interactions(popularity, expected):
    stratum = popularity_strata(np.array(popularity, np.int64))
    assert stratum.tolist() == popularity_strata(np.array(popularity, np.uint32)).tolist() == expected
    assert stratum.dtype == np.int8


def test_strata_agree_with_a_naive_computation():
    popularity = np.random.default_rng(7).geometric(0.05, 97) - 1
    total, cumulated, expected = int(popularity.sum()), 0, {}
    for number in sorted(range(97), key=lambda item: (-popularity[item], item)):
        thirds = 0 if cumulated < total / 3 else 1 if cumulated < 2 * total / 3 else 2
        expected[number] = thirds if popularity[number] else 3
        cumulated += int(popularity[number])
    assert popularity_strata(popularity).tolist() == [expected[number] for number in range(97)]


@pytest.mark.parametrize(("exposure", "expected"), [([0, 0], 0), ([3, 0, 1, 0, 0], 0.4), ([1, 9], 1), ([], 0)], ids=str)
def test_coverage_is_the_share_of_recommended_items(exposure, expected):
    assert coverage(np.array(exposure, np.int64)) == pytest.approx(expected)


def naive_gini(exposure):
    """Return the mean difference of all pairs divided by twice the mean, times n / (n - 1), so the maximum is 1."""
    n = len(exposure)
    differences = sum(abs(a - b) for a in exposure for b in exposure)
    return differences / (2 * n * sum(exposure)) * n / (n - 1)


@pytest.mark.parametrize(
    ("exposure", "expected"),
    [([5, 5, 5], 0), ([0, 9, 0, 0], 1), ([1, 3], 0.5), ([0, 0, 0], 0), ([4], 0), ([], 0)],
    ids=str,
)
def test_gini_ranges_from_equal_exposure_to_one_item(exposure, expected):
    assert gini(np.array(exposure, np.int64)) == pytest.approx(expected)


def test_gini_is_the_mean_difference_of_all_pairs():
    exposure = np.random.default_rng(2).geometric(0.2, 31) - 1
    assert gini(exposure) == pytest.approx(naive_gini(exposure.tolist()))


def naive_exposure(answers, queries, num_items):
    exposure = [0] * num_items
    for query in queries:
        for item in answers[query][:10]:
            exposure[item] += 1
    return exposure


def test_report_searches_once_and_has_all_figures():
    num_items = 27
    answers = {number: neighbors[: number + 3] for number, neighbors in shuffled(num_items).items()}
    pairs = [(query, target) for query, target in np.random.default_rng(6).integers(0, num_items, (53, 2)).tolist()]
    popularity = np.random.default_rng(9).integers(0, 9, num_items)
    model = TableModel(answers)
    figures = evaluation_report(model, *held_out(*pairs), popularity, 200, seed=3)
    assert len(model.calls) == 1

    top = [answers[query][:20] for query, _ in pairs]
    positions = [
        result.index(target) + 1 if target in result else None for result, (_, target) in zip(top, pairs, strict=True)
    ]
    assert {name: figures[name] for name in NAMES} == pytest.approx(naive(positions))
    exposure = naive_exposure(answers, [query for query, _ in pairs], num_items)
    assert figures["coverage_at_10"] == pytest.approx(sum(count > 0 for count in exposure) / num_items)
    assert figures["gini_at_10"] == pytest.approx(naive_gini(exposure))
    rank = np.array([20 if position is None else position - 1 for position in positions])
    assert figures["intervals"] == bootstrap_intervals(rank, 200, seed=3)
    stratum = popularity_strata(popularity)
    for number, name in enumerate(["head", "torso", "tail", "new"]):
        stratum_positions = [
            position for position, (_, target) in zip(positions, pairs, strict=True) if stratum[target] == number
        ]
        expected = {"queries": len(stratum_positions)} | naive(stratum_positions)
        assert figures["strata"][name] == pytest.approx(expected)
    assert sum(part["queries"] for part in figures["strata"].values()) == len(pairs)
    assert set(figures) == {*NAMES, "coverage_at_10", "gini_at_10", "intervals", "strata"}


def test_report_is_json_compatible():
    figures = evaluation_report(TableModel(shuffled(30)), *held_out((1, 2), (3, 4)), np.arange(30), 20)
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_report_without_queries_has_only_counts():
    figures = evaluation_report(TableModel({}), *held_out(), np.arange(5), 20)
    assert figures == {
        "intervals": {},
        "strata": {name: {"queries": 0} for name in ("head", "torso", "tail", "new")},
    }


class WeightSensitiveModel:
    """Model whose target has a better rank, the closer the weight of the second newest item is to `best`."""

    def __init__(self, best):
        self.best = best
        self.widths = set()

    def top_k(self, queries, k):
        self.widths.add(queries.items.shape[1])
        answers = np.full((len(queries), k), -1, np.int32)
        rank = np.rint(10 * np.abs(queries.weights[:, 1] - self.best)).astype(int)
        answers[np.arange(len(queries)), rank] = 5
        return answers


@pytest.mark.parametrize(("best", "chosen"), [(0.5, 0.5), (0.2, 0.3), (0.6, 0.5)], ids=str)
def test_chooses_the_first_recency_with_the_best_ndcg(best, chosen):
    """With a best weight of 0.6, the recencies 0.5 and 0.7 are ties."""
    model = WeightSensitiveModel(best)
    protocol = PROTOCOL._replace(recencies=(0.9, 0.5, 0.3, 0.7), history_items=2)
    recency, figures = choose_recency(model, holdout((1, 2, 3, 5), (4, 2, 5)), protocol)
    assert recency == chosen
    assert figures == pytest.approx(naive([1 + round(10 * abs(chosen - best))] * 2))
    assert model.widths == {2}


def test_chooses_the_first_recency_without_queries():
    assert choose_recency(TableModel({}), holdout(), PROTOCOL) == (PROTOCOL.recencies[0], {})
