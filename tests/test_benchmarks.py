"""What the benchmarks make up is what the stages read, and what they count is right."""

import numpy as np
import pytest
from scipy import sparse

from benchmarks import new_items, training
from recsys.data.pairs import Pairs
from recsys.index.exact import ExactIndex


def test_the_made_up_pairs_of_the_memory_benchmark_are_read_as_prepared_ones_are(tmp_path):
    training.made_up(tmp_path / "pairs.parquet", positives=3)
    matrix = Pairs([tmp_path / "pairs.parquet"], training.PAIRS_ITEMS, "weight").to_matrix().toarray()
    assert (matrix > 0).sum() == 3 * len(matrix)
    assert matrix[0, 1] > matrix[0, 2] > matrix[0, 3] > 0
    last = len(matrix) - 1
    assert matrix[last, 0] == matrix[0, 1]


def test_pair_weights_are_the_gains_of_new_items():
    """Three answers of which one is worth nothing and one pads, and a question whose best answers are all found."""
    relevance = sparse.csr_array(np.array([[0, 5, 2, 0, 1], [0, 0, 0, 4, 3]], float))
    answers = np.array([[2, 0, 4, -1], [3, 4, 0, 1]], np.int32)
    best = 5 + 2 / np.log2(3) + 1 / np.log2(4)
    assert new_items.ndcg(answers[:1], relevance[:1]) == pytest.approx((2 + 1 / np.log2(4)) / best)
    assert new_items.ndcg(answers, relevance) == pytest.approx(((2 + 1 / np.log2(4)) / best + 1) / 2)


def test_half_of_the_users_place_a_hidden_item_and_the_other_half_judge_it():
    """Items 4 to 6 are hidden. Of 4 both halves say item 2, of 5 the first half says nothing, of 6 they disagree.

    Where answers are equally near, the smaller number comes first.
    """
    vectors = np.eye(7, 5, dtype=np.float32)
    vectors[[4, 5, 6]] = np.eye(5)[[1, 0, 3]]  # by features 4 is near item 1, and 6 near item 3, which is right
    own, others = np.zeros((7, 7), np.float32), np.zeros((7, 7), np.float32)
    own[[4, 6], [2, 0]] = 3
    own[4, 6] = 9  # hidden as well: no place to be near
    others[[4, 5, 6], [2, 0, 3]] = 2
    halves = [sparse.csr_array(half) for half in (own, others)]
    found = new_items._beside_own(halves, {"siamese": ExactIndex(vectors)}, vectors, np.array([4, 5, 6], np.int32))
    ranks = {"siamese": (3, 1), "own_half": (1, 4), "own_half_and_features": (2, 2)}
    expected = {name: np.mean([1 / np.log2(rank + 1) for rank in both]) for name, both in ranks.items()}
    assert found["questions"] == 2
    assert found["ndcg_at_20"] == pytest.approx(expected)
    assert found["ratios"]["own_half"] == pytest.approx(expected["siamese"] / expected["own_half"])
