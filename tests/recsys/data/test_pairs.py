from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from recsys.data import cooccurrence, pairs

WEIGHTS = ("weight", "validation_weight")
SCHEMA = {name: cooccurrence.SCHEMA[name] for name in ("anchor", "positive", *WEIGHTS)}

NUM_ITEMS = 41
SLICE = 30
"""Pairs in a row group in these tests."""
LONGEST = 12
"""Maximum number of positives of an anchor."""


@pytest.fixture(autouse=True)
def small_slices(monkeypatch):
    monkeypatch.setattr(pairs, "ROW_GROUP_PAIRS", SLICE)


def random_pairs(seed=0):
    """Items 0 and 17 have no pairs, 5 and 22 have none for validation; some of these weights are 0."""
    rng = np.random.default_rng(seed)
    rows = []
    for anchor in rng.permutation(NUM_ITEMS).tolist():
        if anchor in (0, 17):
            continue
        others = rng.choice(np.setdiff1d(np.arange(NUM_ITEMS), [anchor, 17]), rng.integers(1, LONGEST), replace=False)
        for positive in others.tolist():
            weight = float(rng.choice([0.25, 1.0, 3.5]))
            validation = 0.0 if anchor in (5, 22) or rng.random() < 0.3 else weight / 2
            rows.append((anchor, positive, weight, validation))
    return rows


def on_disk(folder, weight="weight", rows=None, num_parts=4):
    """Write pairs in several parts; the last one has no rows, as for a shard without pairs."""
    rows = random_pairs() if rows is None else rows
    parts = []
    for number in range(num_parts):
        some = [row for row in rows if row[0] % (num_parts - 1) == number]
        frame = pl.DataFrame(some, schema=SCHEMA, orient="row")
        parts.append(folder / f"part-{number}.parquet")
        pairs.write(cooccurrence.group_by_anchor(frame, max_positives=100), parts[-1])
    return pairs.Pairs(parts, NUM_ITEMS, weight)


def dense_of(rows, column):
    dense = np.zeros((NUM_ITEMS, NUM_ITEMS), np.float32)
    for row in rows:
        dense[row[0], row[1]] = row[column]
    return dense


@pytest.fixture(params=WEIGHTS)
def stored(request, tmp_path):
    """Pairs on disk, and the same pairs as a dense matrix."""
    return on_disk(tmp_path, request.param), dense_of(random_pairs(), 2 + WEIGHTS.index(request.param))


def test_slices_have_about_the_size_of_a_row_group(stored):
    on_disk, _ = stored
    rows = random_pairs()
    assert len(on_disk.slices) > len(on_disk.parts)
    assert max(part.size for part in on_disk.slices) < SLICE + LONGEST
    assert sum(part.size for part in on_disk.slices) == on_disk.size == len(rows)


def test_files_have_a_row_group_per_slice(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    stored = on_disk(tmp_path)
    numbers = [parquet.ParquetFile(part).metadata.num_row_groups for part in stored.parts]
    expected = [pl.read_parquet(part)["size"].sum() / SLICE for part in stored.parts]
    assert all(number >= size // 1 for number, size in zip(numbers, expected, strict=True))
    assert max(numbers) > 1


def test_iteration_reads_every_row_once_and_equals_to_matrix(stored):
    on_disk, dense = stored
    seen = []
    for block in on_disk:
        assert block.rows.dtype == np.float32
        assert block.anchors.dtype == np.int32
        assert (block.rows.data > 0).all()
        np.testing.assert_array_equal(block.rows.toarray(), dense[block.anchors])
        seen += block.anchors.tolist()
    assert sorted(seen) == np.flatnonzero(dense.any(axis=1)).tolist()
    np.testing.assert_array_equal(on_disk.to_matrix().toarray(), dense)
    assert on_disk.to_matrix().nnz == np.count_nonzero(dense)


def test_counts_and_totals_equal_naive_sums(stored):
    on_disk, dense = stored
    rows = dense.astype(float).tolist()
    assert on_disk.counts.tolist() == [sum(value > 0 for value in row) for row in rows]
    anchor, positive, share = on_disk.totals
    assert anchor == pytest.approx([sum(row) for row in rows])
    assert positive == pytest.approx([sum(row[item] for row in rows) for item in range(NUM_ITEMS)])
    anchors = [row for row in rows if sum(row)]
    assert share == pytest.approx(
        [sum(row[item] / sum(row) for row in anchors) / len(anchors) for item in range(NUM_ITEMS)]
    )
    assert share.sum() == pytest.approx(1)


def test_shares_of_subnormal_float32_weights_are_finite(tmp_path):
    stored = on_disk(tmp_path, rows=[(0, 1, 2e-42, 0.0), (0, 2, 2e-42, 0.0), (1, 0, 4.0, 0.0)])
    np.testing.assert_allclose(stored.totals[2][:3], [0.5, 0.25, 0.25], rtol=1e-3)


@pytest.mark.parametrize("buffer_pairs", [1, 25, 77, 10_000], ids="buffer {}".format)
def test_shuffled_yields_every_row_once(stored, buffer_pairs):
    on_disk, dense = stored
    seen = []
    for block in on_disk.shuffled(np.random.default_rng(0), buffer_pairs):
        np.testing.assert_array_equal(block.rows.toarray(), dense[block.anchors])
        seen += block.anchors.tolist()
    assert sorted(seen) == np.flatnonzero(dense.any(axis=1)).tolist()


@pytest.mark.parametrize("buffer_pairs", [1, 25, 77, 10_000], ids="buffer {}".format)
def test_shuffled_order_depends_on_pass_and_seed(tmp_path, buffer_pairs):
    stored = on_disk(tmp_path)

    def order(rng):
        return [number for block in stored.shuffled(rng, buffer_pairs) for number in block.anchors.tolist()]

    one, again, other = (np.random.default_rng(seed) for seed in (4, 4, 5))
    first, second = order(one), order(one)
    assert first != second
    assert [order(again), order(again)] == [first, second]
    assert order(other) != first


def test_shuffled_reads_slices_in_random_order(tmp_path):
    stored = on_disk(tmp_path)
    rng = np.random.default_rng(2)
    firsts = {frozenset(next(stored.shuffled(rng, 1)).anchors.tolist()) for _ in range(12)}
    assert len(firsts) > 3


def test_shuffled_mixes_rows_of_different_parts(tmp_path):
    stored = on_disk(tmp_path)
    (block,) = stored.shuffled(np.random.default_rng(0), 10_000)
    parts = [number % 3 for number in block.anchors.tolist()]
    assert sum(one != other for one, other in pairwise(parts)) > 10


@pytest.mark.parametrize("buffer_pairs", [1, 25, 77], ids="buffer {}".format)
def test_shuffled_buffers_at_most_the_given_pairs_and_one_slice(tmp_path, monkeypatch, buffer_pairs):
    stored = on_disk(tmp_path)
    read = []
    original = pairs.Pairs.read_slice

    def watched(self, part):
        read.append(part.size)
        return original(self, part)

    monkeypatch.setattr(pairs.Pairs, "read_slice", watched)
    largest = max(part.size for part in stored.slices)
    for block in stored.shuffled(np.random.default_rng(1), buffer_pairs):
        # the block contains all slices read since the previous one, and each was needed to fill it
        assert sum(read) == block.rows.nnz < buffer_pairs + largest
        assert sum(read[:-1]) < buffer_pairs
        read.clear()
    assert not read


def test_pairs_that_fit_into_the_buffer_are_read_once_for_all_passes(tmp_path, monkeypatch):
    stored = on_disk(tmp_path)
    read = []
    original = pairs.Pairs.read_slice
    monkeypatch.setattr(pairs.Pairs, "read_slice", lambda self, part: (read.append(part), original(self, part))[1])
    rng = np.random.default_rng(1)
    for _ in range(3):
        for _ in stored.shuffled(rng, stored.size):
            pass
    assert len(read) == len(stored.slices)


def test_empty_pairs(tmp_path):
    stored = on_disk(tmp_path, rows=[])
    assert stored.size == 0
    assert list(stored) == list(stored.shuffled(np.random.default_rng(0), 10)) == []
    assert stored.to_matrix().nnz == stored.counts.sum() == stored.totals[0].sum() == stored.totals[2].sum() == 0


def test_take_and_concatenate_keep_rows_and_anchors_together(tmp_path):
    dense = dense_of(random_pairs(), 2)
    blocks = list(on_disk(tmp_path))[:3]
    block = pairs.concatenate(blocks)
    selected = block.take(np.array([7, 2, 11]))
    assert selected.anchors.tolist() == block.anchors[[7, 2, 11]].tolist()
    np.testing.assert_array_equal(selected.rows.toarray(), dense[selected.anchors])
