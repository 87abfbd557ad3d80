"""Synthetic data and metrics of the benchmarks."""

import numpy as np
import pytest
from scipy import sparse

from benchmarks import new_items, training
from recsys.data.pairs import Pairs
from recsys.index.exact import ExactIndex


def test_synthetic_pairs_of_the_memory_benchmark_can_be_loaded(tmp_path):
    training.write_pairs(tmp_path / "pairs.parquet", positives=3)
    matrix = Pairs([tmp_path / "pairs.parquet"], training.PAIRS_ITEMS, "weight").to_matrix().toarray()
    assert (matrix > 0).sum() == 3 * len(matrix)
    assert matrix[0, 1] > matrix[0, 2] > matrix[0, 3] > 0
    last = len(matrix) - 1
    assert matrix[last, 0] == matrix[0, 1]


def test_ndcg_of_new_items_uses_pair_weights_as_gains():
    """The first result has an irrelevant item and padding; the second is ideal."""
    relevance = sparse.csr_array(np.array([[0, 5, 2, 0, 1], [0, 0, 0, 4, 3]], float))
    results = np.array([[2, 0, 4, -1], [3, 4, 0, 1]], np.int32)
    ideal = 5 + 2 / np.log2(3) + 1 / np.log2(4)
    assert new_items.ndcg(results[:1], relevance[:1]) == pytest.approx((2 + 1 / np.log2(4)) / ideal)
    assert new_items.ndcg(results, relevance) == pytest.approx(((2 + 1 / np.log2(4)) / ideal + 1) / 2)


def test_hidden_items_are_retrieved_by_one_half_of_the_users_and_judged_by_the_other():
    """Items 4 to 6 are hidden. The halves agree on item 4 and disagree on item 6; the first has no pairs of item 5.

    Ties are ordered by item number.
    """
    vectors = np.eye(7, 5, dtype=np.float32)
    vectors[[4, 5, 6]] = np.eye(5)[[1, 0, 3]]  # by features, item 4 is near item 1, and item 6 near item 3 (correct)
    own_half, other_half = np.zeros((7, 7), np.float32), np.zeros((7, 7), np.float32)
    own_half[[4, 6], [2, 0]] = 3
    own_half[4, 6] = 9  # a pair of two hidden items is ignored
    other_half[[4, 5, 6], [2, 0, 3]] = 2
    halves = [sparse.csr_array(half) for half in (own_half, other_half)]
    report = new_items._compare_own_interactions(
        halves, {"siamese": ExactIndex(vectors)}, vectors, np.array([4, 5, 6], np.int32)
    )
    ranks = {"siamese": (3, 1), "own_half": (1, 4), "own_half_and_features": (2, 2)}
    expected = {name: np.mean([1 / np.log2(rank + 1) for rank in both]) for name, both in ranks.items()}
    assert report["queries"] == 2
    assert report["ndcg_at_20"] == pytest.approx(expected)
    assert report["ratios"]["own_half"] == pytest.approx(expected["siamese"] / expected["own_half"])
