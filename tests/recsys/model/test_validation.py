import numpy as np
import pytest

from recsys.data.splits import Holdout
from recsys.evaluation.metrics import VALIDATION_SCORE
from recsys.evaluation.protocol import PROTOCOL
from recsys.index.distances import COSINE
from recsys.model.validation import Validation
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


def test_history_queries_use_the_best_recency(embeddings):
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
    figures = Validation(holdout, COSINE, protocol=PROTOCOL._replace(recencies=RECENCIES)).evaluate(embeddings)
    assert figures["validation_history_ndcg_at_20"] == pytest.approx(ndcg[best], abs=1e-9)
    assert figures["validation_recency"] == best


def test_only_retrievable_items_take_ranks(embeddings):
    """With one target as the only retrievable item, each query that may return it ranks it first."""
    holdout = misleading_holdout()
    retrievable = np.zeros(NUM_ITEMS, bool)
    retrievable[5] = True
    figures = Validation(holdout, COSINE, retrievable).evaluate(embeddings)
    assert figures["validation_hr_at_5"] == pytest.approx(np.mean(holdout.targets == 5))
    assert figures["validation_mrr_at_5"] == figures["validation_hr_at_5"]
