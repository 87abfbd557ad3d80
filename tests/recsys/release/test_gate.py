"""Checks of releases: each figure against one that is computed plainly, and what is skipped says why."""

import json
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.config.sections import PromoteConfig
from recsys.data.catalog import Catalog
from recsys.data.splits import Holdout
from recsys.evaluation.metrics import STRATA, evaluate_last_item, ranking_metrics
from recsys.index.distances import DISTANCES
from recsys.index.exact import ExactIndex
from recsys.index.queries import Queries
from recsys.release import model_gate, quality_gate
from recsys.release.bundle import Release
from recsys.release.check import Check, at_least, at_most, skipped
from recsys.release.manifest import Manifest
from recsys.release.quality_gate import HeldOutQueries, held_out_ranks, paired_difference, quality_checks

LIMITS = PromoteConfig(tolerance=0.0, stratum_tolerance=0.0)


class Canned:
    """Answers by item number from a table; of as many items as are asked about, where it matters."""

    def __init__(self, answers):
        self.answers = answers
        self.distance = DISTANCES["cosine"]

    def __len__(self):
        return len(self.answers)

    def top_k(self, queries, k):
        rows = [(self.answers.get(number, []) + [-1] * k)[:k] for number in queries.items[:, 0].tolist()]
        return np.array(rows, np.int32).reshape(len(queries), k)

    def neighbors(self, numbers, k):
        return self.top_k(Queries.from_items(numbers), k)


def release(answers, *, items="abcdefgh"):
    """A release that answers {item id: its neighbors' ids} from memory."""
    item_ids = sorted(items)
    catalog = Catalog(pl.DataFrame({"item_id": item_ids, "title": item_ids}))
    number = {item_id: row for row, item_id in enumerate(item_ids)}
    numbered = {number[query]: [number[other] for other in others] for query, others in answers.items()}
    manifest = Manifest.model_construct(index_recall=0.99)
    return Release(Path("nowhere"), manifest, catalog, np.empty((len(item_ids), 2), np.float32), Canned(numbered))


def exact(vectors, *, distance="cosine", items=None):
    """A release of vectors that answers exactly."""
    items = items or [f"item {number:03d}" for number in range(len(vectors))]
    catalog = Catalog(pl.DataFrame({"item_id": items, "title": items}))
    manifest = Manifest.model_construct(distance=distance, recall_k=5, release_id="exact")
    return Release(Path("nowhere"), manifest, catalog, vectors, ExactIndex(vectors, DISTANCES[distance]))


def unit(n, dimension, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(n, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def questions(queries, targets, strata=None):
    return HeldOutQueries(list(queries), list(targets), np.array(strata or [0] * len(queries), np.int8))


def by_name(checks):
    assert len({check.name for check in checks}) == len(checks)
    return {check.name: check for check in checks}


QUESTIONS = questions("abcd", "efgh")
SECOND = 1 / math.log2(3)


# --- quality


def compared(challenger, champion, asked=QUESTIONS, *, floor=None, limits=LIMITS, min_stratum_queries=1):
    checks = quality_checks(
        challenger,
        champion,
        asked,
        floor=floor,
        config=limits,
        resamples=500,
        min_stratum_queries=min_stratum_queries,
    )
    return by_name(checks)


def test_questions_are_asked_by_item_id():
    figures = ranking_metrics(held_out_ranks(release({"a": "e", "b": "cf", "c": "d"}), QUESTIONS))
    assert figures["ndcg_at_20"] == pytest.approx((1 + SECOND) / 4)
    assert figures["hr_at_20"] == pytest.approx(0.5)


@pytest.mark.parametrize("missing", ["b", "f"], ids=["query", "target"])
def test_a_question_about_an_unknown_item_is_a_miss(missing):
    """It still counts among the questions: the others do not make up for it."""
    items = "abcdefgh".replace(missing, "")
    answers = {"a": "e", "c": "g", "d": "h"}
    figures = ranking_metrics(held_out_ranks(release(answers, items=items), QUESTIONS))
    assert figures["hr_at_10"] == pytest.approx(3 / 4)
    assert figures["mrr_at_10"] == pytest.approx(3 / 4)


def test_an_unknown_item_is_not_mistaken_for_padding():
    """Unknown targets and padding both have a number below 0."""
    figures = ranking_metrics(held_out_ranks(release({}, items="abcd"), QUESTIONS))
    assert set(figures.values()) == {0.0}


def test_asking_by_item_id_gives_the_figures_of_a_direct_evaluation_to_the_last_digit():
    champion = exact(unit(60, 8))
    rng = np.random.default_rng(1)
    items = rng.integers(0, 60, 400).astype(np.int32)
    ends = np.arange(1, 400, 2)
    holdout = Holdout(items, ends - 1, ends)
    ids = champion.catalog.item_ids
    asked = questions([ids[n] for n in holdout.queries], [ids[n] for n in holdout.targets])
    assert ranking_metrics(held_out_ranks(champion, asked)) == evaluate_last_item(champion.index, holdout)


@pytest.mark.parametrize(("floor", "verdict"), [(0.4, "passed"), (0.6, "failed"), (None, "skipped")])
def test_the_first_release_has_to_reach_the_floor_alone(floor, verdict):
    checks = compared(release({"a": "e", "b": "f"}), None, floor=floor)
    assert checks.pop("ndcg_at_20").verdict == verdict
    assert {check.verdict for check in checks.values()} == {"skipped"}
    assert {check.reason for check in checks.values()} == {"no champion"}


def test_without_questions_nothing_shows_that_a_challenger_is_not_worse():
    checks = compared(release({}), release({}), questions("", ""), floor=0.1)
    assert [name for name, check in checks.items() if not check.passed] == ["held_out_queries"]
    assert all(check.passed for check in compared(release({}), None, questions("", "")).values())


def many(right, wrong, stratum=0):
    """Questions about a, whose target is b so many times and c otherwise; b is what the good release finds."""
    return questions("a" * (right + wrong), "b" * right + "c" * wrong, [stratum] * (right + wrong))


def test_as_good_as_the_champion_is_good_enough():
    same = {"a": "e", "b": "cf"}
    checks = compared(release(same), release(same))
    assert checks["ndcg_at_20_change"].value == checks["ndcg_at_20_change"].limit == 0.0
    assert all(check.passed for check in checks.values())


def test_what_is_worse_beyond_chance_and_tolerance_is_refused():
    """The champion finds b at once; the challenger has it second: worse by 37%, in each of the questions."""
    champion, challenger = release({"a": "b"}), release({"a": "cb"})
    asked = many(50, 0)
    for tolerance, verdict in ((0.36, "failed"), (0.37, "passed")):
        change = compared(challenger, champion, asked, limits=PromoteConfig(tolerance=tolerance))["ndcg_at_20_change"]
        assert change.value == pytest.approx(SECOND - 1)
        assert (change.limit, change.verdict) == (pytest.approx(-tolerance), verdict)
    assert compared(champion, challenger, asked)["ndcg_at_20_change"].passed


def test_few_questions_cannot_tell_less_than_five_standard_errors():
    """49 questions lost and 51 gained of 1,000 is chance, whatever the tolerance; 900 lost is not."""
    champion, challenger = release({"a": "b"}), release({"a": "c"})
    assert compared(challenger, champion, many(51, 49))["ndcg_at_20_change"].passed
    assert not compared(challenger, champion, many(900, 100))["ndcg_at_20_change"].passed


def test_a_difference_is_that_of_the_pairs():
    rng = np.random.default_rng(0)
    rank = rng.integers(0, 25, 800)
    before = np.where(rng.random(800) < 0.7, rank, rng.integers(0, 25, 800))
    gain = [np.where(ranks < 20, 1 / np.log2(ranks + 2), 0) for ranks in (rank, before)]
    each = gain[0] - gain[1]
    naive = [each[rng.integers(0, 800, 800)].mean() for _ in range(4_000)]
    difference = paired_difference(rank, before, 4_000)
    assert difference.mean == pytest.approx(each.mean())
    assert difference.standard_error == pytest.approx(np.std(naive), rel=0.1)
    assert difference.low == pytest.approx(np.percentile(naive, 2.5), abs=0.1 * difference.standard_error)


def test_each_stratum_has_its_own_tolerance():
    """What the head gains does not make up for what the tail loses."""
    champion, challenger = release({"a": "b"}), release({"a": "c"})
    asked = questions("a" * 300, "c" * 200 + "b" * 100, [0] * 200 + [2] * 100)
    checks = compared(challenger, champion, asked)
    assert checks["ndcg_at_20_change"].passed
    assert checks["ndcg_at_20_change_head"].passed
    assert checks["ndcg_at_20_change_tail"].verdict == "failed"
    assert checks["ndcg_at_20_change_torso"].verdict == "skipped"


def test_a_stratum_with_too_few_questions_is_skipped_and_says_so():
    checks = compared(release({}), release({"a": "e"}), min_stratum_queries=5)
    for stratum in STRATA:
        check = checks[f"ndcg_at_20_change_{stratum}"]
        assert check.verdict == "skipped"
        assert "fewer than 5" in check.reason


def test_items_that_the_champion_does_not_hold_count_against_the_champion():
    champion = release({"a": "e"}, items="ae")
    challenger = release({"a": "e", "b": "f"})
    assert compared(challenger, champion)["ndcg_at_20_change"].passed
    assert "from 0.2500 to 0.5000" in compared(challenger, champion)["ndcg_at_20_change"].reason


# --- embeddings


def embedded(vectors, **settings):
    made = exact(vectors, **settings)
    return by_name(model_gate.embedding_checks(made, made.catalog))


def test_sound_embeddings_pass():
    assert all(check.passed for check in embedded(unit(200, 16)).values())


def test_embeddings_that_are_not_numbers_are_counted():
    vectors = unit(20, 4)
    vectors[[3, 7], 1] = np.nan
    assert embedded(vectors)["embeddings_not_finite"] == at_most("embeddings_not_finite", 2, 0)


def test_the_mean_cosine_is_that_of_all_pairs():
    vectors = unit(50, 4)
    cosines = [vectors[a] @ vectors[b] for a in range(50) for b in range(50) if a != b]
    assert embedded(vectors)["embeddings_mean_cosine"].value == pytest.approx(np.mean(cosines), abs=1e-6)


def test_embeddings_that_have_collapsed_to_a_point_fail():
    near = unit(200, 16) * 0.1 + unit(1, 16, seed=1)
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    assert not embedded(near)["embeddings_mean_cosine"].passed


def test_embeddings_that_have_collapsed_to_a_line_fail():
    """They differ, but in one of 64 directions."""
    line = np.random.default_rng(0).normal(size=(200, 1)) @ unit(1, 64)
    checks = embedded(line.astype(np.float32), distance="euclidean")
    assert checks["embeddings_effective_rank"].value == pytest.approx(1 / 64, rel=0.01)
    assert not checks["embeddings_effective_rank"].passed
    assert checks["embeddings_mean_cosine"].verdict == checks["embeddings_norm_error"].verdict == "skipped"


def test_the_effective_rank_is_the_exponential_of_the_entropy_of_singular_values():
    vectors = np.random.default_rng(0).normal(size=(300, 6)) * [4, 2, 1, 1, 0.5, 0]
    singular = np.linalg.svd(vectors - vectors.mean(axis=0), compute_uv=False)
    shares = singular / singular.sum()
    shares = shares[shares > 1e-12]
    covariance = np.cov(vectors.T, bias=True)
    assert model_gate.effective_rank(covariance) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-6)
    assert model_gate.effective_rank(np.zeros((3, 3))) == pytest.approx(1.0)


def test_an_item_of_the_night_with_another_title_is_not_covered():
    made = exact(unit(10, 4))
    frame = made.catalog.frame
    swapped = frame.with_columns(title=pl.col("title").reverse())
    missing = pl.concat([frame, pl.DataFrame({"item_id": ["new"], "title": ["New"]})])
    for wanted, share in ((frame, 1.0), (swapped, 0.0), (missing, 10 / 11)):
        check = by_name(model_gate.embedding_checks(made, Catalog(wanted)))["catalog_covered"]
        assert check.value == pytest.approx(share)
        assert check.passed is (share == 1.0)


def test_an_embedding_that_the_tower_does_not_give_is_told():
    made = exact(unit(10, 4))
    sample = np.arange(10, dtype=np.int32)
    assert model_gate.tower_check(made, sample, made.vectors).passed
    swapped = made.vectors.copy()
    swapped[[2, 5]] = swapped[[5, 2]]
    assert not model_gate.tower_check(made, sample, swapped).passed


# --- index


def test_the_recall_of_the_loaded_index_counts_and_not_the_manifest():
    made = exact(unit(40, 4))
    sample = np.arange(40, dtype=np.int32)
    assert all(check.passed for check in model_gate.index_checks(made, sample, 0.95))
    first = Canned({number: [n for n in range(6) if n != number][:5] for number in range(40)})
    worse = Release(made.path, made.manifest, made.catalog, made.vectors, first)
    checks = by_name(model_gate.index_checks(worse, sample, 0.95))
    naive = np.mean(
        [
            np.isin(row, answer).mean()
            for row, answer in zip(made.index.neighbors(sample, 5), first.neighbors(sample, 5), strict=True)
        ]
    )
    assert checks["index_recall"].value == pytest.approx(naive)
    assert not checks["index_recall"].passed
    assert checks["index_fill_rate"].passed


@pytest.mark.parametrize("answer", [[1, 2, 3], [1, 2, 3, 3, 4], [0, 1, 2, 3, 4]], ids=["short", "twice", "itself"])
def test_an_answer_that_is_not_full_is_counted(answer):
    made = exact(unit(10, 4))
    answers = {number: [n for n in range(10) if n != number][:5] for number in range(10)} | {0: answer}
    broken = Release(made.path, made.manifest, made.catalog, made.vectors, Canned(answers))
    checks = by_name(model_gate.index_checks(broken, np.arange(10, dtype=np.int32), 0.0))
    assert checks["index_fill_rate"].value == pytest.approx(0.9)
    assert not checks["index_fill_rate"].passed


# --- neighbors, latency


def test_overlap_is_by_item_id_over_items_in_common():
    """Of another dimension and distance, with items that the other does not hold."""
    champion = exact(unit(40, 4), items=[f"i{number:02d}" for number in range(40)])
    challenger = exact(
        unit(40, 6, seed=1) * 3, distance="euclidean", items=[f"i{number:02d}" for number in range(5, 45)]
    )
    naive = []
    for number in range(5, 40):
        lists = []
        for one, position in ((champion, number), (challenger, number - 5)):
            difference = one.index.neighbors(np.array([position], np.int32), 10)[0]
            lists.append({one.catalog.item_ids[n] for n in difference})
        naive.append(len(lists[0] & lists[1]) / 10)
    check = quality_gate.overlap_check(challenger, champion, PromoteConfig(), sample=1_000)
    assert check.value == pytest.approx(np.mean(naive))
    assert quality_gate.overlap_check(champion, champion, PromoteConfig(), sample=7).value == 1.0
    assert quality_gate.overlap_check(challenger, None, PromoteConfig(), sample=7).verdict == "skipped"


def test_catalogs_without_a_common_item_overlap_nowhere():
    check = quality_gate.overlap_check(release({}, items="abc"), release({}, items="xyz"), PromoteConfig(), sample=7)
    assert (check.value, check.verdict) == (0, "failed")
    assert quality_gate.overlap_check(
        release({}, items="abc"), release({}, items="xyz"), PromoteConfig(overlap_floor=0), sample=7
    ).passed


def test_latency_is_measured_on_both(write_release, monkeypatch):
    made = Release.load(write_release([f"item {number}" for number in range(30)]))
    alone = quality_gate.latency_check(made, None, PromoteConfig(latency_ms=1_000))
    assert alone.passed
    assert alone.value > 0
    monkeypatch.setattr(quality_gate, "LATENCY_RATIO", 1_000)
    both = quality_gate.latency_check(made, made, PromoteConfig(latency_ms=1e-9))
    assert both.passed
    assert "champion: " in both.reason
    assert not quality_gate.latency_check(made, None, PromoteConfig(latency_ms=1e-9)).passed


# --- a check


def test_no_number_never_passes():
    assert not at_least("x", math.nan, 0.0).passed
    assert not at_most("x", math.nan, 0.0).passed
    assert not at_least("x", 1.0, math.nan).passed


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (at_least("ndcg_at_20", 0.5, 0.5), "ndcg_at_20 0.5000, at least 0.5000: passed"),
        (at_least("ndcg_at_20", 0.4999, 0.5), "ndcg_at_20 0.4999, at least 0.5000: failed"),
        (at_most("latency_ms", 3, 2, "the champion 1"), "latency_ms 3.0000, at most 2.0000: failed (the champion 1)"),
        (skipped("overlap", "no champion"), "overlap: skipped, no champion"),
        (at_most("rows", 12_345, 0), "rows 12,345, at most 0.0000: failed"),
    ],
    ids=str,
)
def test_a_check_says_its_value_limit_and_verdict_and_survives_as_data(check, text):
    assert str(check) == text
    assert Check.from_dict(json.loads(json.dumps(check.to_dict()))) == check


def test_what_is_no_number_is_none_as_data_and_still_fails():
    data = json.loads(json.dumps(at_least("x", math.nan, 0).to_dict(), allow_nan=False))
    assert data["verdict"] == Check.from_dict(data).verdict == "failed"
    assert isinstance(Check.from_dict(data), Check)
