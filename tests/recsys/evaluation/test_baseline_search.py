import json
from itertools import product

import numpy as np
import pytest

from recsys.data.splits import Holdout
from recsys.evaluation.baseline_families import Variant
from recsys.evaluation.baseline_search import LOOK_UPS, choose, measure, queries
from recsys.evaluation.metrics import choose_recency, metrics, ranks, report
from recsys.evaluation.protocol import EvaluationProtocol
from recsys.index.distances import COSINE
from recsys.index.exact import ExactIndex
from recsys.index.queries import Queries

NUM_ITEMS = 12
PROTOCOL = EvaluationProtocol(recencies=(0.9, 0.2, 0.5), history_items=4, resamples=20)


def holdout(seed, users=30):
    """Random histories of two to seven items and a target each."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 9, users)
    ends = np.cumsum(lengths)
    return Holdout(rng.integers(0, NUM_ITEMS, ends[-1]).astype(np.int32), ends - lengths, ends - 1)


NOBODY = Holdout(np.zeros(1, np.int32), np.empty(0, np.int64), np.empty(0, np.int64))
POPULARITY = np.arange(NUM_ITEMS) + 1


def vectors(seed):
    found = np.random.default_rng(seed).normal(size=(NUM_ITEMS, 3)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def family(*seeds):
    """Exact search on other vectors for each setting; what was fitted is remembered."""
    fitted = []

    def fit(seed):
        fitted.append(seed)
        return ExactIndex(vectors(seed), COSINE)

    return [Variant({"seed": seed}, lambda seed=seed: fit(seed)) for seed in seeds], fitted


def ndcg(seed, asked, targets):
    return metrics(ranks(ExactIndex(vectors(seed), COSINE), asked, targets))["ndcg_at_20"]


# --- questions


def test_a_look_up_from_the_last_item_knows_no_recency():
    asked = queries(holdout(0), "last_item", 0.5, PROTOCOL)
    expected = Queries.from_items(holdout(0).queries)
    for part in ("items", "weights", "excluded"):
        np.testing.assert_array_equal(getattr(asked, part), getattr(expected, part))


@pytest.mark.parametrize(("recency", "taken"), [(0.9, 0.9), (None, 0.5)])
def test_a_history_fades_with_what_was_chosen_or_the_middle(recency, taken):
    asked = queries(holdout(0), "history", recency, PROTOCOL)
    expected = Queries.from_histories(holdout(0), taken, 4)
    for part in ("items", "weights", "excluded"):
        np.testing.assert_array_equal(getattr(asked, part), getattr(expected, part))


# --- choosing


SEEDS = range(6)


@pytest.mark.parametrize("questions", range(4), ids="questions {}".format)
def test_each_look_up_has_the_settings_that_are_best_there(questions):
    """Against trying everything by hand: the variant at the middle recency, then the recency."""
    asked = holdout(questions)
    variants, _ = family(*SEEDS)
    chosen = choose({"name": variants}, asked, PROTOCOL)["name"]
    by_item = [ndcg(seed, Queries.from_items(asked.queries), asked.targets) for seed in SEEDS]
    assert chosen["last_item"].settings == {"seed": int(np.argmax(by_item))}
    assert chosen["last_item"].validation["ndcg_at_20"] == max(by_item)

    by_history = [ndcg(seed, Queries.from_histories(asked, 0.5, 4), asked.targets) for seed in SEEDS]
    best = int(np.argmax(by_history))
    by_recency = [ndcg(best, Queries.from_histories(asked, value, 4), asked.targets) for value in PROTOCOL.recencies]
    recency = PROTOCOL.recencies[int(np.argmax(by_recency))]
    assert chosen["history"].settings == {"seed": best, "recency": recency}
    assert chosen["history"].validation["ndcg_at_20"] == max(by_recency)
    assert choose_recency(ExactIndex(vectors(best), COSINE), asked, PROTOCOL.recencies, 4)[0] == recency


def test_the_look_ups_need_not_choose_alike():
    """Else tuning each by itself would prove nothing above."""
    variants, _ = family(*SEEDS)
    chosen = [choose({"name": variants}, holdout(seed), PROTOCOL)["name"] for seed in range(4)]
    assert any(one["last_item"].settings["seed"] != one["history"].settings["seed"] for one in chosen)


def test_every_variant_is_fitted_once_and_every_baseline_told():
    (one, fitted), (other, _) = family(3, 4), family(5)
    told = []
    assert list(choose({"one": one, "other": other}, holdout(0), PROTOCOL, told.append)) == ["one", "other"]
    assert fitted == [3, 4]
    assert told == ["one, 2 settings", "other, 1 settings"]


def test_of_equals_the_first_is_chosen():
    same = [Variant({"number": number}, lambda: ExactIndex(vectors(1), COSINE)) for number in range(3)]
    chosen = choose({"name": same}, holdout(0), PROTOCOL)["name"]
    assert [chosen[look_up].settings["number"] for look_up in LOOK_UPS] == [0, 0]


def test_without_questions_the_first_settings_and_the_middle_recency_are_taken():
    variants, _ = family(2, 1)
    chosen = choose({"name": variants}, NOBODY, PROTOCOL)["name"]
    assert chosen["last_item"] == ({"seed": 2}, {})
    assert chosen["history"] == ({"seed": 2, "recency": 0.5}, {})


# --- measuring


@pytest.mark.parametrize("seed", range(3), ids="questions {}".format)
def test_figures_are_those_of_the_chosen_settings(seed):
    chosen = {"name": choose({"name": family(*SEEDS)[0]}, holdout(seed), PROTOCOL)["name"]}
    test = holdout(100 + seed)
    variants, fitted = family(*SEEDS)
    measured = measure({"name": variants}, chosen, test, POPULARITY, PROTOCOL)
    for look_up in LOOK_UPS:
        settings = chosen["name"][look_up].settings
        asked = queries(test, look_up, settings.get("recency"), PROTOCOL)
        model = ExactIndex(vectors(settings["seed"]), COSINE)
        assert measured[look_up]["name"] == report(model, asked, test.targets, POPULARITY, 20)
    assert sorted(fitted) == sorted({chosen["name"][look_up].settings["seed"] for look_up in LOOK_UPS})
    assert json.loads(json.dumps(measured)) == measured


def test_every_baseline_is_measured_on_both_look_ups_and_told():
    names = ("one", "other", "third")
    rivals = {name: family(number, number + 1)[0] for number, name in enumerate(names)}
    told = []
    chosen = choose(rivals, holdout(1), PROTOCOL)
    measured = measure(rivals, chosen, holdout(2), POPULARITY, PROTOCOL, on_model=told.append)
    assert [(look_up, name) for look_up in measured for name in measured[look_up]] == [*product(LOOK_UPS, names)]
    assert told == list(names)


def test_without_questions_there_are_no_figures_but_their_number():
    variants, _ = family(1)
    chosen = choose({"name": variants}, NOBODY, PROTOCOL)
    measured = measure({"name": variants}, chosen, NOBODY, POPULARITY, PROTOCOL)
    for look_up in LOOK_UPS:
        assert "ndcg_at_20" not in measured[look_up]["name"]
        assert sum(stratum["questions"] for stratum in measured[look_up]["name"]["strata"].values()) == 0
