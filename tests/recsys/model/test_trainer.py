import keras
import numpy as np
import polars as pl
import pytest

from recsys.config.sections import Config
from recsys.data import cooccurrence
from recsys.data.labeled_pairs import LabeledPairs
from recsys.data.sequences import Sequences
from recsys.data.splits import Holdout, Split, TimeCut
from recsys.errors import StageError
from recsys.evaluation.metrics import VALIDATION_SCORE, ranking_metrics, target_ranks
from recsys.features.encoding import Features
from recsys.index.distances import DISTANCES
from recsys.index.exact import ExactIndex
from recsys.index.queries import Queries
from recsys.model import hard_negatives as mining
from recsys.model import optimizer, tower
from recsys.model import trainer as training
from recsys.model.batches import HistoryBatches, LabeledBatches, PairBatches
from recsys.model.checkpoint import Checkpoint
from recsys.model.negatives import Batch

BLOCKS = (3, 4, 5, 6)
"""Users of a block touch its items and no others."""
BLOCK_OF = np.repeat(np.arange(len(BLOCKS)), BLOCKS)
NUM_ITEMS = len(BLOCK_OF)

RECENCIES = (0.9, 0.1, 0.4)

CANDIDATES = {
    "catalog": {},
    "sampled": {"kind": "sampled", "max_positives": 7, "negatives": 4},
    "in_batch": {"kind": "in_batch"},
    "mixed": {"kind": "mixed", "negatives": 4},
}


def block_pairs():
    dense = (BLOCK_OF[:, None] == BLOCK_OF[None, :]) * (1.0 + np.arange(NUM_ITEMS) % 2)
    dense = np.minimum(dense, dense.T)
    np.fill_diagonal(dense, 0)
    return dense


def block_items(num_new=0):
    """Items whose brand is their block; new ones of block 2 come last."""
    brands = [f"brand {block}" for block in BLOCK_OF] + ["brand 2"] * num_new
    return pl.DataFrame({"item_id": [f"{number:02}" for number in range(len(brands))], "brand": brands})


def config_of(*, roles=None, candidates=None, distance="cosine", id_dropout=0.0, **train):
    return Config(
        data={"interactions": "log.csv"},
        items=roles or {},
        tower={"dimension": 8, "id_dropout": id_dropout, "distance": distance},
        candidates={"popularity_correction": 0.0} | (candidates or {}),
        evaluate={"recency": RECENCIES},
        train={"learning_rate": 0.05, "seed": 1, "batch_size": 5} | train,
    )


class World:
    """The blocks, and towers fitted on them."""

    def __init__(self, store):
        self.store = store

    def fit(self, *, passes=12, dense=None, batches=None, validation=None, options=None, **config):
        """What `training.fit` gives, the trained tower and the features."""
        dense = block_pairs() if dense is None else dense
        settings = config_of(**config)
        table = block_items()
        features = Features.fit(table, settings.items, settings.tower, np.ones(len(dense), np.int64))
        inputs = features.transform(table)
        model = tower.build(features, settings.tower, settings.train.seed)
        batches = batches or PairBatches(self.store(dense), settings)
        checks = None if validation is None else training.Validation(validation, settings)
        options = options(model) if callable(options) else options or {}
        fitted = training.fit(model, features, inputs, batches, settings, passes=passes, validation=checks, **options)
        return fitted, model, features


@pytest.fixture
def world(store):
    return World(store)


def assert_blocks(vectors, distance="cosine"):
    """The neighbors of an item are exactly the others of its block."""
    index = ExactIndex(vectors, DISTANCES[distance])
    for number in range(NUM_ITEMS):
        others = np.flatnonzero((BLOCK_OF[number] == BLOCK_OF) & (np.arange(NUM_ITEMS) != number))
        found = index.neighbors(np.array([number], np.int32), len(others))
        assert set(found[0].tolist()) == set(others.tolist())


def questions(asked, targets):
    """One question an item: after `asked` came `targets`."""
    items = np.stack([asked, targets], axis=1).ravel().astype(np.int32)
    starts = 2 * np.arange(len(asked))
    return Holdout(items, starts, starts + 1)


def misleading():
    """Questions whose answers lie in other blocks: the longer the training, the worse."""
    numbers = np.arange(NUM_ITEMS)
    return questions(numbers, (numbers + 7) % NUM_ITEMS)


def scores_of(fitted):
    return [figures[VALIDATION_SCORE] for figures in fitted.curve]


def naive_losses(logits):
    """Cross-entropy of each item with the weights of its block; an item is no answer to itself. One by one."""
    np.fill_diagonal(logits, -np.inf)
    losses = []
    for row, weights in zip(logits, block_pairs(), strict=True):
        log_softmax = row - np.log(np.exp(row).sum())
        target = weights / weights.sum()
        losses.append(-sum(t * p for t, p in zip(target, log_softmax, strict=True) if t))
    return losses


# --- what is learned


@pytest.mark.parametrize("kind", CANDIDATES)
def test_the_neighbors_of_an_item_are_exactly_those_of_its_block(world, kind):
    fitted, _, _ = world.fit(candidates=CANDIDATES[kind], batch_size=2, passes=20 if kind == "in_batch" else 12)
    assert_blocks(fitted.vectors)
    assert fitted.curve[-1]["loss"] < fitted.curve[0]["loss"]


@pytest.mark.parametrize("distance", ["euclidean", "manhattan"])
def test_other_distances_find_the_blocks_too(world, distance):
    fitted, _, _ = world.fit(distance=distance, passes=15, temperature=0.3)
    assert_blocks(fitted.vectors, distance)


def test_judged_pairs_bring_together_what_is_the_same(world):
    """Each item is the same as the next of its block, and not the same as some of others."""
    same, other = [], []
    for number in range(NUM_ITEMS):
        own = np.flatnonzero(BLOCK_OF[number] == BLOCK_OF).tolist()
        same.append((number, own[(own.index(number) + 1) % len(own)]))
        other += [(number, far % NUM_ITEMS) for far in range(number + 6, number + 10) if far % NUM_ITEMS not in own]
    first, second = np.array([*same, *other], np.int32).T
    labeled = LabeledPairs(first, second, np.arange(len(first)) < len(same))
    batches = LabeledBatches(labeled, NUM_ITEMS, config_of(batch_size=7))
    fitted, _, _ = world.fit(batches=batches, passes=30, loss="contrastive")
    similarities = fitted.vectors @ fitted.vectors.T
    mine = [similarities[pair] for pair in same]
    theirs = [similarities[pair] for pair in other]
    assert min(mine) > max(theirs)
    assert fitted.curve[-1]["loss"] < 0.1 * fitted.curve[0]["loss"]


BY_BRAND = {"roles": {"categorical": ("brand",)}}


def assert_new_items_find_block_2(vectors, model, features):
    new = tower.encoder(model, 100)(features.transform(block_items(num_new=1).tail(1)))
    nearest = np.argsort(-(vectors @ new[0]))[: BLOCKS[2]]
    assert set(BLOCK_OF[nearest]) == {2}


def test_hidden_ids_let_items_without_interactions_find_their_block_by_their_features(world):
    fitted, model, features = world.fit(**BY_BRAND, id_dropout=0.5)
    assert_new_items_find_block_2(fitted.vectors, model, features)


def place_newcomers(world, fitted, model, features, *, passes=12, **config):
    """A tower for new items among what was learned, and what its fit gives."""
    settings = config_of(**BY_BRAND, **config)
    new = tower.of_features(model, features, settings.tower, 1)
    inputs = features.transform(block_items())
    batches = PairBatches(world.store(block_pairs()), settings)
    return new, training.fit(new, features, inputs, batches, settings, passes=passes, among=fitted.vectors)


def misled(model):
    """Weights under which every brand says the same, and nothing."""
    brands = model.get_layer("tokens_0_encoder")
    brands.set_weights([np.ones_like(weight) for weight in brands.get_weights()])


@pytest.mark.parametrize("kind", CANDIDATES)
def test_newcomers_find_their_block_where_the_features_of_known_items_say_nothing(world, kind):
    candidates = CANDIDATES[kind]
    fitted, model, features = world.fit(**BY_BRAND, candidates=CANDIDATES["catalog"])
    misled(model)
    new, placed = place_newcomers(world, fitted, model, features, passes=30, candidates=candidates, batch_size=4)
    assert placed.curve[-1]["loss"] < placed.curve[0]["loss"]
    assert_new_items_find_block_2(fitted.vectors, tower.joined(model, new), features)


COMBINATIONS = {("red", "round"): 3, ("blue", "square"): 5, ("red", "square"): 4, ("blue", "round"): 6}
"""Color and shape -> items that have both. The first two lie in one place and the others in another, so that neither
of the two says anything by itself, nor does their sum."""


def test_newcomers_find_a_place_that_only_two_features_together_tell(world):
    looks = [look for look, count in COMBINATIONS.items() for _ in range(count)]
    place_of = np.array([look in list(COMBINATIONS)[2:] for look in looks], int)
    dense = (place_of[:, None] == place_of[None, :]) * 1.0
    np.fill_diagonal(dense, 0)
    settings = config_of(roles={"categorical": ("color", "shape")})
    table = pl.DataFrame([("known", *look) for look in looks], schema=["item_id", "color", "shape"], orient="row")
    table = table.with_columns(item_id=pl.Series([f"{number:02}" for number in range(len(looks))]))
    features = Features.fit(table, settings.items, settings.tower, np.ones(len(looks), np.int64))
    among = np.eye(8, dtype=np.float32)[[2, 5]][place_of]
    new = tower.of_features(tower.build(features, settings.tower, 1), features, settings.tower, 1)
    batches = PairBatches(world.store(dense), settings)
    training.fit(new, features, features.transform(table), batches, settings, passes=40, among=among)
    one_each = pl.DataFrame([("new", *look) for look in COMBINATIONS], schema=table.columns, orient="row")
    found = tower.encoder(new, 10)(features.transform(one_each)) @ np.eye(8)[[2, 5]].T
    assert np.argmax(found, axis=1).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(("thaw_after", "moves"), [(0, False), (9, True)])
def test_what_is_frozen_stays_so_for_newcomers_and_what_was_to_thaw_has(world, thaw_after, moves):
    fitted, model, features = world.fit(**BY_BRAND)
    frozen = {"learning_rates": {"brand": 0.0}, "thaw_after": thaw_after}
    new, _ = place_newcomers(world, fitted, model, features, passes=2, **frozen)
    before, after = (tower_.get_layer("tokens_0_encoder").get_weights()[0] for tower_ in (model, new))
    assert np.array_equal(before, after) != moves


def test_newcomers_change_nothing_of_known_items(world):
    fitted, model, features = world.fit(**BY_BRAND)
    weights = model.get_weights()
    new, _ = place_newcomers(world, fitted, model, features)
    embedded = tower.encoder(tower.joined(model, new), 7)(features.transform(block_items()))
    np.testing.assert_allclose(embedded, fitted.vectors, atol=1e-6)
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_the_loss_of_newcomers_is_the_weighted_mean_over_the_anchors_by_their_features(world):
    """One batch, one pass, a learning rate too small to move anything: computed again in NumPy."""
    temperature = 0.3
    still = {"learning_rate": 1e-12, "batch_size": NUM_ITEMS, "temperature": temperature}
    fitted, model, features = world.fit(**BY_BRAND)
    new, placed = place_newcomers(world, fitted, model, features, passes=1, **still)
    asked = np.asarray(new({"tokens_0": features.transform(block_items())["tokens_0"]}), float)
    losses = naive_losses(asked @ fitted.vectors.T / temperature)
    weights = block_pairs().sum(axis=1)
    assert placed.curve[0]["loss"] == pytest.approx(np.mean((weights / weights.mean()) ** 0.5 * losses), rel=1e-4)


@pytest.mark.parametrize("kind", CANDIDATES)
def test_a_seed_repeats_the_embeddings(world, kind):
    candidates = CANDIDATES[kind]
    one, same, other = (
        world.fit(candidates=candidates, passes=2, id_dropout=0.3, batch_size=2, seed=seed)[0] for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one.vectors, same.vectors)
    assert one.curve == same.curve
    assert not np.allclose(one.vectors, other.vectors, atol=1e-3)


def test_the_loss_falls_and_every_pass_is_reported(world):
    told = []
    fitted, model, features = world.fit(
        passes=5, options={"on_pass": lambda number, figures: told.append((number, figures))}
    )
    assert [number for number, _ in told] == [1, 2, 3, 4, 5]
    assert [figures for _, figures in told] == fitted.curve
    assert fitted.curve[-1]["loss"] < fitted.curve[0]["loss"]
    assert (fitted.passes, fitted.score) == (5, -np.inf)
    assert [set(figures) for figures in fitted.curve] == [{"loss"}] * 5
    encoded = tower.encoder(model, 7)(features.transform(block_items()))
    np.testing.assert_allclose(fitted.vectors, encoded, atol=1e-6)


def test_the_loss_of_a_pass_is_the_weighted_mean_over_the_anchors(world):
    """One batch, one pass, a learning rate too small to move anything: computed again in NumPy."""
    temperature = 0.3
    fitted, _, _ = world.fit(
        passes=1, batch_size=NUM_ITEMS, learning_rate=1e-12, temperature=temperature, anchor_power=0.5
    )
    losses = naive_losses(fitted.vectors.astype(float) @ fitted.vectors.T / temperature)
    expected = np.average(losses, weights=block_pairs().sum(axis=1) ** 0.5)
    assert fitted.curve[0]["loss"] == pytest.approx(expected, rel=1e-4)


class OneBatch:
    """A pass of one batch."""

    def __init__(self, batch):
        self.batch = batch

    def __len__(self):
        return 1

    def one_pass(self):
        yield self.batch


@pytest.mark.parametrize("distance", list(DISTANCES))
def test_the_anchor_of_a_history_is_the_weighted_mean_of_its_items(world, distance):
    """Two histories against five candidates, one of them ignored: computed again in NumPy, item by item."""
    temperature = 0.7
    histories, shares = [[1, 3, 0], [4, 0, 0]], [[1.0, 0.5, 0.25], [0.5, 0.0, 0.0]]
    targets = np.array([[-1, -1, 2, -1, 0], [0, 1, -1, 3, -1]], np.float32)
    candidates = np.array([12, 2, 7, 0, 17], np.int32)
    drawn, popular = np.log([1, 0.5, 0.25, 0.9, 0.1]), np.array([0.3, -0.2, 0, 0.1, 0.5])
    arrays = (shares, targets, drawn, popular, [0.5, 1.5])
    batch = Batch(candidates, np.array(histories, np.int32), *(np.array(each, np.float32) for each in arrays))
    fitted, _, _ = world.fit(
        passes=1, batches=OneBatch(batch), distance=distance, learning_rate=1e-12, temperature=temperature
    )
    vectors = fitted.vectors.astype(float)[candidates]
    losses = []
    for row, (own, weights) in enumerate(zip(histories, shares, strict=True)):
        mean = sum(weight * vectors[place] for place, weight in zip(own, weights, strict=True)) / sum(weights)
        if distance == "cosine":
            similar = vectors @ (mean / np.linalg.norm(mean))
        elif distance == "euclidean":
            similar = -((vectors - mean) ** 2).sum(axis=1) / 2
        else:
            similar = -np.abs(vectors - mean).sum(axis=1)
        logits = similar / temperature + popular - np.where(targets[row] > 0, 0, drawn)
        partition = sum(np.exp(logits[place]) for place in range(5) if targets[row, place] >= 0)
        positive = np.maximum(targets[row], 0)
        losses.append(-(positive / positive.sum()) @ (logits - np.log(partition)))
    assert fitted.curve[0]["loss"] == pytest.approx(0.5 * (0.5 * losses[0] + 1.5 * losses[1]), rel=1e-4)


# --- when to stop, and what to keep


def test_early_stopping_ends_after_its_patience_and_keeps_the_best_pass(world):
    """The weights are those of the best pass, number by number, and no later ones."""
    kept, validation = [], misleading()

    def options(model):
        return {"on_pass": lambda *_: kept.append(model.get_weights())}

    fitted, model, _ = world.fit(passes=40, patience=3, validation=validation, options=options)
    scores = scores_of(fitted)
    assert fitted.passes == 1 + scores.index(max(scores))
    assert fitted.score == max(scores) > scores[-1]
    assert len(fitted.curve) == fitted.passes + 3 < 40
    for weight, best, last in zip(model.get_weights(), kept[fitted.passes - 1], kept[-1], strict=True):
        np.testing.assert_array_equal(weight, best)
        assert not np.array_equal(best, last)
    index = ExactIndex(fitted.vectors)
    found = ranking_metrics(target_ranks(index, Queries.from_items(validation.queries), validation.targets))
    best = fitted.curve[fitted.passes - 1]
    for name, value in found.items():
        assert best[f"validation_{name}"] == pytest.approx(value, abs=1e-9)


def test_the_kept_pass_is_as_if_training_had_ended_there(world):
    stopped, _, _ = world.fit(passes=40, patience=2, validation=misleading())
    direct, _, _ = world.fit(passes=stopped.passes)
    np.testing.assert_allclose(stopped.vectors, direct.vectors, atol=1e-5)


def test_where_no_pass_is_better_the_tower_stays_as_it_was(world):
    before = []

    def options(model):
        before.extend(model.get_weights())
        return {"to_beat": 0.999}

    fitted, model, _ = world.fit(passes=40, patience=2, validation=misleading(), options=options)
    assert (fitted.passes, fitted.score, len(fitted.curve)) == (0, 0.999, 2)
    for weight, start in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, start)


def test_what_there_is_to_beat_can_be_beaten(world):
    following = [
        number + 1 if BLOCK_OF[number] in BLOCK_OF[number + 1 :] else number - 1 for number in range(NUM_ITEMS)
    ]
    helpful = questions(np.arange(NUM_ITEMS), following)
    fitted, _, _ = world.fit(passes=8, patience=8, validation=helpful, options={"to_beat": 0.3})
    assert fitted.passes >= 1
    assert fitted.score == max(scores_of(fitted)) > 0.3


def test_the_loss_of_a_pass_is_the_mean_over_its_anchors_however_they_are_batched(world):
    """Nothing is learned, so the order does not matter."""
    still = {"passes": 1, "learning_rate": 1e-12}
    whole, parts = (world.fit(batch_size=size, **still)[0].curve[0]["loss"] for size in (NUM_ITEMS, 3))
    assert NUM_ITEMS % 3 == 0
    assert parts == pytest.approx(whole, rel=1e-5)


def test_both_look_ups_are_measured_and_count_alike(world):
    fitted, _, _ = world.fit(passes=1, validation=misleading())
    (figures,) = fitted.curve
    assert {f"validation_{prefix}ndcg_at_20" for prefix in ("", "history_")} < set(figures)
    both = [figures["validation_ndcg_at_20"], figures["validation_history_ndcg_at_20"]]
    assert fitted.score == pytest.approx(sum(both) / 2)


def test_validation_asks_histories_with_the_recency_that_is_best_for_the_pass(world):
    """Three items a user; computed again with the mean of their vectors, for each recency to try."""
    rng = np.random.default_rng(0)
    log = [rng.choice(NUM_ITEMS, 4, replace=False) for _ in range(25)]
    starts = 4 * np.arange(25)
    holdout = Holdout(np.concatenate(log).astype(np.int32), starts, starts + 3)
    fitted, _, _ = world.fit(passes=1, validation=holdout)
    found = {}
    for recency in RECENCIES:
        gains = []
        for own in log:
            mean = sum(recency**step * fitted.vectors[item] for step, item in enumerate(own[:3][::-1]))
            order = [n for n in np.argsort(-(fitted.vectors @ mean)).tolist() if n not in own[:3].tolist()]
            gains.append(1 / np.log2(order.index(own[3]) + 2))
        found[recency] = np.mean(gains)
    best = max(found, key=found.get)
    assert len(set(found.values())) == len(RECENCIES)
    assert fitted.curve[0]["validation_history_ndcg_at_20"] == pytest.approx(found[best], abs=1e-9)
    assert (fitted.curve[0]["validation_recency"], fitted.recency) == (best, best)


def test_the_recency_of_a_fit_is_that_of_its_best_pass(world, monkeypatch):
    told = iter(
        [{VALIDATION_SCORE: score, "validation_recency": best} for score, best in ((0.5, 0.1), (0.9, 0.4), (0.3, 0.9))]
    )
    monkeypatch.setattr(training.Validation, "figures", lambda *_: next(told))
    fitted, _, _ = world.fit(passes=3, validation=misleading())
    assert (fitted.passes, fitted.recency) == (2, 0.4)


def test_without_validation_there_is_no_recency(world):
    assert world.fit(passes=2)[0].recency is None


# --- learning rates, and what goes wrong


@pytest.fixture
def learners(monkeypatch):
    """The optimizers that were built."""
    built, original = [], optimizer.build

    def watched(*arguments, **options):
        built.append(original(*arguments, **options))
        return built[-1]

    monkeypatch.setattr(optimizer, "build", watched)
    return built


def test_a_fading_fit_begins_with_a_third_of_the_rate_and_ends_at_0(world, learners):
    rates = []

    def on_pass(*_):
        rates.append(float(keras.ops.convert_to_numpy(learners[0].learning_rate)))

    world.fit(passes=4, batch_size=5, learning_rate=0.06, options={"refine": True, "on_pass": on_pass})
    assert rates == pytest.approx([0.015, 0.01, 0.005, 0.0], abs=1e-8)
    assert int(learners[0].iterations) == 4 * 4


def test_without_fading_the_rate_stays(world, learners):
    world.fit(passes=2, learning_rate=0.06)
    assert float(keras.ops.convert_to_numpy(learners[0].learning_rate)) == pytest.approx(0.06)


def test_a_frozen_encoder_learns_after_the_pass_that_thaws_it(world):
    tables = []

    def options(model):
        layer = model.get_layer(tower.ID_ENCODER)
        tables.append(layer.get_weights()[0])
        return {"on_pass": lambda *_: tables.append(layer.get_weights()[0])}

    world.fit(passes=3, roles={"categorical": ("brand",)}, learning_rates={"id": 0.0}, thaw_after=2, options=options)
    np.testing.assert_array_equal(tables[0], tables[2])
    assert not np.array_equal(tables[2], tables[3])


def test_without_pairs_there_is_nothing_to_train_on(world):
    with pytest.raises(StageError, match="at least one pair"):
        world.fit(dense=np.zeros((NUM_ITEMS, NUM_ITEMS)))


def test_a_loss_that_is_no_number_stops_the_training(world):
    with pytest.raises(StageError, match="in pass 1"):
        world.fit(passes=2, temperature=1e-39)


def test_what_goes_wrong_while_a_batch_is_made_is_raised(world):
    class Broken:
        def __len__(self):
            return 2

        def one_pass(self):
            yield from ()
            raise StageError("the pairs cannot be read")

    with pytest.raises(StageError, match="cannot be read"):
        world.fit(batches=Broken())


# --- hard negatives


def test_hard_negatives_are_mined_after_the_set_pass_and_reported(world, store, monkeypatch):
    candidates = CANDIDATES["sampled"] | {"hard_negatives": 1, "hard_ranks": (2, 14), "hard_after": 2, "negatives": 2}
    settings = config_of(candidates=candidates, batch_size=2)
    batches = PairBatches(store(block_pairs()), settings)
    assert batches.sampler.kind == "sampled"
    used, original = [], mining.mine

    def watched(*arguments):
        used.append(original(*arguments))
        return used[-1]

    monkeypatch.setattr(mining, "mine", watched)
    fitted, _, _ = world.fit(passes=4, candidates=candidates, batches=batches, batch_size=2)
    names = {f"hard_{name}" for name in ("considered", "known_positive", "too_similar", "kept")}
    assert [names <= set(figures) for figures in fitted.curve] == [False, True, True, True]
    assert set(fitted.curve[0]) == {"loss"}
    for figures, mined in zip(fitted.curve[1:], used, strict=True):
        assert {name: figures[f"hard_{name}"] for name in mined.report} == mined.report
        assert figures["hard_considered"] == NUM_ITEMS * 13
        assert figures["hard_kept"] > 0
    assert batches.sampler.hard is used[-1].negatives
    for number, row in enumerate(used[-1].negatives.tolist()):
        assert all(BLOCK_OF[other] != BLOCK_OF[number] for other in row if other >= 0)
    fitted, _, _ = world.fit(passes=12, candidates=candidates, batch_size=2)
    assert_blocks(fitted.vectors)


def test_without_hard_negatives_nothing_is_mined(world, monkeypatch):
    monkeypatch.setattr(mining, "mine", lambda *_: pytest.fail("mined"))
    world.fit(passes=2, candidates=CANDIDATES["sampled"])


# --- histories

SIDES, CONTEXT, ANSWERS = 2, 5, 4
SHARED = SIDES * (CONTEXT + ANSWERS)
"""The item that both sides have in common, just before the answer."""


def context(side, number):
    return side * (CONTEXT + ANSWERS) + number


def answer(side, number):
    return side * (CONTEXT + ANSWERS) + CONTEXT + number


def ambiguous_log():
    """Two items of a side, the shared one, an answer of the side: the last item alone says nothing of the side."""
    rng = np.random.default_rng(4)
    log = []
    for user in range(160):
        first, second = rng.choice(CONTEXT, 2, replace=False)
        side = user % SIDES
        log.append([context(side, first), context(side, second), SHARED, answer(side, rng.integers(ANSWERS))])
    return log


def test_passes_over_histories_make_look_ups_from_several_items_better(store):
    """Pairs reach one item far: they tell what belongs to a side, but not which answers do."""
    log = np.array(ambiguous_log(), np.int32)
    known, asked = log[:120], log[120:]
    config = Config(
        data={"interactions": "log.csv"},
        prepare={"window": 1},
        tower={"dimension": 8, "id_dropout": 0.0},
        candidates={"popularity_correction": 0.0},
        train={"learning_rate": 0.03, "seed": 3, "batch_size": 8, "patience": 30},
    )
    times = np.arange(known.size, dtype=np.float64)
    sequences = Sequences([str(n) for n in range(len(known))], known.ravel(), 4 * np.arange(len(known) + 1), times)
    split = Split(sequences, TimeCut(1e9, 1e9))
    dense = np.zeros((SHARED + 1, SHARED + 1))
    counted = cooccurrence.count_pairs(split, np.ones(known.size, np.float32), SHARED + 1, config.prepare, times[-1])
    for anchor, positive, weight, _ in counted.rows():
        dense[anchor, positive] = dense[positive, anchor] = weight
    stored = store(dense)
    starts = 4 * np.arange(len(asked))
    validation = training.Validation(Holdout(asked.ravel(), starts, starts + 3), config)
    table = pl.DataFrame({"item_id": [f"{number:02}" for number in range(SHARED + 1)]})
    features = Features.fit(table, config.items, config.tower, np.ones(SHARED + 1, np.int64))
    inputs = features.transform(table)
    model = tower.build(features, config.tower, config.train.seed)
    first = training.fit(model, features, inputs, PairBatches(stored, config), config, passes=15, validation=validation)
    refined = training.fit(
        model, features, inputs, HistoryBatches(split, "test", stored, config, 0.4), config,
        passes=15, validation=validation, to_beat=first.score, refine=True,
    )  # fmt: skip
    name = "validation_history_ndcg_at_5"
    before, after = first.curve[first.passes - 1][name], refined.curve[refined.passes - 1][name]
    assert refined.passes > 0
    assert refined.score > first.score
    assert after > before + 0.15
    best_possible = np.mean([1 / np.log2(place + 2) for place in range(ANSWERS)])
    assert after > 0.8 * best_possible


# --- going on after a kill


class Killed(BaseException):
    """Nothing that handles errors may hide it."""


RESUMED = {
    "catalog": {},
    "hard negatives": {"candidates": CANDIDATES["sampled"] | {"hard_negatives": 2, "hard_ranks": (1, 9)}},
    "dropout": {"id_dropout": 0.3, "roles": {"categorical": ("brand",)}},
}


@pytest.mark.parametrize("settings", RESUMED.values(), ids=RESUMED)
@pytest.mark.parametrize("validated", [True, False], ids=["validated", "all passes"])
def test_a_fit_that_was_killed_twice_comes_to_the_same_curve_and_tower(world, tmp_path, settings, validated):
    validation = misleading() if validated else None
    settings = settings | {"passes": 7, "patience": 3, "batch_size": 4, "validation": validation}
    whole, model, _ = world.fit(**settings)
    checkpoint = Checkpoint(tmp_path / "pairs.npz")
    done = []

    def on_pass(number, _):
        done.append(number)
        if len(done) in {2, 3}:
            raise Killed

    options = {"checkpoint": checkpoint, "on_pass": on_pass}
    for _ in range(2):
        with pytest.raises(Killed):
            world.fit(**settings, options=options)
    resumed, model_after, _ = world.fit(**settings, options=options)
    assert done == list(range(1, len(whole.curve) + 1))
    assert resumed.curve == whole.curve
    assert (resumed.passes, resumed.score) == (whole.passes, whole.score)
    np.testing.assert_array_equal(resumed.vectors, whole.vectors)
    for weight, same in zip(model.get_weights(), model_after.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, same)


def test_a_fit_that_was_finished_is_not_done_again(world, tmp_path):
    options = {"checkpoint": Checkpoint(tmp_path / "pairs.npz")}
    whole, _, _ = world.fit(passes=3, options=options)
    again, _, _ = world.fit(passes=3, options=options | {"on_pass": lambda *_: pytest.fail("a pass was done")})
    np.testing.assert_array_equal(again.vectors, whole.vectors)


@pytest.mark.parametrize(("value", "compiled"), [(None, True), ("1", True), ("0", False)])
def test_xla_compiles_the_step_unless_the_environment_says_0(world, monkeypatch, value, compiled):
    compile_model, used = keras.Model.compile, []

    def record(model, *args, jit_compile, **options):
        used.append(jit_compile)
        compile_model(model, *args, jit_compile=False, **options)

    monkeypatch.setattr(keras.Model, "compile", record)
    monkeypatch.delenv("RECSYS_XLA")
    if value is not None:
        monkeypatch.setenv("RECSYS_XLA", value)
    world.fit(passes=1)
    assert used == [compiled]


def test_a_fit_with_xla_has_the_losses_of_a_fit_without(world, monkeypatch):
    losses = []
    for value in ("0", "1"):
        monkeypatch.setenv("RECSYS_XLA", value)
        fitted, _, _ = world.fit(passes=2)
        losses.append([figures["loss"] for figures in fitted.curve])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
