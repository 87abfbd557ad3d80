import numpy as np
import pytest

from recsys.config.sections import Config
from recsys.data import pairs
from recsys.data.labeled_pairs import LabeledPairs
from recsys.data.sequences import Sequences
from recsys.data.splits import Split, TimeCut
from recsys.errors import StageError
from recsys.model.batches import HistoryBatches, LabeledBatches, PairBatches

NUM_ITEMS = 37
WITHOUT = (4, 20)
"""Items without pairs."""


def dense_pairs(seed=0):
    rng = np.random.default_rng(seed)
    dense = np.where(rng.random((NUM_ITEMS, NUM_ITEMS)) < 0.15, rng.uniform(0.5, 4, (NUM_ITEMS, NUM_ITEMS)), 0)
    dense = np.maximum(dense, dense.T)
    np.fill_diagonal(dense, 0)
    dense[:, WITHOUT] = dense[WITHOUT, :] = 0
    return dense.astype(np.float32)


DENSE = dense_pairs()
ANCHORS = np.flatnonzero(DENSE.any(axis=1)).tolist()


def config_of(**tables):
    return Config(**{"data": {"interactions": "log.csv"}} | tables)


def anchors_of(batch):
    """The one item of each anchor."""
    return batch.candidates[batch.anchors[:, 0]].tolist()


def as_dictionary(batch, row):
    """Target of each candidate of one anchor, what is ignored left out."""
    targets = zip(batch.candidates.tolist(), batch.targets[row].tolist(), strict=True)
    return {candidate: target for candidate, target in targets if target != -1}


# --- pairs


@pytest.fixture
def pair_batches(store, monkeypatch):
    """Slices of about 20 pairs, so that a buffer may be smaller than a batch."""
    monkeypatch.setattr(pairs, "ROW_GROUP_PAIRS", 20)

    def make(dense=DENSE, *, shuffled=10_000, **train):
        resources = {"memory_mb": shuffled / 1_000}
        return PairBatches(store(dense), config_of(train={"batch_size": 8} | train, resources=resources))

    return make


@pytest.mark.parametrize("at_once", [1, 30, 90, 10_000], ids="buffer {}".format)
@pytest.mark.parametrize("batch_size", [1, 8, 12, 35, 100], ids="size {}".format)
def test_a_pass_asks_every_anchor_and_fills_the_last_batch(pair_batches, batch_size, at_once):
    assert len(ANCHORS) == 35
    drawn = pair_batches(batch_size=batch_size, shuffled=at_once)
    size = min(batch_size, 35)
    for _ in range(2):
        batches = list(drawn.one_pass())
        assert len(batches) == len(drawn) == -(-35 // size)
        asked = [anchor for batch in batches for anchor in anchors_of(batch)]
        assert len(asked) == len(batches) * size
        assert sorted(asked[:35]) == ANCHORS
        assert set(asked[35:]) <= set(ANCHORS)
        assert len({tuple(part.shape for part in batch) for batch in batches}) == 1


def test_the_last_batch_is_filled_with_others_where_there_are_enough(pair_batches):
    *_, last = pair_batches(batch_size=12).one_pass()
    assert len(set(anchors_of(last))) == 12


@pytest.mark.parametrize("at_once", [30, 10_000], ids="buffer {}".format)
def test_the_targets_are_the_weights_of_the_pairs_and_what_is_nobodys_positive_takes_no_part(pair_batches, at_once):
    touched = np.flatnonzero(DENSE.sum(axis=0)).tolist()
    assert len(touched) < NUM_ITEMS
    for batch in pair_batches(shuffled=at_once).one_pass():
        for row, anchor in enumerate(anchors_of(batch)):
            assert as_dictionary(batch, row) == {n: DENSE[anchor, n] for n in touched if n != anchor}
        assert (batch.shares == 1).all()


def test_weight_of_an_anchor_is_the_sum_of_its_pair_weights_relative_to_the_mean(pair_batches):
    weights = {}
    for batch in pair_batches().one_pass():
        weights |= dict(zip(anchors_of(batch), batch.anchor_weights.tolist(), strict=True))
    totals = {anchor: sum(DENSE[anchor].tolist()) for anchor in ANCHORS}
    mean = sum(totals.values()) / len(totals)
    assert weights == pytest.approx({anchor: total / mean for anchor, total in totals.items()}, rel=1e-5)


@pytest.mark.parametrize("at_once", [30, 10_000], ids="buffer {}".format)
def test_passes_have_different_orders_and_a_seed_repeats_them(pair_batches, at_once):
    def orders(drawn):
        return [[anchors_of(batch) for batch in drawn.one_pass()] for _ in range(2)]

    first, second = orders(pair_batches(seed=5, shuffled=at_once))
    assert first != second
    assert orders(pair_batches(seed=5, shuffled=at_once)) == [first, second]
    assert orders(pair_batches(seed=6, shuffled=at_once))[0] != first


def test_no_more_than_a_buffer_and_a_batch_is_held(pair_batches, monkeypatch):
    """What is read ahead of the batches that were handed on."""
    read = 0
    original = pairs.Pairs.read_slice

    def watched(self, piece):
        nonlocal read
        block = original(self, piece)
        read += len(block.anchors)
        return block

    drawn = pair_batches(batch_size=5, shuffled=30)
    longest = max(piece.rows for piece in drawn.pairs.slices)
    most = int(drawn.pairs.counts[ANCHORS].min())
    monkeypatch.setattr(pairs.Pairs, "read_slice", watched)
    handed_on, ahead = 0, []
    for _ in drawn.one_pass():
        ahead.append(read - handed_on)
        handed_on += 5
    assert max(ahead) <= 30 // most + longest + 5
    assert max(ahead) < len(ANCHORS)
    assert read == len(ANCHORS)


def test_pairs_of_one_slice_may_all_weigh_nothing(store, monkeypatch):
    """Before validation, whole slices may be empty: the pass goes on."""
    monkeypatch.setattr(pairs, "ROW_GROUP_PAIRS", 20)
    dense = DENSE.copy()
    dense[:16] = 1e-46  # 0 in float32
    drawn = PairBatches(store(dense.astype(np.float64)), config_of(train={"batch_size": 8}))
    asked = [anchor for batch in drawn.one_pass() for anchor in anchors_of(batch)]
    assert set(asked) == {anchor for anchor in ANCHORS if anchor >= 16}


def test_without_pairs_there_is_nothing_to_train_on(pair_batches):
    with pytest.raises(StageError, match="at least one pair"):
        pair_batches(np.zeros((5, 5)))


# --- histories

LOG = [
    [3, 8, 1, 3, 30, 22, 7, 8, 11, 15, 16, 17, 18, 19, 21],
    [5],
    [9, 2, 14],
    [],
    [6, 12],
    [25, 26, 25, 26, 25, 27, 26],
    [33, 34, 35, 36, 33, 1],
]
CUTS = {"leave one out": None, "global time": TimeCut(11.5, 14.5)}
RECENCY = 0.4


def sequences_of(log, start):
    """Users' items; the first interaction of user u is at second u times `start`, the others follow each second."""
    lengths = [len(own) for own in log]
    times = [float(user * start + step) for user, own in enumerate(log) for step in range(len(own))]
    items = np.array([item for own in log for item in own], np.int32)
    return Sequences([str(user) for user in range(len(log))], items, np.cumsum([0, *lengths]), np.array(times))


def known_length(own_times, cut, target):
    if cut is not None:
        return sum(time < getattr(cut, target) for time in own_times)
    return len(own_times) - {"test": 1, "validation": 2}[target] if len(own_times) >= 3 else len(own_times)


def moments(cut, target, start=2):
    """(history newest first, what follows in its order) of each moment of each user, by loops."""
    for user, own in enumerate(LOG):
        known = known_length([user * start + step for step in range(len(own))], cut, target)
        for moment in range(1, known):
            yield own[:moment][::-1], own[moment:known]


def expected_of(history, following, window, decay, width=6):
    """The history's newest items, and the weights of the positives, those of the history left out."""
    newest = history[:width]
    positives = {}
    for step, item in enumerate(following[:window]):
        if item not in newest:
            positives[item] = positives.get(item, 0.0) + (step + 1) ** -decay
    return tuple(newest), positives


@pytest.fixture
def history_batches(store):
    def make(cut, target, *, window=4, decay=0.7, batch_size=5, recency=RECENCY, history=50, **tables):
        split = Split(sequences_of(LOG, 2), cut)
        prepare = {"window": window, "decay": decay}
        config = config_of(prepare=prepare, train={"batch_size": batch_size}, **tables)
        return HistoryBatches(split, target, store(DENSE), config, recency, max_items=history)

    return make


def seen_of(batches, recency=RECENCY):
    """(history, positives) of each anchor of a pass."""
    for batch in batches:
        for row in range(len(batch.targets)):
            length = int((batch.shares[row] > 0).sum())
            assert batch.shares[row].tolist() == pytest.approx(
                [recency**step for step in range(length)] + [0] * (batch.shares.shape[1] - length), rel=1e-5
            )
            history = tuple(batch.candidates[batch.anchors[row, :length]].tolist())
            yield history, {item: target for item, target in as_dictionary(batch, row).items() if target}


@pytest.mark.parametrize("target", ["validation", "test"])
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize(("window", "decay"), [(1, 1.0), (4, 0.7), (50, 0.0)], ids=str)
def test_histories_and_what_follows_them_agree_with_a_loop(history_batches, cut, target, window, decay):
    """Batches of one, so that nothing is left out; nothing at or after the target is ever used.

    At the recency of 0.4 the seventh item of a history weighs less than a hundredth.
    """
    batches = history_batches(cut, target, window=window, decay=decay, batch_size=1)
    seen = list(seen_of(batches.one_pass()))
    expected = [expected_of(*moment, window, decay) for moment in moments(cut, target)]
    assert len(batches) == len(seen) == len(expected) > 5

    def order(each):
        return each[0], sorted(each[1].items())

    for (history, positives), (own, wanted) in zip(sorted(seen, key=order), sorted(expected, key=order), strict=True):
        assert history == own
        assert positives == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("recency", "history", "width"), [(0.4, 50, 6), (0.4, 4, 4), (0.75, 50, 17), (1.0, 9, 9), (0.001, 50, 1)], ids=str
)
def test_items_that_hardly_weigh_anything_are_left_out(history_batches, recency, history, width):
    """At least a hundredth, and no more of them than a look-up takes."""
    batches = history_batches(None, "test", recency=recency, history=history, batch_size=1)
    assert {batch.shares.shape for batch in batches.one_pass()} == {(1, width)}
    seen = {own for own, _ in seen_of(batches.one_pass(), recency)}
    assert seen == {expected_of(*moment, 4, 0.7, width)[0] for moment in moments(None, "test")}
    steps = [recency**step >= 0.01 for step in range(history)]
    assert width == sum(steps)


@pytest.mark.parametrize("kind", ["catalog", "sampled", "in_batch", "mixed"])
def test_what_the_history_holds_is_ignored(history_batches, kind):
    few = {"max_positives": 8, "negatives": 2}
    batches = history_batches(None, "test", batch_size=2, candidates={"kind": kind} | few)
    assert batches.sampler.kind == kind
    for batch in batches.one_pass():
        for row in range(len(batch.targets)):
            own = batch.anchors[row, batch.shares[row] > 0]
            assert (batch.targets[row, own] == -1).all()


@pytest.mark.parametrize("kind", ["in_batch", "mixed"])
def test_the_positive_that_is_drawn_is_not_of_the_history_where_another_follows(history_batches, kind):
    """Of [25, 26, 25, 26, 25, 27, 26] the items come again and again; 27 is often all that is new."""
    batches = history_batches(None, "test", batch_size=2, candidates={"kind": kind, "negatives": 3})
    new = {history for history, positives in (expected_of(*m, 4, 0.7) for m in moments(None, "test")) if positives}
    found = [(history, positives) for _ in range(6) for history, positives in seen_of(batches.one_pass())]
    assert {len(positives) for history, positives in found if history in new} == {1}
    assert {len(positives) for history, positives in found if history not in new} == {0}


@pytest.mark.parametrize("batch_size", [1, 5, 7, 1000], ids="size {}".format)
def test_a_pass_has_as_many_full_batches_as_there_are_moments_for(history_batches, batch_size):
    number = len(list(moments(None, "test")))
    batches = history_batches(None, "test", batch_size=batch_size)
    size = min(batch_size, number)
    for _ in range(2):
        found = list(batches.one_pass())
        assert len(found) == len(batches) == number // size
        assert {batch.targets.shape[0] for batch in found} == {size}


def test_passes_over_histories_have_different_orders_and_a_seed_repeats_them(history_batches):
    one, again = history_batches(None, "test"), history_batches(None, "test")
    first, second = list(seen_of(one.one_pass())), list(seen_of(one.one_pass()))
    assert first != second
    assert [list(seen_of(again.one_pass())), list(seen_of(again.one_pass()))] == [first, second]


# --- judged pairs


def judged(same, different):
    first, second = np.array([*same, *different], np.int32).T
    return LabeledPairs(first, second, np.arange(len(first)) < len(same))


def some_judged():
    """A heap of 12 others and 11 same for item 0; 7 and 9 have only others; 20 none."""
    same = [(0, number) for number in range(21, 32)] + [(2, 1), (2, 3), (5, 2)]
    different = [(number, 0) for number in range(1, 13)] + [(2, 7), (7, 9), (22, 3)]
    return same, different


def partners_of(rows, item):
    return {one + other - item for one, other in rows if item in (one, other)}


@pytest.mark.parametrize("batch_size", [1, 4, 100], ids="size {}".format)
def test_only_what_was_judged_has_a_target_in_both_directions(batch_size):
    same, different = some_judged()
    batches = LabeledBatches(judged(same, different), NUM_ITEMS, config_of(train={"batch_size": batch_size}))
    anchors = sorted({item for pair in same for item in pair})
    found = {anchor: {} for anchor in anchors}
    for _ in range(30):
        one_pass = list(batches.one_pass())
        asked = [anchor for batch in one_pass for anchor in anchors_of(batch)]
        assert sorted(asked[: len(anchors)]) == anchors
        assert len(one_pass) == len(batches)
        for batch in one_pass:
            assert len(set(anchors_of(batch))) == len(batch.targets)
            for row, anchor in enumerate(anchors_of(batch)):
                targets = as_dictionary(batch, row)
                found[anchor] |= targets
                for value, judgments in ((1, same), (0, different)):
                    partners = {item for item, target in targets.items() if target == value}
                    assert len(partners) == min(LabeledBatches.MAX_PARTNERS, len(partners_of(judgments, anchor)))
            assert (batch.log_inclusion == 0).all()
            assert (batch.log_popularity == 0).all()
            assert (batch.shares == 1).all()
            assert (batch.anchor_weights == 1).all()
    for anchor in anchors:  # in the long run, everything that was judged is seen
        wanted = dict.fromkeys(partners_of(same, anchor), 1) | dict.fromkeys(partners_of(different, anchor), 0)
        assert found[anchor] == wanted


def test_batches_of_judged_pairs_have_one_shape():
    batches = LabeledBatches(judged(*some_judged()), 500, config_of(train={"batch_size": 3}))
    shapes = {tuple(part.shape for part in batch) for _ in range(3) for batch in batches.one_pass()}
    assert shapes == {((51,), (3, 1), (3, 1), (3, 51), (51,), (51,), (3,))}


def test_a_pair_that_was_judged_twice_counts_once_and_both_ways_as_the_same():
    same, different = [(0, 1), (1, 0), (2, 3)], [(0, 1), (3, 0), (0, 3), (2, 1)]
    batches = LabeledBatches(judged(same, different), 5, config_of(train={"batch_size": 4}))
    (batch,) = batches.one_pass()
    found = {anchor: as_dictionary(batch, row) for row, anchor in enumerate(anchors_of(batch))}
    assert found == {0: {1: 1, 3: 0}, 1: {0: 1, 2: 0}, 2: {3: 1, 1: 0}, 3: {2: 1, 0: 0}}


def test_what_was_judged_both_ways_is_never_told_apart():
    """Also where not all that is the same is drawn, and where more said that it is not."""
    different = [(0, number) for number in range(1, 14)] * 2
    batches = LabeledBatches(judged(different[:12], different), 15, config_of(train={"batch_size": 1}))
    for _ in range(5):
        found = {anchors_of(batch)[0]: as_dictionary(batch, 0) for batch in batches.one_pass()}
        assert found[0].pop(13) == 0
        assert list(found[0].values()) == [1] * LabeledBatches.MAX_PARTNERS
        assert {item: targets for item, targets in found.items() if item} == {n: {0: 1} for n in range(1, 13)}


def test_passes_over_judged_pairs_differ_and_a_seed_repeats_them():
    def passes():
        batches = LabeledBatches(judged(*some_judged()), NUM_ITEMS, config_of(train={"batch_size": 4}))
        return [[batch.targets.tolist() for batch in batches.one_pass()] for _ in range(2)]

    first, second = passes()
    assert first != second
    assert passes() == [first, second]


def test_without_a_pair_that_is_the_same_there_is_nothing_to_learn():
    with pytest.raises(StageError, match="at least one labeled pair that is the same"):
        LabeledBatches(judged([], [(0, 1), (2, 3)]), 5, config_of())
