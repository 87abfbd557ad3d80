import json
from itertools import product

import numpy as np
import pytest
from scipy import sparse

from recsys.data.splits import Holdout
from recsys.evaluation import baseline_search
from recsys.evaluation.baseline_search import (
    QUERY_KINDS,
    Variant,
    baseline_variants,
    choose_settings,
    evaluate_baselines,
    make_queries,
)
from recsys.evaluation.baselines import Content, CoOccurrence, Ease, ItemKNN, Popularity, WindowedItemKNN, shared_users
from recsys.evaluation.metrics import choose_recency, evaluation_report, ranking_metrics, target_ranks
from recsys.evaluation.protocol import EvaluationProtocol
from recsys.index.distances import COSINE
from recsys.index.exact import ExactIndex
from recsys.index.queries import Queries

NUM_ITEMS = 12
PROTOCOL = EvaluationProtocol(recencies=(0.9, 0.2, 0.5), history_items=4, resamples=20)


def holdout(seed, users=30):
    """Return random histories of two to seven items, with one target each."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 9, users)
    ends = np.cumsum(lengths)
    return Holdout(rng.integers(0, NUM_ITEMS, ends[-1]).astype(np.int32), ends - lengths, ends - 1)


NO_USERS = Holdout(np.zeros(1, np.int32), np.empty(0, np.int64), np.empty(0, np.int64))
POPULARITY = np.arange(NUM_ITEMS) + 1


def vectors(seed):
    vectors = np.random.default_rng(seed).normal(size=(NUM_ITEMS, 3)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make_variants(*seeds):
    """Return variants with exact search on the vectors of each seed, and the list of fitted seeds."""
    fitted = []

    def fit(seed):
        fitted.append(seed)
        return ExactIndex(vectors(seed), COSINE)

    return [Variant({"seed": seed}, lambda seed=seed: fit(seed)) for seed in seeds], fitted


def ndcg(seed, queries, targets):
    return ranking_metrics(target_ranks(ExactIndex(vectors(seed), COSINE), queries, targets))["ndcg_at_20"]


# --- queries


def test_last_item_queries_ignore_the_recency():
    queries = make_queries(holdout(0), "last_item", 0.5, PROTOCOL)
    expected = Queries.from_items(holdout(0).queries)
    for part in ("items", "weights", "excluded"):
        np.testing.assert_array_equal(getattr(queries, part), getattr(expected, part))


@pytest.mark.parametrize(("recency", "expected_recency"), [(0.9, 0.9), (None, 0.5)])
def test_history_queries_use_the_given_or_the_default_recency(recency, expected_recency):
    queries = make_queries(holdout(0), "history", recency, PROTOCOL)
    expected = Queries.from_histories(holdout(0), expected_recency, 4)
    for part in ("items", "weights", "excluded"):
        np.testing.assert_array_equal(getattr(queries, part), getattr(expected, part))


# --- settings


SEEDS = range(6)


@pytest.mark.parametrize("seed", range(4), ids="holdout {}".format)
def test_chooses_the_best_settings_for_each_query_kind(seed):
    """Compared with a naive search: the variant with the default recency, then the recency."""
    validation = holdout(seed)
    variants, _ = make_variants(*SEEDS)
    chosen = choose_settings({"name": variants}, validation, PROTOCOL)["name"]
    by_item = [ndcg(seed, Queries.from_items(validation.queries), validation.targets) for seed in SEEDS]
    assert chosen["last_item"].settings == {"seed": int(np.argmax(by_item))}
    assert chosen["last_item"].validation["ndcg_at_20"] == max(by_item)

    histories = Queries.from_histories(validation, 0.5, 4)
    by_history = [ndcg(seed, histories, validation.targets) for seed in SEEDS]
    best = int(np.argmax(by_history))
    by_recency = [
        ndcg(best, Queries.from_histories(validation, value, 4), validation.targets) for value in PROTOCOL.recencies
    ]
    recency = PROTOCOL.recencies[int(np.argmax(by_recency))]
    assert chosen["history"].settings == {"seed": best, "recency": recency}
    assert chosen["history"].validation["ndcg_at_20"] == max(by_recency)
    assert choose_recency(ExactIndex(vectors(best), COSINE), validation, PROTOCOL)[0] == recency


def test_query_kinds_can_choose_different_settings():
    """Otherwise the test above could not detect that they are tuned together."""
    variants, _ = make_variants(*SEEDS)
    chosen = [choose_settings({"name": variants}, holdout(seed), PROTOCOL)["name"] for seed in range(4)]
    assert any(each["last_item"].settings["seed"] != each["history"].settings["seed"] for each in chosen)


def test_fits_every_variant_once_and_reports_every_baseline():
    (first, fitted), (second, _) = make_variants(3, 4), make_variants(5)
    messages = []
    assert list(choose_settings({"first": first, "second": second}, holdout(0), PROTOCOL, messages.append)) == [
        "first",
        "second",
    ]
    assert fitted == [3, 4]
    assert messages == ["first, 2 settings", "second, 1 settings"]


def test_ties_go_to_the_first_variant():
    equal = [Variant({"number": number}, lambda: ExactIndex(vectors(1), COSINE)) for number in range(3)]
    chosen = choose_settings({"name": equal}, holdout(0), PROTOCOL)["name"]
    assert [chosen[kind].settings["number"] for kind in QUERY_KINDS] == [0, 0]


def test_chooses_the_first_settings_and_the_default_recency_without_queries():
    variants, _ = make_variants(2, 1)
    chosen = choose_settings({"name": variants}, NO_USERS, PROTOCOL)["name"]
    assert chosen["last_item"] == ({"seed": 2}, {})
    assert chosen["history"] == ({"seed": 2, "recency": 0.5}, {})


# --- evaluation


@pytest.mark.parametrize("seed", range(3), ids="holdout {}".format)
def test_reports_the_figures_of_the_chosen_settings(seed):
    chosen = {"name": choose_settings({"name": make_variants(*SEEDS)[0]}, holdout(seed), PROTOCOL)["name"]}
    test = holdout(100 + seed)
    variants, fitted = make_variants(*SEEDS)
    reports = evaluate_baselines({"name": variants}, chosen, test, POPULARITY, PROTOCOL)
    for kind in QUERY_KINDS:
        settings = chosen["name"][kind].settings
        queries = make_queries(test, kind, settings.get("recency"), PROTOCOL)
        model = ExactIndex(vectors(settings["seed"]), COSINE)
        assert reports[kind]["name"] == evaluation_report(model, queries, test.targets, POPULARITY, 20)
    assert sorted(fitted) == sorted({chosen["name"][kind].settings["seed"] for kind in QUERY_KINDS})
    assert json.loads(json.dumps(reports)) == reports


def test_evaluates_every_baseline_with_both_query_kinds():
    names = ("first", "second", "third")
    variants = {name: make_variants(number, number + 1)[0] for number, name in enumerate(names)}
    messages = []
    chosen = choose_settings(variants, holdout(1), PROTOCOL)
    reports = evaluate_baselines(variants, chosen, holdout(2), POPULARITY, PROTOCOL, on_model=messages.append)
    assert [(kind, name) for kind in reports for name in reports[kind]] == [*product(QUERY_KINDS, names)]
    assert messages == list(names)


def test_reports_no_metrics_without_queries():
    variants, _ = make_variants(1)
    chosen = choose_settings({"name": variants}, NO_USERS, PROTOCOL)
    reports = evaluate_baselines({"name": variants}, chosen, NO_USERS, POPULARITY, PROTOCOL)
    for kind in QUERY_KINDS:
        assert "ndcg_at_20" not in reports[kind]["name"]
        assert sum(stratum["queries"] for stratum in reports[kind]["name"]["strata"].values()) == 0


NUM_USERS, SMALL_CATALOG = 14, 8
GRID = EvaluationProtocol(shrinkages=(0.0, 7.0), ease_penalties=(2.0,), ease_max_items=SMALL_CATALOG)

rng = np.random.default_rng(0)
INTERACTIONS = sparse.csr_array((rng.random((NUM_USERS, SMALL_CATALOG)) < 0.4).astype(np.float32))
NEAR_PAIRS, FAR_PAIRS = (
    sparse.csr_array(np.triu(rng.integers(0, 4, (SMALL_CATALOG, SMALL_CATALOG)), 1).astype(np.float32))
    for _ in range(2)
)
PAIRS = {(10, 1.0): NEAR_PAIRS, (5, 0.5): FAR_PAIRS}
ATTRIBUTES = sparse.csr_array((rng.random((SMALL_CATALOG, 3)) < 0.6).astype(np.float64))
COUNTS = np.array([3, 1, 4, 1, 5, 9, 2, 6])


# --- variants


def test_lists_the_settings_of_every_baseline():
    variants = baseline_variants(INTERACTIONS, PAIRS, ATTRIBUTES, COUNTS, GRID)
    assert {name: [variant.settings for variant in candidates] for name, candidates in variants.items()} == {
        "popularity": [{}],
        "co_occurrence": [{}],
        "item_knn": [{"shrinkage": 0.0}, {"shrinkage": 7.0}],
        "windowed_item_knn": [
            {"window": 10, "decay": 1.0, "shrinkage": 0.0},
            {"window": 10, "decay": 1.0, "shrinkage": 7.0},
            {"window": 5, "decay": 0.5, "shrinkage": 0.0},
            {"window": 5, "decay": 0.5, "shrinkage": 7.0},
        ],
        "ease": [{"penalty": 2.0}],
        "content": [{}],
    }


@pytest.mark.parametrize(
    ("name", "number", "expected"),
    [
        ("popularity", 0, lambda: Popularity(COUNTS)),
        ("co_occurrence", 0, lambda: CoOccurrence(shared_users(INTERACTIONS))),
        ("item_knn", 1, lambda: ItemKNN(shared_users(INTERACTIONS), 7.0)),
        ("windowed_item_knn", 1, lambda: WindowedItemKNN(NEAR_PAIRS, 7.0)),
        ("windowed_item_knn", 2, lambda: WindowedItemKNN(FAR_PAIRS, 0.0)),
        ("windowed_item_knn", 3, lambda: WindowedItemKNN(FAR_PAIRS, 7.0)),
        ("ease", 0, lambda: Ease(shared_users(INTERACTIONS), 2.0)),
        ("content", 0, lambda: Content(ATTRIBUTES, COUNTS)),
    ],
    ids=lambda value: "" if callable(value) else str(value),
)
def test_a_variant_fits_the_model_with_its_settings(name, number, expected):
    queries = Queries.from_items(np.arange(SMALL_CATALOG, dtype=np.int32))
    model = baseline_variants(INTERACTIONS, PAIRS, ATTRIBUTES, COUNTS, GRID)[name][number].fit()
    np.testing.assert_array_equal(model.top_k(queries, 5), expected().top_k(queries, 5))


def test_every_variant_recommends_items():
    queries = Queries.from_items(np.arange(SMALL_CATALOG, dtype=np.int32))
    for variants in baseline_variants(INTERACTIONS, PAIRS, ATTRIBUTES, COUNTS, GRID).values():
        for variant in variants:
            assert variant.fit().top_k(queries, 3).shape == (SMALL_CATALOG, 3)


def test_omits_ease_for_large_catalogs():
    small = GRID._replace(ease_max_items=SMALL_CATALOG - 1)
    assert "ease" not in baseline_variants(INTERACTIONS, PAIRS, ATTRIBUTES, COUNTS, small)


def test_omits_content_without_attributes():
    assert "content" not in baseline_variants(INTERACTIONS, PAIRS, None, COUNTS, GRID)


def test_counts_shared_users_once_for_all_variants(monkeypatch):
    calls = []
    monkeypatch.setattr(baseline_search, "shared_users", lambda matrix: calls.append(1) or shared_users(matrix))
    variants = baseline_variants(INTERACTIONS, PAIRS, ATTRIBUTES, COUNTS, GRID)
    assert not calls
    for name in ("co_occurrence", "item_knn", "ease"):
        for variant in variants[name]:
            variant.fit()
    assert calls == [1]
