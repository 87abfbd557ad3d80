import numpy as np
import pytest
from scipy import sparse

from recsys.data.splits import Holdout
from recsys.evaluation.likeness import Evidence, likeness_report
from recsys.evaluation.metrics import VALIDATION_SCORE, VALIDATION_TOLERANCE
from recsys.evaluation.protocol import PROTOCOL
from recsys.index.distances import COSINE
from recsys.index.exact import ExactIndex
from recsys.model import validation
from recsys.model.validation import LikenessValidation, Validation
from tests.recsys.model.block_world import NUM_ITEMS, misleading_holdout

RECENCIES = (0.9, 0.1, 0.4)


@pytest.fixture
def embeddings():
    vectors = np.random.default_rng(3).normal(size=(NUM_ITEMS, 8)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_score_is_the_mean_ndcg_of_last_item_and_history_queries(embeddings):
    figures = Validation(misleading_holdout(), COSINE).evaluate(embeddings)
    values = [figures["validation_ndcg_at_20"], figures["validation_history_ndcg_at_20"]]
    assert figures[VALIDATION_SCORE] == pytest.approx(sum(values) / 2)


def test_history_queries_use_a_recency_or_the_best_one(embeddings):
    """Three items per user; computed again with the mean of their embeddings, for each recency."""
    rng = np.random.default_rng(0)
    sequences = [rng.choice(NUM_ITEMS, 4, replace=False) for _ in range(25)]
    starts = 4 * np.arange(25)
    holdout = Holdout(np.concatenate(sequences).astype(np.int32), starts, starts + 3)
    ndcg = {}
    for recency in RECENCIES:
        gains = []
        for sequence in sequences:
            mean = sum(recency**step * embeddings[item] for step, item in enumerate(sequence[:3][::-1]))
            history = sequence[:3].tolist()
            order = [number for number in np.argsort(-(embeddings @ mean)).tolist() if number not in history]
            gains.append(1 / np.log2(order.index(sequence[3]) + 2))
        ndcg[recency] = np.mean(gains)
    best = max(ndcg, key=ndcg.get)
    assert len(set(ndcg.values())) == len(RECENCIES)
    validation = Validation(holdout, COSINE, recency=0.1, protocol=PROTOCOL._replace(recencies=RECENCIES))
    assert validation.evaluate(embeddings)["validation_history_ndcg_at_20"] == pytest.approx(ndcg[0.1], abs=1e-9)
    chosen = validation.with_best_recency(embeddings)
    assert chosen.recency == best
    assert chosen.evaluate(embeddings)["validation_history_ndcg_at_20"] == pytest.approx(ndcg[best], abs=1e-9)


def test_only_retrievable_items_take_ranks(embeddings):
    """With one target as the only retrievable item, each query that may return it ranks it first."""
    holdout = misleading_holdout()
    retrievable = np.zeros(NUM_ITEMS, bool)
    retrievable[5] = True
    figures = Validation(holdout, COSINE, retrievable).evaluate(embeddings)
    assert figures["validation_hr_at_5"] == pytest.approx(np.mean(holdout.targets == 5))
    assert figures["validation_mrr_at_5"] == figures["validation_hr_at_5"]


def association(seed):
    """Item 2 has no evidence."""
    rng = np.random.default_rng(seed)
    dense = rng.random((NUM_ITEMS, NUM_ITEMS)) * (rng.random((NUM_ITEMS, NUM_ITEMS)) < 0.5)
    dense[2] = dense[:, 2] = 0
    return sparse.csr_array(dense - np.diag(dense.diagonal()))


def test_likeness_is_the_agreement_of_neighbors_with_interactions(embeddings):
    popularity = np.full(NUM_ITEMS, 3)
    popularity[[0, 7]] = 0
    evidence = Evidence(association(0), association(1), np.arange(NUM_ITEMS) != 2)
    figures = LikenessValidation(evidence, popularity > 0, COSINE).evaluate(embeddings)
    report = likeness_report(ExactIndex(embeddings, COSINE, popularity > 0), popularity, resamples=500, users=evidence)
    expected = {f"validation_{name}": report[name] for name in report if "agreement" in name}
    assert len(expected) == 3
    tolerance = figures.pop(VALIDATION_TOLERANCE)
    low, high = report["intervals"]["agreement_at_10"]
    assert tolerance == pytest.approx((high - low) / 2 / 1.96, rel=0.2)
    assert figures == pytest.approx({**expected, VALIDATION_SCORE: report["agreement_at_10"]})
    everything = likeness_report(ExactIndex(embeddings), popularity, resamples=10, users=evidence)
    assert everything["agreement_at_10"] != report["agreement_at_10"]


def test_likeness_of_a_large_catalog_is_measured_on_a_sample_of_the_judged_items(embeddings, monkeypatch):
    monkeypatch.setattr(validation, "MAX_ITEMS", 5)
    searched = []
    top_k = ExactIndex.top_k
    monkeypatch.setattr(ExactIndex, "top_k", lambda self, q, k: (searched.append(q.items[:, 0]), top_k(self, q, k))[1])
    evaluated = LikenessValidation(
        Evidence(association(0), association(1), np.arange(NUM_ITEMS) != 2), np.ones(NUM_ITEMS, bool), COSINE
    )
    assert evaluated.evaluate(embeddings) == evaluated.evaluate(embeddings)
    assert len(set(searched[0].tolist())) == 5
    assert 2 not in searched[0]
    assert searched[0].tolist() == searched[1].tolist()
