import numpy as np
import polars as pl
import pytest
from scipy import sparse

from recsys.data.association import partial_weights, shrunk_lift
from recsys.data.catalog import Catalog
from recsys.evaluation import likeness
from recsys.evaluation.likeness import (
    CatalogEvidence,
    Evidence,
    K,
    column_agreement,
    graded_ndcg,
    group_item_numbers,
    group_recall,
    likeness_report,
    mean_interval,
)

NUM_ITEMS = 30


class FixedNeighbors:
    """A recommender with fixed results."""

    def __init__(self, neighbors):
        self.neighbors = neighbors

    def top_k(self, queries, k):
        result = np.full((len(queries), k), -1, np.int32)
        for row, item in enumerate(queries.items[:, 0]):
            neighbors = self.neighbors[item][:k]
            result[row, : len(neighbors)] = neighbors
        return result


def random_order(seed=0):
    rng = np.random.default_rng(seed)
    return np.array([[n for n in rng.permutation(NUM_ITEMS) if n != item] for item in range(NUM_ITEMS)], np.int32)


def random_relevance(seed=0):
    """Items 3 and 8 have no evidence."""
    rng = np.random.default_rng(seed)
    dense = rng.random((NUM_ITEMS, NUM_ITEMS)) * (rng.random((NUM_ITEMS, NUM_ITEMS)) < 0.4)
    np.fill_diagonal(dense, 0)
    dense[[3, 8]] = dense[:, [3, 8]] = 0
    return dense


def naive_ndcg(order, gains, judged):
    received = [gains[item] for item in order if judged[item]][:10]
    ideal = sorted(gains, reverse=True)[:10]
    dcg, best = (sum(gain / np.log2(rank + 2) for rank, gain in enumerate(each)) for each in (received, ideal))
    return dcg / best


def test_graded_ndcg_skips_items_without_evidence():
    order, gains = random_order(), random_relevance()
    judged = gains.sum(axis=0) > 0
    items = np.array([9, 3, 0, 21, 8], np.int32)
    ndcg = graded_ndcg(order[items], items, sparse.csr_array(gains), judged)
    expected = [np.nan if item in (3, 8) else naive_ndcg(order[item], gains[item], judged) for item in items]
    np.testing.assert_allclose(ndcg, expected)


def test_graded_ndcg_of_the_best_order_is_1_and_of_no_neighbors_0():
    gains = random_relevance()
    items = np.setdiff1d(np.arange(NUM_ITEMS), [3, 8]).astype(np.int32)
    best = np.argsort(-gains[items], axis=1, kind="stable").astype(np.int32)
    judged = gains.sum(axis=0) > 0
    np.testing.assert_allclose(graded_ndcg(best, items, sparse.csr_array(gains), judged), 1)
    useless = np.full((len(items), 2), -1, np.int32)
    useless[:, 0] = 3
    np.testing.assert_allclose(graded_ndcg(useless, items, sparse.csr_array(gains), judged), 0)


def test_group_recall_counts_the_other_members():
    items = np.array([2, 5, 1], np.int32)  # 11 and 12 have no neighbors
    nearest = np.full((3, K), -1, np.int32)
    nearest[0, :3] = 5, 1, 7
    nearest[1, :1] = 11
    nearest[2, :2] = 2, 20
    groups = [np.array([1, 2, 5]), np.array([11, 12])]
    assert group_recall(nearest, items, groups).tolist() == [1 / 2, 2 / 2, 0, 0, 0]


def test_group_recall_of_a_large_group_can_reach_1():
    members = np.arange(15, dtype=np.int32)
    nearest = np.array([[n for n in members if n != item][:K] for item in range(15)], np.int32)
    assert group_recall(nearest, members, [members]).tolist() == [1.0] * 15


def test_column_agreement_is_the_mean_cosine_of_neighbors():
    dense = np.zeros((NUM_ITEMS, 3))
    dense[[0, 1]] = [0.6, 0.8, 0]
    dense[2] = [1, 0, 0]
    nearest = np.full((3, K), -1, np.int32)
    nearest[0, :3] = 1, 2, 9
    nearest[1, :1] = 2
    agreement = column_agreement(nearest, np.array([0, 1, 9], np.int32), sparse.csr_array(dense))
    np.testing.assert_allclose(agreement, [(1 + 0.6) / K, 0.6 / K, np.nan])  # item 9 has no terms


@pytest.mark.parametrize(("users_per_item", "min_users"), [(60, 20), (14, 10), (7, 5), (3, 5)])
def test_evidence_is_the_association_of_items_with_enough_users(users_per_item, min_users):
    """Every item has `users_per_item` users or a few more, but item 2 has 4."""
    rng = np.random.default_rng(0)
    dense = np.zeros((90, 11), np.float32)
    for item in range(11):
        dense[rng.choice(90, 4 if item == 2 else users_per_item + item % 3, replace=False), item] = 1
    evidence = Evidence.from_interactions(sparse.csr_array(dense))
    judged = np.flatnonzero(dense.sum(axis=0) >= min_users)
    known = np.zeros_like(dense)
    known[:, judged] = dense[:, judged]
    assert 2 not in judged
    lift = shrunk_lift(sparse.csr_array(known), min_users / 2, 11).toarray()
    partial = partial_weights(sparse.csr_array(known), 5 * min_users, 1.0, 11).toarray()
    np.testing.assert_array_equal(evidence.lift.toarray(), lift)
    np.testing.assert_array_equal(evidence.partial.toarray(), partial)
    assert np.flatnonzero(evidence.judged).tolist() == judged.tolist()
    sample = Evidence.from_interactions(sparse.csr_array(dense), max_items=4)
    assert len(sample.items) == min(4, len(evidence.items))
    for rows, expected in ((sample.lift, lift), (sample.partial, partial)):
        np.testing.assert_array_equal(rows.toarray()[sample.items], expected[sample.items])
        assert rows.nnz == np.count_nonzero(expected[sample.items])
    assert bool(lift.any()) == (users_per_item > 5)


def test_mean_interval_contains_the_mean_and_narrows_with_more_values():
    values = np.random.default_rng(1).random(400)
    low, high = mean_interval(values, 500)
    few_low, few_high = mean_interval(values[:25], 500)
    assert low < values.mean() < high
    standard_error = values.std() / np.sqrt(len(values))
    assert high - low == pytest.approx(2 * 1.96 * standard_error, rel=0.15)
    assert few_high - few_low > 2 * (high - low)


def test_report_has_every_figure_with_its_interval():
    order, gains = random_order(1), random_relevance(1)
    rng = np.random.default_rng(0)
    columns = np.eye(NUM_ITEMS)[rng.integers(0, 4, NUM_ITEMS)]
    popularity = np.arange(NUM_ITEMS) * 9  # item 0 has no interactions; items 0 and 1 are rare, 12 and later popular
    other_gains = random_relevance(2)
    other_gains[11] = 0
    users = Evidence(sparse.csr_array(gains), sparse.csr_array(other_gains), gains.sum(axis=0) > 0)
    catalog = CatalogEvidence([np.array([4, 9, 17], np.int32)], sparse.csr_array(columns))
    report = likeness_report(FixedNeighbors(order), popularity, resamples=200, users=users, catalog=catalog)

    def ndcg(relevance, item):
        return naive_ndcg(order[item], relevance[item], gains.sum(axis=0) > 0)

    judged = [item for item in range(1, NUM_ITEMS) if item not in (3, 8)]
    both = [item for item in judged if item != 11]
    lift, partial = ([ndcg(each, item) for item in both] for each in (gains, other_gains))
    assert report["lift_agreement_at_10"] == pytest.approx(np.mean([ndcg(gains, item) for item in judged]))
    assert report["partial_agreement_at_10"] == pytest.approx(np.mean(partial))
    assert report["agreement_at_10"] == pytest.approx(np.mean([lift, partial]))
    recall = np.mean([len({4, 9, 17} & {*order[item, :10].tolist()}) / 2 for item in (4, 9, 17)])
    assert report["group_recall_at_10"] == pytest.approx(recall)
    cosine = np.mean([columns[item] @ columns[other] for item in range(1, NUM_ITEMS) for other in order[item, :10]])
    assert report["column_agreement_at_10"] == pytest.approx(cosine)
    assert report["popularity_at_10"] == np.median(popularity[order[1:, :10]])
    assert report["rare_at_10"] == pytest.approx(np.mean(popularity[order[12:, :10]] < likeness.RARE))
    assert report["queries"] == {
        "agreement_at_10": len(both),
        "lift_agreement_at_10": len(judged),
        "partial_agreement_at_10": len(both),
        "group_recall_at_10": 3,
        "column_agreement_at_10": NUM_ITEMS - 1,
    }
    for name, (low, high) in report["intervals"].items():
        assert low <= report[name] <= high


def test_report_without_evidence_has_only_the_popularity_of_neighbors():
    report = likeness_report(FixedNeighbors(random_order()), np.full(NUM_ITEMS, 5), resamples=10)
    assert report["intervals"] == {}
    assert report["queries"] == {}
    assert (report["popularity_at_10"], report["rare_at_10"]) == (5, 0)


def test_groups_contain_only_items_of_the_catalog():
    catalog = Catalog(pl.DataFrame({"item_id": ["b", "c", "d", "e", "f"], "interactions": [1] * 5}))
    groups = group_item_numbers({"one": ["f", "b", "x"], "two": ["d", "y"], "three": ["f", "f"]}, catalog)
    assert [group.tolist() for group in groups] == [[0, 4]]


def test_evidence_is_the_same_after_it_was_saved(tmp_path):
    rng = np.random.default_rng(2)
    interactions = sparse.csr_array((rng.random((70, 13)) < 0.4).astype(np.float32))
    evidence = Evidence.from_interactions(interactions)
    evidence.save(tmp_path / "evidence.npz")
    loaded = Evidence.load(tmp_path / "evidence.npz")
    assert loaded.items.tolist() == evidence.items.tolist()
    assert len(loaded.items) > 0
    np.testing.assert_array_equal(loaded.lift.toarray(), evidence.lift.toarray())
    np.testing.assert_array_equal(loaded.partial.toarray(), evidence.partial.toarray())
    np.testing.assert_array_equal(loaded.judged, evidence.judged)
