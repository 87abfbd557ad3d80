"""Quality and model gates: each figure agrees with a naive computation, and skipped checks have a reason."""

import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.config.sections import Config, DataConfig, PromoteConfig
from recsys.data.catalog import Catalog
from recsys.data.splits import Holdout
from recsys.evaluation.metrics import STRATA, evaluate_last_item, ranking_metrics
from recsys.index.distances import DISTANCES
from recsys.index.exact import ExactIndex
from recsys.index.queries import Queries
from recsys.release import data_gate, gate, model_gate, quality_gate
from recsys.release.bundle import Release
from recsys.release.check import Check, at_least, at_most, skipped
from recsys.release.embedding_space import EmbeddingSpace
from recsys.release.manifest import Manifest, SpaceEntry
from recsys.release.quality_gate import HeldOutQueries, held_out_ranks, paired_difference, quality_checks

LIMITS = PromoteConfig(tolerance=0.0, stratum_tolerance=0.0)


class TableIndex:
    """Index that returns neighbors from a table, by item number."""

    def __init__(self, neighbors_of):
        self.neighbors_of = neighbors_of
        self.distance = DISTANCES["cosine"]

    def __len__(self):
        return len(self.neighbors_of)

    def top_k(self, queries, k):
        rows = [(self.neighbors_of.get(number, []) + [-1] * k)[:k] for number in queries.items[:, 0].tolist()]
        return np.array(rows, np.int32).reshape(len(queries), k)

    def neighbors(self, numbers, k):
        return self.top_k(Queries.from_items(numbers), k)


def space(neighbors_of, *, items="abcdefgh"):
    """Return an embedding space with these neighbors, {item id: item ids of its neighbors}."""
    item_ids = sorted(items)
    catalog = Catalog(pl.DataFrame({"item_id": item_ids, "title": item_ids}))
    number = {item_id: row for row, item_id in enumerate(item_ids)}
    numbered = {
        number[query]: [number[neighbor] for neighbor in neighbors] for query, neighbors in neighbors_of.items()
    }
    return _space(Manifest.model_construct(), catalog, np.empty((len(item_ids), 2), np.float32), TableIndex(numbered))


def exact(vectors, *, distance="cosine", items=None):
    """Return an embedding space with exact search."""
    items = items or [f"item {number:03d}" for number in range(len(vectors))]
    catalog = Catalog(pl.DataFrame({"item_id": items, "title": items}))
    manifest = Manifest.model_construct(distance=distance, recall_k=5, release_id="exact")
    return _space(manifest, catalog, vectors, ExactIndex(vectors, DISTANCES[distance]))


def _space(manifest, catalog, vectors, index):
    return EmbeddingSpace(Path("nowhere"), manifest, SpaceEntry.model_construct(), catalog, vectors, index)


def unit(n, dimension, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(n, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def held_out_queries(queries, targets, strata=None):
    return HeldOutQueries(list(queries), list(targets), np.array(strata or [0] * len(queries), np.int8))


def by_name(checks):
    assert len({check.name for check in checks}) == len(checks)
    return {check.name: check for check in checks}


HELD_OUT_QUERIES = held_out_queries("abcd", "efgh")
SECOND = 1 / math.log2(3)


# --- quality


def compare(challenger, champion, queries=HELD_OUT_QUERIES, *, floor=None, limits=LIMITS, min_stratum_queries=1):
    checks = quality_checks(
        challenger,
        champion,
        queries,
        floor=floor,
        config=limits,
        resamples=500,
        min_stratum_queries=min_stratum_queries,
    )
    return by_name(checks)


def test_queries_use_item_ids():
    figures = ranking_metrics(held_out_ranks(space({"a": "e", "b": "cf", "c": "d"}), HELD_OUT_QUERIES))
    assert figures["ndcg_at_20"] == pytest.approx((1 + SECOND) / 4)
    assert figures["hr_at_20"] == pytest.approx(0.5)


@pytest.mark.parametrize("missing", ["b", "f"], ids=["query", "target"])
def test_query_with_an_unknown_item_is_a_miss(missing):
    """It still counts in the mean over all queries."""
    items = "abcdefgh".replace(missing, "")
    neighbors_of = {"a": "e", "c": "g", "d": "h"}
    figures = ranking_metrics(held_out_ranks(space(neighbors_of, items=items), HELD_OUT_QUERIES))
    assert figures["hr_at_10"] == pytest.approx(3 / 4)
    assert figures["mrr_at_10"] == pytest.approx(3 / 4)


def test_unknown_target_does_not_match_padding():
    """Unknown targets and padding both have negative item numbers."""
    figures = ranking_metrics(held_out_ranks(space({}, items="abcd"), HELD_OUT_QUERIES))
    assert set(figures.values()) == {0.0}


def test_metrics_by_item_id_equal_a_direct_evaluation():
    champion = exact(unit(60, 8))
    rng = np.random.default_rng(1)
    items = rng.integers(0, 60, 400).astype(np.int32)
    ends = np.arange(1, 400, 2)
    holdout = Holdout(items, ends - 1, ends)
    ids = champion.catalog.item_ids
    queries = held_out_queries([ids[n] for n in holdout.queries], [ids[n] for n in holdout.targets])
    assert ranking_metrics(held_out_ranks(champion, queries)) == evaluate_last_item(champion.index, holdout)


@pytest.mark.parametrize(("floor", "verdict"), [(0.4, "passed"), (0.6, "failed"), (None, "skipped")])
def test_first_release_is_compared_with_the_floor_only(floor, verdict):
    checks = compare(space({"a": "e", "b": "f"}), None, floor=floor)
    assert checks.pop("ndcg_at_20").verdict == verdict
    assert {check.verdict for check in checks.values()} == {"skipped"}
    assert {check.reason for check in checks.values()} == {"no champion"}


def test_challenger_fails_without_held_out_queries():
    checks = compare(space({}), space({}), held_out_queries("", ""), floor=0.1)
    assert [name for name, check in checks.items() if not check.passed] == ["held_out_queries"]
    assert all(check.passed for check in compare(space({}), None, held_out_queries("", "")).values())


def queries_about_a(hits, misses, stratum=0):
    """Return queries by item a: `hits` with target b, which the good release returns, and `misses` with target c."""
    return held_out_queries("a" * (hits + misses), "b" * hits + "c" * misses, [stratum] * (hits + misses))


def test_challenger_equal_to_the_champion_passes():
    neighbors = {"a": "e", "b": "cf"}
    checks = compare(space(neighbors), space(neighbors))
    assert checks["ndcg_at_20_change"].value == checks["ndcg_at_20_change"].limit == 0.0
    assert all(check.passed for check in checks.values())


def test_challenger_fails_if_it_is_worse_by_more_than_the_tolerance():
    """The target has rank 1 with the champion and rank 2 with the challenger, which is worse by 37% in each query."""
    champion, challenger = space({"a": "b"}), space({"a": "cb"})
    queries = queries_about_a(50, 0)
    for tolerance, verdict in ((0.36, "failed"), (0.37, "passed")):
        change = compare(challenger, champion, queries, limits=PromoteConfig(tolerance=tolerance))["ndcg_at_20_change"]
        assert change.value == pytest.approx(SECOND - 1)
        assert (change.limit, change.verdict) == (pytest.approx(-tolerance), verdict)
    assert compare(champion, challenger, queries)["ndcg_at_20_change"].passed


def test_difference_below_five_standard_errors_passes():
    """A loss in 51 of 100 queries and a gain in 49 is chance; a loss in 900 of 1,000 is not."""
    champion, challenger = space({"a": "b"}), space({"a": "c"})
    assert compare(challenger, champion, queries_about_a(51, 49))["ndcg_at_20_change"].passed
    assert not compare(challenger, champion, queries_about_a(900, 100))["ndcg_at_20_change"].passed


def test_paired_difference_agrees_with_a_naive_bootstrap():
    rng = np.random.default_rng(0)
    rank = rng.integers(0, 25, 800)
    champion_rank = np.where(rng.random(800) < 0.7, rank, rng.integers(0, 25, 800))
    gain = [np.where(ranks < 20, 1 / np.log2(ranks + 2), 0) for ranks in (rank, champion_rank)]
    differences = gain[0] - gain[1]
    naive = [differences[rng.integers(0, 800, 800)].mean() for _ in range(4_000)]
    difference = paired_difference(*gain, 4_000)
    assert difference.mean == pytest.approx(differences.mean())
    assert difference.standard_error == pytest.approx(np.std(naive), rel=0.1)
    assert difference.low == pytest.approx(np.percentile(naive, 2.5), abs=0.1 * difference.standard_error)


def test_each_stratum_has_its_own_tolerance():
    """A gain in the head does not offset a loss in the tail."""
    champion, challenger = space({"a": "b"}), space({"a": "c"})
    queries = held_out_queries("a" * 300, "c" * 200 + "b" * 100, [0] * 200 + [2] * 100)
    checks = compare(challenger, champion, queries)
    assert checks["ndcg_at_20_change"].passed
    assert checks["ndcg_at_20_change_head"].passed
    assert checks["ndcg_at_20_change_tail"].verdict == "failed"
    assert checks["ndcg_at_20_change_torso"].verdict == "skipped"


def test_skips_strata_with_few_queries():
    checks = compare(space({}), space({"a": "e"}), min_stratum_queries=5)
    for stratum in STRATA:
        check = checks[f"ndcg_at_20_change_{stratum}"]
        assert check.verdict == "skipped"
        assert "fewer than 5" in check.reason


def test_items_missing_from_the_champion_are_its_misses():
    champion = space({"a": "e"}, items="ae")
    challenger = space({"a": "e", "b": "f"})
    assert compare(challenger, champion)["ndcg_at_20_change"].passed
    assert "from 0.2500 to 0.5000" in compare(challenger, champion)["ndcg_at_20_change"].reason


# --- embeddings


def embedding_checks(vectors, **settings):
    return by_name(model_gate.embedding_checks(exact(vectors, **settings)))


def test_random_embeddings_pass():
    assert all(check.passed for check in embedding_checks(unit(200, 16)).values())


def test_counts_embeddings_that_are_not_finite():
    vectors = unit(20, 4)
    vectors[[3, 7], 1] = np.nan
    assert embedding_checks(vectors)["embeddings_not_finite"] == at_most("embeddings_not_finite", 2, 0)


def test_mean_cosine_agrees_with_all_pairs():
    vectors = unit(50, 4)
    cosines = [vectors[a] @ vectors[b] for a in range(50) for b in range(50) if a != b]
    assert embedding_checks(vectors)["embeddings_mean_cosine"].value == pytest.approx(np.mean(cosines), abs=1e-6)


def test_embeddings_collapsed_to_a_point_fail():
    near = unit(200, 16) * 0.1 + unit(1, 16, seed=1)
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    assert not embedding_checks(near)["embeddings_mean_cosine"].passed


def test_embeddings_collapsed_to_a_line_fail():
    """They differ in only one of 64 directions."""
    line = np.random.default_rng(0).normal(size=(200, 1)) @ unit(1, 64)
    checks = embedding_checks(line.astype(np.float32), distance="euclidean")
    assert checks["embeddings_effective_rank"].value == pytest.approx(1 / 64, rel=0.01)
    assert not checks["embeddings_effective_rank"].passed
    assert checks["embeddings_mean_cosine"].verdict == checks["embeddings_norm_error"].verdict == "skipped"


def test_effective_rank_is_the_exponential_of_the_entropy_of_singular_values():
    vectors = np.random.default_rng(0).normal(size=(300, 6)) * [4, 2, 1, 1, 0.5, 0]
    singular = np.linalg.svd(vectors - vectors.mean(axis=0), compute_uv=False)
    shares = singular / singular.sum()
    shares = shares[shares > 1e-12]
    covariance = np.cov(vectors.T, bias=True)
    assert model_gate.effective_rank(covariance) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-6)
    assert model_gate.effective_rank(np.zeros((3, 3))) == pytest.approx(1.0)


def test_items_with_another_title_are_not_covered():
    catalog = exact(unit(10, 4)).catalog
    frame = catalog.frame
    swapped = frame.with_columns(title=pl.col("title").reverse())
    missing = pl.concat([frame, pl.DataFrame({"item_id": ["new"], "title": ["New"]})])
    for expected_items, share in ((frame, 1.0), (swapped, 0.0), (missing, 10 / 11)):
        check = model_gate.catalog_check(catalog, Catalog(expected_items))
        assert check.name == "catalog_covered"
        assert check.value == pytest.approx(share)
        assert check.passed is (share == 1.0)


def test_embeddings_that_differ_from_the_tower_fail():
    loaded = exact(unit(10, 4))
    sample = np.arange(10, dtype=np.int32)
    assert model_gate.tower_check(loaded, sample, loaded.vectors).passed
    swapped = loaded.vectors.copy()
    swapped[[2, 5]] = swapped[[5, 2]]
    assert not model_gate.tower_check(loaded, sample, swapped).passed


# --- index


def test_measures_the_recall_of_the_loaded_index():
    loaded = exact(unit(40, 4))
    sample = np.arange(40, dtype=np.int32)
    assert all(check.passed for check in model_gate.index_checks(loaded, sample, 0.95))
    first = TableIndex({number: [n for n in range(6) if n != number][:5] for number in range(40)})
    worse = replace(loaded, index=first)
    checks = by_name(model_gate.index_checks(worse, sample, 0.95))
    naive = np.mean(
        [
            np.isin(row, answer).mean()
            for row, answer in zip(loaded.index.neighbors(sample, 5), first.neighbors(sample, 5), strict=True)
        ]
    )
    assert checks["index_recall"].value == pytest.approx(naive)
    assert not checks["index_recall"].passed
    assert checks["index_fill_rate"].passed


@pytest.mark.parametrize(
    "answer", [[1, 2, 3], [1, 2, 3, 3, 4], [0, 1, 2, 3, 4]], ids=["short", "duplicate", "query item"]
)
def test_counts_incomplete_results(answer):
    loaded = exact(unit(10, 4))
    neighbors_of = {number: [n for n in range(10) if n != number][:5] for number in range(10)} | {0: answer}
    broken = replace(loaded, index=TableIndex(neighbors_of))
    checks = by_name(model_gate.index_checks(broken, np.arange(10, dtype=np.int32), 0.0))
    assert checks["index_fill_rate"].value == pytest.approx(0.9)
    assert not checks["index_fill_rate"].passed


# --- neighbors, latency


def test_overlap_compares_common_items_by_item_id():
    """The releases have different dimensions, distances and items."""
    champion = exact(unit(40, 4), items=[f"i{number:02d}" for number in range(40)])
    challenger = exact(
        unit(40, 6, seed=1) * 3, distance="euclidean", items=[f"i{number:02d}" for number in range(5, 45)]
    )
    naive = []
    for number in range(5, 40):
        lists = []
        for compared, position in ((champion, number), (challenger, number - 5)):
            neighbors = compared.index.neighbors(np.array([position], np.int32), 10)[0]
            lists.append({compared.catalog.item_ids[n] for n in neighbors})
        naive.append(len(lists[0] & lists[1]) / 10)
    check = quality_gate.overlap_check(challenger, champion, PromoteConfig(), sample=1_000)
    assert check.value == pytest.approx(np.mean(naive))
    assert quality_gate.overlap_check(champion, champion, PromoteConfig(), sample=7).value == 1.0
    assert quality_gate.overlap_check(challenger, None, PromoteConfig(), sample=7).verdict == "skipped"


def test_overlap_is_0_without_common_items():
    check = quality_gate.overlap_check(space({}, items="abc"), space({}, items="xyz"), PromoteConfig(), sample=7)
    assert (check.value, check.verdict) == (0, "failed")
    assert quality_gate.overlap_check(
        space({}, items="abc"), space({}, items="xyz"), PromoteConfig(overlap_floor=0), sample=7
    ).passed


def test_latency_is_compared_with_the_champion(write_release, monkeypatch):
    loaded = Release.load(write_release([f"item {number}" for number in range(30)]))
    without_champion = quality_gate.latency_check(loaded, None, PromoteConfig(latency_ms=1_000))
    assert without_champion.passed
    assert without_champion.value > 0
    monkeypatch.setattr(quality_gate, "LATENCY_RATIO", 1_000)
    with_champion = quality_gate.latency_check(loaded, loaded, PromoteConfig(latency_ms=1e-9))
    assert with_champion.passed
    assert "champion: " in with_champion.reason
    assert not quality_gate.latency_check(loaded, None, PromoteConfig(latency_ms=1e-9)).passed


# --- spaces


def test_each_space_has_its_checks(write_release, monkeypatch):
    """Those of `next` keep their names, those of `similar` end in it. Here the towers of both compute `next`."""
    item_ids = [f"item {number:02}" for number in range(30)]
    challenger = Release.load(write_release(item_ids, spaces=("next", "similar")))
    champion = Release.load(write_release(item_ids[:20], release_id="champion"))
    for name in ("account_checks", "day_checks", "column_checks", "champion_checks"):
        monkeypatch.setattr(data_gate, name, lambda *_, **__: [])
    sample = np.arange(30, dtype=np.int32)
    evidence = gate.Evidence(
        config=Config(data=DataConfig(interactions="log.csv"), promote=PromoteConfig(overlap_floor=0)),
        now=datetime(2024, 1, 31, tzinfo=UTC),
        challenger=challenger,
        champion=champion,
        champion_loads=at_least("champion_loads", 1, 1),
        catalog=challenger.catalog,
        data_report={},
        champion_data_report=None,
        copied_days={},
        sample=sample,
        encoded_sample=dict.fromkeys(("next", "similar"), challenger.space("next").vectors[sample]),
        queries=held_out_queries(item_ids[:4], item_ids[4:8]),
        quality_floor=None,
        users=None,
    )
    checks = by_name(gate.run_checks(evidence))
    of_similar = {name.removesuffix("_similar") for name in checks if name.endswith("_similar")}
    assert of_similar == {
        "embeddings_not_finite",
        "embeddings_norm_error",
        "embeddings_mean_cosine",
        "embeddings_effective_rank",
        "tower_agreement",
        "index_recall",
        "index_fill_rate",
        "overlap_at_10",
    }
    assert of_similar < set(checks)
    assert (checks["tower_agreement"].verdict, checks["tower_agreement_similar"].verdict) == ("passed", "failed")
    compared = quality_gate.overlap_check(
        challenger.space("next"), champion.space("next"), evidence.config.promote, sample=1_000
    )
    assert checks["overlap_at_10"].value == compared.value
    # the champion has no space `similar`
    assert checks["overlap_at_10_similar"].verdict == "skipped"


# --- checks


def test_nan_never_passes():
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
def test_check_is_formatted_and_serialized(check, text):
    assert str(check) == text
    assert Check.from_dict(json.loads(json.dumps(check.to_dict()))) == check


def test_nan_is_serialized_and_still_fails():
    data = json.loads(json.dumps(at_least("x", math.nan, 0).to_dict(), allow_nan=False))
    assert data["verdict"] == Check.from_dict(data).verdict == "failed"
    assert isinstance(Check.from_dict(data), Check)
