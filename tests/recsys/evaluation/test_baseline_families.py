import numpy as np
import pytest
from scipy import sparse

from recsys.evaluation import baseline_families as module
from recsys.evaluation.baseline_families import families
from recsys.evaluation.baselines import Content, CoOccurrence, Ease, ItemKNN, Popularity, WindowedItemKNN, users_of_both
from recsys.evaluation.protocol import EvaluationProtocol
from recsys.index.queries import Queries

NUM_USERS, NUM_ITEMS = 14, 8
PROTOCOL = EvaluationProtocol(shrinkages=(0.0, 7.0), ease_penalties=(2.0,), ease_max_items=NUM_ITEMS)

rng = np.random.default_rng(0)
TOUCHED = sparse.csr_array((rng.random((NUM_USERS, NUM_ITEMS)) < 0.4).astype(np.float32))
NEAR, FAR = (
    sparse.csr_array(np.triu(rng.integers(0, 4, (NUM_ITEMS, NUM_ITEMS)), 1).astype(np.float32)) for _ in range(2)
)
PAIRS = {(10, 1.0): NEAR, (5, 0.5): FAR}
BAGS = sparse.csr_array((rng.random((NUM_ITEMS, 3)) < 0.6).astype(np.float64))
POPULARITY = np.array([3, 1, 4, 1, 5, 9, 2, 6])


def test_every_baseline_has_its_settings():
    found = families(TOUCHED, PAIRS, BAGS, POPULARITY, PROTOCOL)
    assert {name: [variant.settings for variant in variants] for name, variants in found.items()} == {
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
        "content_popularity": [{}],
    }


@pytest.mark.parametrize(
    ("name", "number", "expected"),
    [
        ("popularity", 0, lambda: Popularity(POPULARITY)),
        ("co_occurrence", 0, lambda: CoOccurrence(users_of_both(TOUCHED))),
        ("item_knn", 1, lambda: ItemKNN(users_of_both(TOUCHED), 7.0)),
        ("windowed_item_knn", 1, lambda: WindowedItemKNN(NEAR, 7.0)),
        ("windowed_item_knn", 2, lambda: WindowedItemKNN(FAR, 0.0)),
        ("windowed_item_knn", 3, lambda: WindowedItemKNN(FAR, 7.0)),
        ("ease", 0, lambda: Ease(users_of_both(TOUCHED), 2.0)),
        ("content", 0, lambda: Content(BAGS)),
        ("content_popularity", 0, lambda: Content(BAGS, POPULARITY)),
    ],
    ids=lambda value: "" if callable(value) else str(value),
)
def test_a_variant_fits_the_model_with_its_settings(name, number, expected):
    queries = Queries.from_items(np.arange(NUM_ITEMS, dtype=np.int32))
    model = families(TOUCHED, PAIRS, BAGS, POPULARITY, PROTOCOL)[name][number].fit()
    np.testing.assert_array_equal(model.top_k(queries, 5), expected().top_k(queries, 5))


def test_every_variant_answers():
    queries = Queries.from_items(np.arange(NUM_ITEMS, dtype=np.int32))
    for variants in families(TOUCHED, PAIRS, BAGS, POPULARITY, PROTOCOL).values():
        for variant in variants:
            assert variant.fit().top_k(queries, 3).shape == (NUM_ITEMS, 3)


def test_ease_is_left_out_of_large_catalogs():
    small = PROTOCOL._replace(ease_max_items=NUM_ITEMS - 1)
    assert "ease" not in families(TOUCHED, PAIRS, BAGS, POPULARITY, small)


def test_without_attributes_there_is_no_content():
    assert not {"content", "content_popularity"} & {*families(TOUCHED, PAIRS, None, POPULARITY, PROTOCOL)}


def test_what_variants_share_is_counted_once(monkeypatch):
    counted = []
    monkeypatch.setattr(module, "users_of_both", lambda touched: counted.append(1) or users_of_both(touched))
    found = families(TOUCHED, PAIRS, BAGS, POPULARITY, PROTOCOL)
    assert not counted
    for name in ("co_occurrence", "item_knn", "ease"):
        for variant in found[name]:
            variant.fit()
    assert counted == [1]
