"""What the benchmarks make up is what the stages read."""

from benchmarks import training
from recsys.pairs import Pairs


def test_the_made_up_pairs_of_the_memory_benchmark_are_read_as_prepared_ones_are(tmp_path):
    training.made_up(tmp_path / "pairs.parquet", positives=3)
    matrix = Pairs([tmp_path / "pairs.parquet"], training.PAIRS_ITEMS, "weight").matrix().toarray()
    assert (matrix > 0).sum() == 3 * len(matrix)
    assert matrix[0, 1] > matrix[0, 2] > matrix[0, 3] > 0
    last = len(matrix) - 1
    assert matrix[last, 0] == matrix[0, 1]
