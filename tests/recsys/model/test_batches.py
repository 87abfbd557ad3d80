import numpy as np
import pytest

from recsys.config.sections import Config
from recsys.data import pairs
from recsys.data.labeled_pairs import LabeledPairs
from recsys.data.sequences import Sequences
from recsys.data.splits import Split, TimeCut, held_out_users
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
    """Return the item of each anchor of one item."""
    return batch.candidates[batch.anchors[:, 0]].tolist()


def as_dictionary(batch, row):
    """Return the target of each candidate of one anchor, without ignored candidates."""
    targets = zip(batch.candidates.tolist(), batch.targets[row].tolist(), strict=True)
    return {candidate: target for candidate, target in targets if target != -1}


# --- pairs


@pytest.fixture
def pair_batches(store, monkeypatch):
    """Factory of batches from slices of about 20 pairs, so a buffer can be smaller than a batch."""
    monkeypatch.setattr(pairs, "ROW_GROUP_PAIRS", 20)

    def make(dense=DENSE, *, buffer_size=10_000, **train):
        resources = {"memory_mb": buffer_size / 1_000}
        return PairBatches(store(dense), config_of(train={"batch_size": 8} | train, resources=resources))

    return make


@pytest.mark.parametrize("buffer_size", [1, 30, 90, 10_000], ids="buffer {}".format)
@pytest.mark.parametrize("batch_size", [1, 8, 12, 35, 100], ids="size {}".format)
def test_a_pass_has_every_anchor_and_fills_the_last_batch(pair_batches, batch_size, buffer_size):
    assert len(ANCHORS) == 35
    drawn = pair_batches(batch_size=batch_size, buffer_size=buffer_size)
    size = min(batch_size, 35)
    for _ in range(2):
        batches = list(drawn.one_pass())
        assert len(batches) == len(drawn) == -(-35 // size)
        anchors = [anchor for batch in batches for anchor in anchors_of(batch)]
        assert len(anchors) == len(batches) * size
        assert sorted(anchors[:35]) == ANCHORS
        assert set(anchors[35:]) <= set(ANCHORS)
        assert len({tuple(array.shape for array in batch) for batch in batches}) == 1


def test_the_last_batch_has_no_duplicate_anchors(pair_batches):
    *_, last = pair_batches(batch_size=12).one_pass()
    assert len(set(anchors_of(last))) == 12


@pytest.mark.parametrize("buffer_size", [30, 10_000], ids="buffer {}".format)
def test_targets_are_pair_weights_and_items_that_are_never_positive_are_ignored(pair_batches, buffer_size):
    positive_items = np.flatnonzero(DENSE.sum(axis=0)).tolist()
    assert len(positive_items) < NUM_ITEMS
    for batch in pair_batches(buffer_size=buffer_size).one_pass():
        for row, anchor in enumerate(anchors_of(batch)):
            assert as_dictionary(batch, row) == {n: DENSE[anchor, n] for n in positive_items if n != anchor}
        assert (batch.shares == 1).all()


def test_weight_of_an_anchor_is_the_sum_of_its_pair_weights_relative_to_the_mean(pair_batches):
    weights = {}
    for batch in pair_batches().one_pass():
        weights |= dict(zip(anchors_of(batch), batch.anchor_weights.tolist(), strict=True))
    totals = {anchor: sum(DENSE[anchor].tolist()) for anchor in ANCHORS}
    mean = sum(totals.values()) / len(totals)
    assert weights == pytest.approx({anchor: total / mean for anchor, total in totals.items()}, rel=1e-5)


@pytest.mark.parametrize("buffer_size", [30, 10_000], ids="buffer {}".format)
def test_passes_have_different_orders_that_a_seed_determines(pair_batches, buffer_size):
    def orders(drawn):
        return [[anchors_of(batch) for batch in drawn.one_pass()] for _ in range(2)]

    first, second = orders(pair_batches(seed=5, buffer_size=buffer_size))
    assert first != second
    assert orders(pair_batches(seed=5, buffer_size=buffer_size)) == [first, second]
    assert orders(pair_batches(seed=6, buffer_size=buffer_size))[0] != first


def test_reads_at_most_a_buffer_and_a_batch_ahead(pair_batches, monkeypatch):
    read = 0
    original = pairs.Pairs.read_slice

    def counting(self, part):
        nonlocal read
        block = original(self, part)
        read += len(block.anchors)
        return block

    drawn = pair_batches(batch_size=5, buffer_size=30)
    longest = max(part.rows for part in drawn.pairs.slices)
    fewest_pairs = int(drawn.pairs.counts[ANCHORS].min())
    monkeypatch.setattr(pairs.Pairs, "read_slice", counting)
    yielded, ahead = 0, []
    for _ in drawn.one_pass():
        ahead.append(read - yielded)
        yielded += 5
    assert max(ahead) <= 30 // fewest_pairs + longest + 5
    assert max(ahead) < len(ANCHORS)
    assert read == len(ANCHORS)


def test_skips_slices_whose_pairs_all_have_weight_zero(store, monkeypatch):
    """All pairs of a slice can be newer than the validation targets."""
    monkeypatch.setattr(pairs, "ROW_GROUP_PAIRS", 20)
    dense = DENSE.copy()
    dense[:16] = 1e-46  # 0 in float32
    drawn = PairBatches(store(dense.astype(np.float64)), config_of(train={"batch_size": 8}))
    anchors = [anchor for batch in drawn.one_pass() for anchor in anchors_of(batch)]
    assert set(anchors) == {anchor for anchor in ANCHORS if anchor >= 16}


def test_rejects_a_catalog_without_pairs(pair_batches):
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
    """Return the sequences of users; user u has an interaction each second, starting at second u times `start`."""
    lengths = [len(sequence) for sequence in log]
    times = [float(user * start + step) for user, sequence in enumerate(log) for step in range(len(sequence))]
    items = np.array([item for sequence in log for item in sequence], np.int32)
    return Sequences([str(user) for user in range(len(log))], items, np.cumsum([0, *lengths]), np.array(times))


def training_length(user, times, cut, target):
    """How many interactions of a user are training data; user 2, and 1 with one interaction, are held out."""
    if target == "validation" and held_out_users([str(user)])[0]:
        return 0
    if cut is not None:
        return sum(time < getattr(cut, target) for time in times)
    return len(times) - 1 if len(times) >= 3 else len(times)


def moments(cut, target, start=2):
    """Yield (history, newest first; following items, oldest first) of each moment of each user, by loops."""
    for user, sequence in enumerate(LOG):
        length = training_length(user, [user * start + step for step in range(len(sequence))], cut, target)
        for moment in range(1, length):
            yield sequence[:moment][::-1], sequence[moment:length]


def expected_of(history, following, window, decay, width=6):
    """Return the newest items of a history and the weights of the positives that are not among them."""
    newest = history[:width]
    positives = {}
    for step, item in enumerate(following[:window]):
        if item not in newest:
            positives[item] = positives.get(item, 0.0) + (step + 1) ** -decay
    return tuple(newest), positives


@pytest.fixture
def history_batches(store):
    def make(cut, target, *, window=4, decay=0.7, batch_size=5, recency=RECENCY, max_items=50, **tables):
        split = Split(sequences_of(LOG, 2), cut)
        prepare = {"window": window, "decay": decay}
        config = config_of(prepare=prepare, train={"batch_size": batch_size}, **tables)
        return HistoryBatches(split, target, store(DENSE), config, recency, max_items=max_items)

    return make


def histories_of(batches, recency=RECENCY):
    """Yield (history, positives) of each anchor of a pass."""
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
def test_histories_and_positives_agree_with_a_loop(history_batches, cut, target, window, decay):
    """Batches have one anchor, so no moment is dropped. Items from the target on are never used.

    With a recency of 0.4, the seventh item of a history has a weight below 0.01.
    """
    batches = history_batches(cut, target, window=window, decay=decay, batch_size=1)
    returned = list(histories_of(batches.one_pass()))
    expected = [expected_of(*moment, window, decay) for moment in moments(cut, target)]
    assert len(batches) == len(returned) == len(expected) > 5

    def order(pair):
        return pair[0], sorted(pair[1].items())

    for (history, positives), (expected_history, expected_positives) in zip(
        sorted(returned, key=order), sorted(expected, key=order), strict=True
    ):
        assert history == expected_history
        assert positives == pytest.approx(expected_positives, rel=1e-5)


@pytest.mark.parametrize(
    ("recency", "max_items", "width"), [(0.4, 50, 6), (0.4, 4, 4), (0.75, 50, 17), (1.0, 9, 9), (0.001, 50, 1)], ids=str
)
def test_histories_omit_items_with_a_weight_below_one_percent(history_batches, recency, max_items, width):
    """A history also has at most as many items as a query."""
    batches = history_batches(None, "test", recency=recency, max_items=max_items, batch_size=1)
    assert {batch.shares.shape for batch in batches.one_pass()} == {(1, width)}
    histories = {history for history, _ in histories_of(batches.one_pass(), recency)}
    assert histories == {expected_of(*moment, 4, 0.7, width)[0] for moment in moments(None, "test")}
    steps = [recency**step >= 0.01 for step in range(max_items)]
    assert width == sum(steps)


@pytest.mark.parametrize("kind", ["catalog", "sampled", "in_batch", "mixed"])
def test_items_of_the_history_are_ignored(history_batches, kind):
    limits = {"max_positives": 8, "negatives": 2}
    batches = history_batches(None, "test", batch_size=2, candidates={"kind": kind} | limits)
    assert batches.sampler.kind == kind
    for batch in batches.one_pass():
        for row in range(len(batch.targets)):
            columns = batch.anchors[row, batch.shares[row] > 0]
            assert (batch.targets[row, columns] == -1).all()


@pytest.mark.parametrize("kind", ["in_batch", "mixed"])
def test_draws_a_positive_outside_the_history_if_there_is_one(history_batches, kind):
    """In [25, 26, 25, 26, 25, 27, 26] items repeat, and 27 is often the only new one."""
    batches = history_batches(None, "test", batch_size=2, candidates={"kind": kind, "negatives": 3})
    with_positives = {
        history for history, positives in (expected_of(*m, 4, 0.7) for m in moments(None, "test")) if positives
    }
    drawn = [(history, positives) for _ in range(6) for history, positives in histories_of(batches.one_pass())]
    assert {len(positives) for history, positives in drawn if history in with_positives} == {1}
    assert {len(positives) for history, positives in drawn if history not in with_positives} == {0}


@pytest.mark.parametrize("batch_size", [1, 5, 7, 1000], ids="size {}".format)
def test_a_pass_over_histories_has_full_batches_only(history_batches, batch_size):
    number = len(list(moments(None, "test")))
    batches = history_batches(None, "test", batch_size=batch_size)
    size = min(batch_size, number)
    for _ in range(2):
        one_pass = list(batches.one_pass())
        assert len(one_pass) == len(batches) == number // size
        assert {batch.targets.shape[0] for batch in one_pass} == {size}


def test_passes_over_histories_have_different_orders_that_a_seed_determines(history_batches):
    batches, same_seed = history_batches(None, "test"), history_batches(None, "test")
    first, second = list(histories_of(batches.one_pass())), list(histories_of(batches.one_pass()))
    assert first != second
    assert [list(histories_of(same_seed.one_pass())), list(histories_of(same_seed.one_pass()))] == [first, second]


# --- labeled pairs


def labeled(same, different):
    first, second = np.array([*same, *different], np.int32).T
    return LabeledPairs(first, second, np.arange(len(first)) < len(same))


def some_pairs():
    """Pairs (same, different). Item 0 has 11 same and 12 different ones, 7 and 9 only different ones, 20 none."""
    same = [(0, number) for number in range(21, 32)] + [(2, 1), (2, 3), (5, 2)]
    different = [(number, 0) for number in range(1, 13)] + [(2, 7), (7, 9), (22, 3)]
    return same, different


def partners_of(rows, item):
    return {first + second - item for first, second in rows if item in (first, second)}


@pytest.mark.parametrize("batch_size", [1, 4, 100], ids="size {}".format)
def test_only_labeled_pairs_have_targets_in_both_directions(batch_size):
    same, different = some_pairs()
    batches = LabeledBatches(labeled(same, different), NUM_ITEMS, config_of(train={"batch_size": batch_size}))
    anchors = sorted({item for pair in same for item in pair})
    targets_of = {anchor: {} for anchor in anchors}
    for _ in range(30):
        one_pass = list(batches.one_pass())
        pass_anchors = [anchor for batch in one_pass for anchor in anchors_of(batch)]
        assert sorted(pass_anchors[: len(anchors)]) == anchors
        assert len(one_pass) == len(batches)
        for batch in one_pass:
            assert len(set(anchors_of(batch))) == len(batch.targets)
            for row, anchor in enumerate(anchors_of(batch)):
                targets = as_dictionary(batch, row)
                targets_of[anchor] |= targets
                for value, labels in ((1, same), (0, different)):
                    partners = {item for item, target in targets.items() if target == value}
                    assert len(partners) == min(LabeledBatches.MAX_PARTNERS, len(partners_of(labels, anchor)))
            assert (batch.log_inclusion == 0).all()
            assert (batch.log_popularity == 0).all()
            assert (batch.shares == 1).all()
            assert (batch.anchor_weights == 1).all()
    for anchor in anchors:  # the passes together have every label
        expected = dict.fromkeys(partners_of(same, anchor), 1) | dict.fromkeys(partners_of(different, anchor), 0)
        assert targets_of[anchor] == expected


def test_batches_of_labeled_pairs_have_one_shape():
    batches = LabeledBatches(labeled(*some_pairs()), 500, config_of(train={"batch_size": 3}))
    shapes = {tuple(array.shape for array in batch) for _ in range(3) for batch in batches.one_pass()}
    assert shapes == {((51,), (3, 1), (3, 1), (3, 51), (51,), (51,), (3,))}


def test_repeated_labels_count_once_and_contradictory_ones_as_same():
    same, different = [(0, 1), (1, 0), (2, 3)], [(0, 1), (3, 0), (0, 3), (2, 1)]
    batches = LabeledBatches(labeled(same, different), 5, config_of(train={"batch_size": 4}))
    (batch,) = batches.one_pass()
    targets = {anchor: as_dictionary(batch, row) for row, anchor in enumerate(anchors_of(batch))}
    assert targets == {0: {1: 1, 3: 0}, 1: {0: 1, 2: 0}, 2: {3: 1, 1: 0}, 3: {2: 1, 0: 0}}


def test_contradictory_labels_never_give_negatives():
    """Also if not all same pairs are drawn, and if most labels say different."""
    different = [(0, number) for number in range(1, 14)] * 2
    batches = LabeledBatches(labeled(different[:12], different), 15, config_of(train={"batch_size": 1}))
    for _ in range(5):
        targets_of = {anchors_of(batch)[0]: as_dictionary(batch, 0) for batch in batches.one_pass()}
        assert targets_of[0].pop(13) == 0
        assert list(targets_of[0].values()) == [1] * LabeledBatches.MAX_PARTNERS
        assert {item: targets for item, targets in targets_of.items() if item} == {n: {0: 1} for n in range(1, 13)}


def test_passes_over_labeled_pairs_differ_and_a_seed_determines_them():
    def passes():
        batches = LabeledBatches(labeled(*some_pairs()), NUM_ITEMS, config_of(train={"batch_size": 4}))
        return [[batch.targets.tolist() for batch in batches.one_pass()] for _ in range(2)]

    first, second = passes()
    assert first != second
    assert passes() == [first, second]


def test_rejects_labeled_pairs_without_a_same_pair():
    with pytest.raises(StageError, match="at least one labeled pair that is the same"):
        LabeledBatches(labeled([], [(0, 1), (2, 3)]), 5, config_of())
