import numpy as np
import pytest
from scipy import sparse

from recsys.config import TrainConfig
from recsys.sampling import Sampler

NUM_ITEMS = 11
DENSE = np.zeros((NUM_ITEMS, NUM_ITEMS), np.float32)
for one, other, pair_weight in ((0, 1, 3.0), (0, 4, 1.0), (1, 2, 0.5), (4, 7, 2.0), (7, 8, 1.5), (2, 9, 4.0)):
    DENSE[one, other] = DENSE[other, one] = pair_weight
ANCHORS = [0, 1, 2, 4, 7, 8, 9]
"""Items 3, 5, 6 and 10 have no pairs."""


def sampler(seed=0, **options):
    return Sampler(sparse.csr_array(DENSE), TrainConfig(**options), np.random.default_rng(seed))


def sampled(seed=0, *, max_positives=6, negatives=2, batch_size=2):
    """A sampler whose candidates are fewer than the items."""
    return sampler(
        seed,
        whole_catalogue_up_to=1,
        max_positives=max_positives,
        negatives=negatives,
        batch_size=batch_size,
    )


def of(*numbers):
    return np.array(numbers, np.int32)


# --- passes


def test_anchors_are_the_items_with_pairs():
    assert sampler().anchors.tolist() == ANCHORS


@pytest.mark.parametrize(("batch_size", "batches"), [(1, 7), (3, 3), (7, 1), (100, 1)], ids="size {}".format)
def test_a_pass_asks_every_anchor_and_fills_the_last_batch(batch_size, batches):
    drawn = sampler(batch_size=batch_size)
    order = drawn.pass_order()
    assert len(drawn) == batches
    assert len(order) == batches * drawn.batch_size
    assert sorted(order[:7].tolist()) == ANCHORS
    for start in range(0, len(order), drawn.batch_size):
        batch = order[start : start + drawn.batch_size].tolist()
        assert len(set(batch)) == len(batch)


def test_passes_have_different_orders_and_a_seed_repeats_them():
    one, again = sampler(seed=5), sampler(seed=5)
    first, second = one.pass_order().tolist(), one.pass_order().tolist()
    assert first != second
    assert [again.pass_order().tolist(), again.pass_order().tolist()] == [first, second]


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0], ids="power {}".format)
def test_an_anchor_weighs_its_summed_pair_weight_to_the_power(power):
    drawn = sampler(anchor_power=power)
    totals = np.array([sum(row) for row in DENSE.tolist()])[ANCHORS] ** power
    weights = drawn.batch(of(*ANCHORS)).anchor_weights
    np.testing.assert_allclose(weights, totals / totals.mean(), rtol=1e-6)
    assert weights.mean() == pytest.approx(1)


# --- the whole catalogue


def test_with_few_items_every_item_is_a_candidate():
    batch = sampler().batch(of(4, 0, 9))
    assert batch.candidates.tolist() == list(range(NUM_ITEMS))
    assert batch.anchors.tolist() == [4, 0, 9]
    assert (batch.log_inclusion == 0).all()
    expected = DENSE[[4, 0, 9]]
    expected[[0, 1, 2], [4, 0, 9]] = -1
    np.testing.assert_array_equal(batch.targets, expected)


# --- sampled candidates


def test_sampled_batches_have_one_shape():
    drawn = sampled()
    shapes = {tuple(part.shape for part in drawn.batch(of(*anchors))) for anchors in ((0, 1), (2, 9), (8, 4), (9, 8))}
    assert shapes == {((10,), (2,), (2, 10), (10,), (2,))}


def test_sampled_batches_have_one_shape_also_where_positives_are_cut_and_others_are_few():
    """Training is compiled once only if no batch has another number of candidates."""
    dense = np.zeros((12, 12), np.float32)
    dense[0, 1:10] = dense[1:10, 0] = 1.0
    config = TrainConfig(whole_catalogue_up_to=1, max_positives=3, negatives=6, batch_size=1)
    drawn = Sampler(sparse.csr_array(dense), config, np.random.default_rng(0))
    assert len(drawn.batch(of(0)).candidates) == len(drawn.batch(of(1)).candidates)


@pytest.mark.parametrize("seed", range(5), ids="seed {}".format)
@pytest.mark.parametrize("anchors", [(0, 7), (2, 9), (8, 1)], ids=str)
def test_sampled_targets_are_the_weights_of_the_pairs(anchors, seed):
    batch = sampled(seed).batch(of(*anchors))
    assert len(set(batch.candidates.tolist())) == len(batch.candidates)
    assert batch.candidates[batch.anchors].tolist() == list(anchors)
    for row, anchor in enumerate(anchors):
        for column, candidate in enumerate(batch.candidates.tolist()):
            expected = -1 if candidate == anchor else DENSE[anchor, candidate]
            assert batch.targets[row, column] == expected


@pytest.mark.parametrize("seed", range(5), ids="seed {}".format)
def test_all_anchors_and_positives_take_part_and_are_certain(seed):
    batch = sampled(seed).batch(of(0, 7))
    certain = {0, 7, 1, 4, 8}
    inclusion = dict(zip(batch.candidates.tolist(), batch.log_inclusion.tolist(), strict=True))
    assert certain <= inclusion.keys()
    assert {number for number, log in inclusion.items() if log == 0} == certain


@pytest.mark.parametrize("seed", range(8), ids="seed {}".format)
def test_a_positive_that_was_cut_is_no_negative(seed):
    """Anchor 0 has two positives and one place for them: the other one takes no part at all."""
    batch = sampled(seed, max_positives=1, negatives=4, batch_size=1).batch(of(0))
    positives = batch.targets[0][batch.targets[0] > 0]
    assert len(positives) == 1
    assert len({1, 4} & set(batch.candidates.tolist())) == 1


def test_the_inclusion_probability_is_how_often_an_item_takes_part():
    drawn = sampled(max_positives=3, negatives=2, batch_size=2)
    draws, counts, told = 3000, np.zeros(NUM_ITEMS), np.zeros(NUM_ITEMS)
    for _ in range(draws):
        batch = drawn.batch(of(0, 4))
        counts[batch.candidates] += 1
        told[batch.candidates] = np.exp(batch.log_inclusion)
    # of anchors 0 and 4 the positives are 1 and 7; three of the seven others are drawn
    assert told == pytest.approx(np.array([1, 1, *[3 / 7] * 2, 1, *[3 / 7] * 2, 1, *[3 / 7] * 3]))
    np.testing.assert_allclose(counts / draws, told, atol=0.04)


def test_the_sampled_partition_function_is_unbiased():
    """The mean over many draws of sum exp(logit) / inclusion is the sum over the whole catalogue."""
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 2, (2, NUM_ITEMS))
    drawn, anchors = sampled(seed=9), of(2, 7)
    estimates = []
    for _ in range(4000):
        batch = drawn.batch(anchors)
        weighed = np.exp(logits[:, batch.candidates] - batch.log_inclusion)
        estimates.append(np.where(batch.targets < 0, 0, weighed).sum(axis=1))
    estimates = np.array(estimates)
    whole = np.exp(logits).sum(axis=1) - np.exp(logits[[0, 1], anchors])
    error = estimates.std(axis=0) / np.sqrt(len(estimates))
    assert (np.abs(estimates.mean(axis=0) - whole) < 4 * error).all()
    assert (error < 0.05 * whole).all()
