import math

import numpy as np
import pytest
from scipy import sparse

from recsys.config.sections import CandidatesConfig
from recsys.errors import StageError
from recsys.model import negatives
from recsys.model.negatives import Anchors, Sampler

NUM_ITEMS = 23
DENSE = np.zeros((NUM_ITEMS, NUM_ITEMS), np.float32)
for left, right, pair_weight in (
    (0, 1, 3.0), (0, 4, 1.0), (0, 12, 0.25), (1, 2, 0.5), (4, 7, 2.0), (7, 8, 1.5), (2, 9, 4.0), (9, 11, 1.0),
    (11, 12, 60.0), (13, 14, 2.5), (14, 15, 1.0), (16, 0, 0.75), (16, 18, 1.25), (19, 20, 3.0), (20, 14, 0.5),
):  # fmt: skip
    DENSE[left, right] = DENSE[right, left] = pair_weight
DENSE[21, [3, 0, 9]] = 1.0
"""Items 5, 6, 10, 17 and 22 have no pairs; 21 is only an anchor, 3 only a positive."""
IS_POSITIVE = np.array([DENSE[:, item].any() for item in range(NUM_ITEMS)])
"""Whether an item is the positive of any anchor."""

SMALL = {"max_positives": 6, "negatives": 4}
KINDS = ["catalog", "sampled", "in_batch", "mixed"]
BATCHES = [[[0], [4], [13]], [[9], [21], [2]], [[20], [11], [1]], [[19], [16], [0]]]
HISTORIES = [
    [[0, 5, 7], [22, -1, -1], [9, 0, -1]],
    [[3, 21, 14], [10, 4, -1], [5, 6, 17]],
    [[12, -1, -1], [7, 0, -1], [0, 7, 19]],
]
"""Newest items of three users; some of them have no pairs at all."""


@pytest.fixture
def sampler(store, monkeypatch):
    def make(kind="auto", *, dense=DENSE, seed=0, batch_size=3, width=1, small_catalog=1, **config):
        monkeypatch.setattr(negatives, "SMALL_CATALOG", small_catalog)
        candidates = CandidatesConfig(**{"kind": kind} | SMALL | config)
        return Sampler(store(dense), candidates, batch_size, width, np.random.default_rng(seed))

    return make


def anchors_of(items, dense=DENSE, positives=None):
    """Return anchors with the positives of their first item, or with the items `positives` of weights 1, 2, 3, ..."""
    items = np.array(items, np.int32)
    rows = dense[items[:, 0]]
    if positives is not None:
        rows = np.zeros((len(items), len(dense)), np.float32)
        for row, numbers in enumerate(positives):
            rows[row, numbers] = np.arange(1, len(numbers) + 1)
    shares = np.where(items >= 0, 0.5 ** np.arange(items.shape[1]), 0).astype(np.float32)
    weights = np.linspace(0.5, 1.5, len(items)).astype(np.float32)
    return Anchors(items, shares, sparse.csr_array(rows), weights)


def followers(items):
    """Return positives of histories; some are in their own history, some in other histories."""
    return [[(first[0] + 5) % NUM_ITEMS, 8, 12, 14][: 2 + row] for row, first in enumerate(items)]


def anchors_of_case(kind, items):
    """Return anchors of one item each, or histories, with their positives."""
    return anchors_of(items) if kind == "items" else anchors_of(items, positives=followers(items))


CASES = [("items", items) for items in BATCHES] + [("histories", items) for items in HISTORIES]


def ids(case):
    return f"{case[0]} {case[1]}" if isinstance(case, tuple) else None


# --- all kinds


@pytest.mark.parametrize("seed", range(3), ids="seed {}".format)
@pytest.mark.parametrize("case", CASES, ids=ids)
@pytest.mark.parametrize("kind", KINDS)
def test_all_items_of_the_anchors_are_candidates_and_ignored_for_their_own_anchor(sampler, kind, case, seed):
    anchors = anchors_of_case(*case)
    batch = sampler(kind, seed=seed, width=anchors.items.shape[1]).batch(anchors)
    for row, items in enumerate(case[1]):
        for column, item in enumerate(items):
            position = batch.anchors[row, column]
            if item < 0:
                assert (position, batch.shares[row, column]) == (0, 0)
            else:
                assert batch.candidates[position] == item
                assert batch.targets[row, position] == -1
    np.testing.assert_array_equal(batch.shares, anchors.shares)
    np.testing.assert_array_equal(batch.anchor_weights, anchors.weights)


@pytest.mark.parametrize("seed", range(3), ids="seed {}".format)
@pytest.mark.parametrize("case", CASES, ids=ids)
@pytest.mark.parametrize("kind", KINDS)
def test_negatives_are_all_candidates_that_are_positives_of_other_anchors_only(sampler, kind, case, seed):
    anchors = anchors_of_case(*case)
    rows = anchors.positives.toarray()
    batch = sampler(kind, seed=seed, width=anchors.items.shape[1]).batch(anchors)
    for row, items in enumerate(case[1]):
        previous, positives = set(), 0
        for column, candidate in enumerate(batch.candidates.tolist()):
            target = batch.targets[row, column]
            if candidate in previous or candidate in items:
                assert target == -1  # padding, or the anchor
            elif not rows[row, candidate]:
                assert target == (0 if IS_POSITIVE[candidate] else -1)
            elif kind in ("catalog", "sampled"):
                assert target == rows[row, candidate]
            else:
                assert target in (-1, DENSE[0, 4])
                positives += target == 1
            previous.add(candidate)
        assert positives <= 1
        if kind in ("in_batch", "mixed") and case[0] == "items":
            assert positives == 1


@pytest.mark.parametrize("kind", KINDS)
def test_batches_have_one_shape(sampler, kind):
    drawn = sampler(kind)
    shapes = {tuple(part.shape for part in drawn.batch(anchors_of(items))) for items in BATCHES}
    number = {"catalog": NUM_ITEMS, "sampled": 3 + 6 + 4, "in_batch": 3 + 3, "mixed": 3 + 3 + 4}[kind]
    assert shapes == {((number,), (3, 1), (3, 1), (3, number), (number,), (number,), (3,))}
    assert drawn.num_candidates == number


@pytest.mark.parametrize("kind", ["sampled", "in_batch", "mixed"])
def test_candidates_are_distinct_except_padding(sampler, kind):
    drawn = sampler(kind, seed=1)
    for items in BATCHES * 5:
        batch = drawn.batch(anchors_of(items))
        padding = (batch.targets == -1).all(axis=0) & IS_POSITIVE[batch.candidates]
        distinct = batch.candidates[~padding].tolist()
        assert len(set(distinct)) == len(distinct)
        assert set(batch.candidates[padding].tolist()) <= set(batch.candidates[: len(distinct) + 3].tolist())
        if kind == "sampled":
            assert len(set(batch.candidates.tolist())) == drawn.num_candidates


@pytest.mark.parametrize("kind", KINDS)
def test_order_of_the_anchors_does_not_change_the_candidates(sampler, kind):
    """Each anchor has one positive, so no draw depends on the order."""
    dense = np.zeros((NUM_ITEMS, NUM_ITEMS), np.float32)
    for number in range(0, 18, 2):
        dense[number, number + 1] = dense[number + 1, number] = number + 1
    items = np.array([[4], [9], [12], [1]])
    order = np.array([2, 0, 3, 1])
    options = {"dense": dense, "batch_size": 4, "popularity_power": 0.5, "seed": 8}
    batch = sampler(kind, **options).batch(anchors_of(items, dense))
    reordered = sampler(kind, **options).batch(anchors_of(items[order], dense))
    for name in ("candidates", "log_inclusion", "log_popularity"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(reordered, name))
    for name in ("anchors", "targets", "shares"):
        np.testing.assert_array_equal(getattr(batch, name)[order], getattr(reordered, name))


@pytest.mark.parametrize("correction", [0.0, 0.4, 1.0], ids="correction {}".format)
@pytest.mark.parametrize("kind", KINDS)
def test_log_popularity_is_the_log_of_the_share_of_all_positives(sampler, kind, correction):
    batch = sampler(kind, popularity_correction=correction).batch(anchors_of(BATCHES[2]))
    sums = [sum(row[item] for row in DENSE.tolist()) for item in range(NUM_ITEMS)]
    rarest = min(value for value in sums if value)
    expected = [correction * math.log(max(sums[item], rarest) / sum(sums)) for item in batch.candidates.tolist()]
    assert batch.log_popularity == pytest.approx(expected, rel=1e-5)


def test_rejects_a_catalog_without_pairs(sampler):
    with pytest.raises(StageError, match="at least one pair"):
        sampler(dense=np.zeros((4, 4), np.float32))


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("auto", {"small_catalog": NUM_ITEMS}, "catalog"),
        ("auto", {}, "sampled"),
        ("auto", {"max_positives": 16}, "catalog"),
        ("auto", {"small_catalog": NUM_ITEMS, "hard_negatives": 1}, "sampled"),
        ("catalog", {}, "catalog"),
        ("sampled", {"negatives": 13}, "sampled"),
        ("sampled", {"negatives": 14}, "catalog"),
        ("mixed", {"negatives": 17}, "catalog"),
        ("in_batch", {"small_catalog": NUM_ITEMS}, "in_batch"),
    ],
    ids=str,
)
def test_uses_the_whole_catalog_if_it_is_small(sampler, kind, options, expected):
    assert sampler(kind, **options).kind == expected


def test_whole_catalog_includes_every_item_with_probability_1(sampler):
    batch = sampler("catalog").batch(anchors_of(BATCHES[1]))
    assert batch.candidates.tolist() == list(range(NUM_ITEMS))
    assert (batch.log_inclusion == 0).all()


# --- sampled


@pytest.mark.parametrize("seed", range(5), ids="seed {}".format)
def test_anchors_and_positives_are_included_with_probability_1(sampler, seed):
    batch = sampler("sampled", seed=seed).batch(anchors_of([[0], [7], [19]]))
    certain = {0, 7, 19, 1, 4, 12, 16, 8, 20}
    inclusion = dict(zip(batch.candidates.tolist(), batch.log_inclusion.tolist(), strict=True))
    assert certain <= inclusion.keys()
    assert {number for number, log in inclusion.items() if log == 0} == certain


@pytest.mark.parametrize("seed", range(8), ids="seed {}".format)
def test_positives_beyond_the_limit_are_ignored(sampler, seed):
    """Anchor 0 has four positives; the limit is two."""
    batch = sampler("sampled", seed=seed, max_positives=2, batch_size=1).batch(anchors_of([[0]]))
    present = {1, 4, 12, 16} & set(batch.candidates.tolist())
    assert len(present) == 2
    assert {number: batch.targets[0, position] for position, number in enumerate(batch.candidates.tolist())} == {
        number: -1 if number == 0 or not IS_POSITIVE[number] else DENSE[0, number]
        for number in batch.candidates.tolist()
    }


def test_shape_does_not_depend_on_the_number_of_positives_and_negatives(sampler):
    dense = np.zeros((12, 12), np.float32)
    dense[0, 1:10] = dense[1:10, 0] = 1.0
    drawn = sampler("sampled", dense=dense, max_positives=3, negatives=6, batch_size=1)
    assert len(drawn.batch(anchors_of([[0]], dense)).candidates) == 10
    assert len(drawn.batch(anchors_of([[1]], dense)).candidates) == 10


def test_limits_positives_with_weights_of_very_different_magnitude(sampler):
    dense = np.zeros((30, 30), np.float32)
    dense[0, 1:10] = 1e-44
    dense[0, 10] = 1e6
    drawn = sampler("sampled", dense=dense, max_positives=5, negatives=3, batch_size=1)
    assert 10 in drawn.batch(anchors_of([[0]], dense)).candidates


def naive_inclusion(sizes, number):
    """Return probabilities proportional to the sizes, at most 1, that sum to `number`; bisects for the factor."""
    low, high = 0.0, 1e9
    for _ in range(200):
        middle = (low + high) / 2
        if sum(min(1.0, middle * size) for size in sizes) < number:
            low = middle
        else:
            high = middle
    return [min(1.0, high * size) for size in sizes]


@pytest.mark.slow
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, -0.5], ids="power {}".format)
def test_inclusion_probability_is_the_frequency_of_a_sampled_negative(sampler, power):
    drawn = sampler("sampled", batch_size=2, popularity_power=power, seed=7)
    assert drawn.num_candidates == 2 + 6 + 4
    draws, counts, inclusion = 3000, np.zeros(NUM_ITEMS), np.full(NUM_ITEMS, np.nan)
    anchors = anchors_of([[13], [19]])
    for _ in range(draws):
        batch = drawn.batch(anchors)
        counts[batch.candidates] += 1
        inclusion[batch.candidates] = np.exp(batch.log_inclusion)
    certain = [13, 14, 19, 20]
    sampled_items = [number for number in range(NUM_ITEMS) if number not in certain]
    popularity = DENSE.sum(axis=0)
    rarest = popularity[popularity > 0].min()
    expected = naive_inclusion([float(max(popularity[number], rarest)) ** power for number in sampled_items], 8)
    assert inclusion[sampled_items] == pytest.approx(expected, rel=1e-5)
    assert (inclusion[certain] == 1).all()
    tolerance = 4.5 * np.sqrt(inclusion * (1 - inclusion) / draws) + 1e-6
    assert (np.abs(counts / draws - inclusion) <= tolerance).all()
    if power == 1:
        assert inclusion[sampled_items].max() == 1  # two items are so popular that they are always included
        assert inclusion[sampled_items].min() < 0.2


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, -1.0], ids="power {}".format)
def test_draws_the_requested_number_of_distinct_negatives(sampler, power):
    drawn = sampler(popularity_power=power)
    rng = np.random.default_rng(1)
    for _ in range(300):
        pool = np.sort(rng.choice(NUM_ITEMS, rng.integers(1, NUM_ITEMS + 1), replace=False)).astype(np.int32)
        number = int(rng.integers(1, NUM_ITEMS + 3))
        known = np.setdiff1d(np.arange(NUM_ITEMS, dtype=np.int32), pool)
        items, log_inclusion = drawn._draw(known, number)
        assert len(set(items.tolist())) == len(items) == len(log_inclusion) == min(number, len(pool))
        assert set(items.tolist()) <= set(pool.tolist())
        assert (log_inclusion <= 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("power", [0.0, 0.7], ids="power {}".format)
def test_sampled_partition_function_is_unbiased(sampler, power):
    """The mean over draws of sum(exp(logit) / inclusion) is the sum over all items that are positives."""
    logits = np.random.default_rng(2).normal(0, 2, (3, NUM_ITEMS))
    drawn, anchors = sampler("sampled", seed=9, popularity_power=power), anchors_of([[2], [7], [20]])
    estimates = []
    for _ in range(4000):
        batch = drawn.batch(anchors)
        weighed = np.exp(logits[:, batch.candidates] - batch.log_inclusion)
        estimates.append(np.where(batch.targets < 0, 0, weighed).sum(axis=1))
    estimates = np.array(estimates)
    exact = np.exp(logits[:, IS_POSITIVE]).sum(axis=1) - np.exp(logits[[0, 1, 2], anchors.items[:, 0]])
    error = estimates.std(axis=0) / np.sqrt(len(estimates))
    assert (np.abs(estimates.mean(axis=0) - exact) < 4 * error + 1e-9).all()
    assert (error < 0.05 * exact).all()


# --- in batch and mixed


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["in_batch", "mixed"])
def test_positive_of_an_anchor_is_drawn_by_weight(sampler, kind):
    drawn, draws = sampler(kind, seed=3), 3000
    counts = np.zeros((3, NUM_ITEMS))
    items = [[0], [9], [14]]
    for _ in range(draws):
        batch = drawn.batch(anchors_of(items))
        row, column = np.nonzero(batch.targets > 0)
        counts[row, batch.candidates[column]] += 1
    for row, (item,) in enumerate(items):
        probability = DENSE[item] / DENSE[item].sum()
        tolerance = 4.5 * np.sqrt(probability * (1 - probability) / draws)
        assert (np.abs(counts[row] / draws - probability) <= tolerance).all()


def skewed_pairs(num_items=240, num_cold=12):
    """Pairs of items of very different popularity; some items are only positives, the last have no pairs."""
    rng = np.random.default_rng(11)
    warm = num_items - num_cold
    draw = 1 / (3.0 + np.arange(warm))
    dense = np.zeros((num_items, num_items), np.float32)
    for anchor in range(warm):
        if anchor % 9 == 4:
            continue
        positives = rng.choice(warm, rng.integers(2, 30), replace=False, p=draw / draw.sum())
        dense[anchor, positives[positives != anchor]] = rng.uniform(0.2, 3, (positives != anchor).sum())
    return dense


@pytest.mark.slow
@pytest.mark.parametrize("power", [0.0, 0.6, -0.4], ids="power {}".format)
@pytest.mark.parametrize("kind", ["in_batch", "mixed"])
def test_inclusion_probability_is_the_frequency_of_an_item_in_batches(sampler, kind, power):
    """Batches have random anchors. The formula assumes independent anchors, so a small relative error is allowed."""
    dense = skewed_pairs()
    drawn = sampler(kind, dense=dense, batch_size=16, negatives=30, popularity_power=power, seed=2)
    anchors = np.flatnonzero(dense.any(axis=1))
    rng = np.random.default_rng(5)
    draws = 3000
    counts, inclusion = np.zeros(len(dense)), np.zeros(len(dense))
    for _ in range(draws):
        batch = drawn.batch(anchors_of(rng.choice(anchors, 16, replace=False)[:, None], dense))
        _, distinct = np.unique(batch.candidates, return_index=True)  # padding is at the end
        counts[batch.candidates[distinct]] += 1
        inclusion[batch.candidates[distinct]] += np.exp(batch.log_inclusion[distinct])
    drawn_items = counts > 0
    inclusion[drawn_items] /= counts[drawn_items]
    frequency = counts / draws
    tolerance = 4.5 * np.sqrt(frequency * (1 - frequency) / draws) + 0.03 * frequency + 0.002
    assert (np.abs(frequency - inclusion)[drawn_items] <= tolerance[drawn_items]).all()
    assert frequency.max() > (8 if kind == "in_batch" else 3) * frequency[drawn_items].min()
    if kind == "in_batch":
        assert not drawn_items[-12:].any()
    else:
        assert drawn_items.all()


@pytest.mark.parametrize("kind", ["in_batch", "mixed"])
def test_history_item_without_pairs_has_the_inclusion_of_the_rarest_item(sampler, kind):
    """A probability of nearly 0 would make its correction larger than all similarities."""
    batch = sampler(kind, width=3).batch(anchors_of(HISTORIES[1], positives=[[10, 8], [5], [22, 0, 7]]))
    assert np.isfinite(batch.log_inclusion).all()
    assert batch.log_inclusion.min() > math.log(1e-3)


# --- hard negatives


def with_hard_negatives(sampler, hard):
    """Set the hard negatives of items, in the format of `hard_negatives.mine`."""
    sampler.hard_negatives = np.full((sampler.num_items, 64), -1, np.int32)
    for item, numbers in hard.items():
        sampler.hard_negatives[item, : len(numbers)] = numbers
    return sampler


@pytest.mark.parametrize("kind", ["sampled", "in_batch", "mixed"])
def test_hard_negatives_are_included_with_probability_1(sampler, kind):
    hard = {0: [8, 9, 15], 19: [2], 16: [11, 3]}
    options = {"hard_negatives": 2, "max_positives": 5, "negatives": 1, "batch_size": 2}
    drawn = with_hard_negatives(sampler(kind, **options), hard)
    items = [[0], [19]]
    included = []
    for _ in range(60):
        batch = drawn.batch(anchors_of(items))
        certain = batch.candidates[(batch.log_inclusion == 0) & ~(batch.targets == -1).all(axis=0)].tolist()
        mined = {8, 9, 15, 2, 11, 3} & set(certain)
        assert 2 in mined
        assert 1 <= len(mined - {2}) <= 2
        for number in mined:
            assert (batch.targets[:, position_of(batch, number)] == 0).all()
        included += mined
        assert len(batch.candidates) == drawn.num_candidates
    assert set(included) == {8, 9, 15, 2}


def position_of(batch, number):
    return batch.candidates.tolist().index(number)


@pytest.mark.parametrize("kind", ["sampled", "in_batch", "mixed"])
def test_hard_negative_of_one_anchor_can_be_a_positive_of_another(sampler, kind):
    drawn = with_hard_negatives(sampler(kind, hard_negatives=1, negatives=2), {0: [14], 13: [4], 19: [13]})
    for _ in range(20):
        batch = drawn.batch(anchors_of([[0], [13], [19]]))
        position = position_of(batch, 14)
        assert batch.targets[0, position] == 0
        assert batch.targets[1, position] in ({2.5} if kind == "sampled" else {1.0})
        if 4 in batch.candidates:
            assert batch.targets[0, position_of(batch, 4)] in (-1, DENSE[0, 4])
        assert batch.targets[1, position_of(batch, 13)] == -1


@pytest.mark.parametrize("kind", ["sampled", "in_batch", "mixed"])
def test_anchors_and_positives_are_not_added_as_hard_negatives(sampler, kind):
    """No item is a candidate duplicates, except as padding."""
    drawn = with_hard_negatives(
        sampler(kind, hard_negatives=2, negatives=3), {0: [14, 19, 13], 13: [1, 4], 19: [12, 0]}
    )
    for _ in range(20):
        numbers = drawn.batch(anchors_of([[0], [13], [19]])).candidates.tolist()
        duplicates = {number for number in numbers if numbers.count(number) > 1}
        assert not duplicates if kind == "sampled" else duplicates <= {numbers[0]}


@pytest.mark.parametrize("kind", ["sampled", "in_batch", "mixed"])
def test_mining_does_not_change_the_shape_of_batches(sampler, kind):
    drawn = sampler(kind, hard_negatives=1, max_positives=3, negatives=3)
    shapes = {drawn.batch(anchors_of(items)).targets.shape for items in BATCHES}
    with_hard_negatives(drawn, {0: [17, 5], 19: [6]})
    shapes |= {drawn.batch(anchors_of(items)).targets.shape for items in BATCHES}
    assert shapes == {(3, drawn.num_candidates)}


# --- gradients


FEW_NEGATIVES, MANY_NEGATIVES = 2, 60


@pytest.mark.slow
@pytest.mark.parametrize("power", [0.0, 0.5], ids="power {}".format)
def test_sampled_gradient_approximates_the_gradient_over_the_catalog(sampler, power):
    rough, fine = (
        GradientComparison(sampler, "sampled", negatives=number, popularity_power=power)
        for number in (FEW_NEGATIVES, MANY_NEGATIVES)
    )
    for comparison in (rough, fine):
        assert comparison.deviation < 0.5 * comparison.uncorrected_deviation
        assert comparison.cosine > 0.98
    assert fine.deviation < 0.5 * rough.deviation
    assert fine.deviation < 0.02 + 4 * fine.error < 0.1
    assert fine.cosine > 0.999


@pytest.mark.slow
@pytest.mark.parametrize("power", [0.0, 0.5], ids="power {}".format)
@pytest.mark.parametrize("kind", ["in_batch", "mixed"])
def test_in_batch_gradient_has_the_direction_of_the_gradient_over_the_catalog(sampler, kind, power):
    comparison = GradientComparison(sampler, kind, negatives=10, batch_size=12, popularity_power=power)
    assert comparison.deviation < 0.5 * comparison.uncorrected_deviation
    assert comparison.deviation < 0.03 + 4 * comparison.error < 0.3
    assert comparison.cosine > 0.99


class GradientComparison:
    """Comparison of mean gradients of the cross-entropy: sampled candidates against the whole catalog.

    Both use the same batches of random anchors and are gradients of all embeddings.

    `deviation`: length of the difference, as a share of the length over the catalog; `uncorrected_deviation`: the same
    without correction of the inclusion; `error`: standard error of `deviation`; `cosine`: between the two gradients.
    """

    def __init__(self, sampler, kind, draws=2500, batch_size=4, **options):
        dense = small_pairs()
        rng = np.random.default_rng(1)
        vectors = rng.normal(size=(len(dense), 4)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        shared = {"dense": dense, "batch_size": batch_size, "max_positives": 5 * batch_size}
        drawn, catalog = sampler(kind, seed=4, **shared, **options), sampler("catalog", **shared)
        assert drawn.num_candidates < len(dense)
        anchors = np.flatnonzero(dense.any(axis=1))
        batches, catalog_batches = [], []
        for _ in range(draws):
            batch_anchors = anchors_of(rng.choice(anchors, batch_size, replace=False)[:, None], dense)
            batches.append(drawn.batch(batch_anchors))
            catalog_batches.append(catalog.batch(batch_anchors))
        exact = gradients(vectors, catalog_batches)
        corrected = gradients(vectors, batches)
        uncorrected = gradients(vectors, [batch._replace(log_inclusion=0 * batch.log_inclusion) for batch in batches])
        mean, got = exact.mean(axis=0), corrected.mean(axis=0)
        size = np.linalg.norm(mean)
        self.deviation = np.linalg.norm(got - mean) / size
        self.uncorrected_deviation = np.linalg.norm(uncorrected.mean(axis=0) - mean) / size
        self.error = np.sqrt(((corrected - exact).var(axis=0) / draws).sum()) / size
        self.cosine = (got * mean).sum() / np.linalg.norm(got) / size


def small_pairs(num_items=150):
    """Pairs of anchors with at most five positives each, popular ones more often."""
    rng = np.random.default_rng(12)
    popularity = 1 / (3.0 + np.arange(num_items))
    dense = np.zeros((num_items, num_items), np.float32)
    for anchor in range(num_items):
        positives = rng.choice(num_items, rng.integers(1, 6), replace=False, p=popularity / popularity.sum())
        dense[anchor, positives] = rng.uniform(0.2, 3, len(positives))
    np.fill_diagonal(dense, 0)
    return dense


def gradients(vectors, batches):
    """Return the gradient of all embeddings of each batch, float64 [n, num_items, d]."""
    import tensorflow as tf

    from recsys.index.distances import COSINE
    from recsys.model.losses import CrossEntropy

    loss = CrossEntropy(COSINE, 0.3)
    table = tf.constant(vectors)

    def gradient(batch):
        anchors, candidates, targets, log_inclusion = batch
        with tf.GradientTape() as tape:
            tape.watch(table)
            values = loss(
                tf.gather(table, anchors), tf.gather(table, candidates), targets, log_inclusion, 0 * log_inclusion
            )
            value = tf.reduce_mean(values)
        return tf.convert_to_tensor(tape.gradient(value, table))

    anchors = np.stack([batch.candidates[batch.anchors[:, 0]] for batch in batches])
    parts = [
        np.stack([getattr(batch, name) for batch in batches]) for name in ("candidates", "targets", "log_inclusion")
    ]
    compiled = tf.function(lambda *stacked: tf.map_fn(gradient, stacked, fn_output_signature=tf.float32))
    return compiled(anchors, *parts).numpy().astype(np.float64)
