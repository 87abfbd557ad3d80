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
from recsys.evaluation.metrics import ranking_metrics, target_ranks
from recsys.features.encoding import Features
from recsys.index.distances import COSINE
from recsys.index.exact import ExactIndex
from recsys.index.queries import Queries
from recsys.model import batches as batches_module
from recsys.model import hard_negatives, tower
from recsys.model.batches import Batches, HistoryBatches, LabeledBatches, PairBatches
from recsys.model.hard_negatives import mine
from recsys.model.optimizer import build_optimizer
from recsys.model.siamese import NewItemSiamese, Siamese
from recsys.model.trainer import Trainer
from recsys.model.validation import Validation
from tests.recsys.model.block_world import (
    BLOCK_OF,
    BY_BRAND,
    CANDIDATES,
    NUM_ITEMS,
    assert_blocks,
    assert_new_item_is_near_block_2,
    block_items,
    block_pairs,
    last_item_holdout,
    make_config,
    misleading_holdout,
    scores_of,
)

# --- results of training


@pytest.mark.parametrize("kind", CANDIDATES)
def test_nearest_neighbors_are_exactly_the_items_of_the_block(world, kind):
    result, _, _ = world.fit(candidates=CANDIDATES[kind], batch_size=2, passes=20 if kind == "in_batch" else 12)
    assert_blocks(result.embeddings)
    assert result.curve[-1]["loss"] < result.curve[0]["loss"]


@pytest.mark.parametrize("distance", ["euclidean", "manhattan"])
def test_other_distances_separate_the_blocks(world, distance):
    result, _, _ = world.fit(distance=distance, passes=15, temperature=0.3)
    assert_blocks(result.embeddings, distance)


def test_labeled_pairs_bring_items_with_the_same_label_together(world):
    """Each item is the same as the next of its block, and different from some items of other blocks."""
    same, different = [], []
    for number in range(NUM_ITEMS):
        block = np.flatnonzero(BLOCK_OF[number] == BLOCK_OF).tolist()
        same.append((number, block[(block.index(number) + 1) % len(block)]))
        distant = [other % NUM_ITEMS for other in range(number + 6, number + 10)]
        different += [(number, other) for other in distant if other not in block]
    first, second = np.array([*same, *different], np.int32).T
    labeled = LabeledPairs(first, second, np.arange(len(first)) < len(same))
    batches = LabeledBatches(labeled, NUM_ITEMS, make_config(batch_size=7))
    result, _, _ = world.fit(batches=batches, passes=30, loss="contrastive")
    similarities = result.embeddings @ result.embeddings.T
    assert min(similarities[pair] for pair in same) > max(similarities[pair] for pair in different)
    assert result.curve[-1]["loss"] < 0.1 * result.curve[0]["loss"]


def test_id_dropout_lets_new_items_find_their_block_by_their_features(world):
    result, model, features = world.fit(**BY_BRAND, id_dropout=0.5)
    assert_new_item_is_near_block_2(result.embeddings, model, features)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CANDIDATES)
def test_new_items_find_their_block_if_the_features_of_known_items_are_uninformative(world, kind):
    known, model, features = world.fit(**BY_BRAND, candidates=CANDIDATES["catalog"])
    brands = model.get_layer("tokens_0_encoder")
    brands.set_weights([np.ones_like(weight) for weight in brands.get_weights()])
    new, result = world.fit_new_items(
        known.embeddings, model, features, passes=30, candidates=CANDIDATES[kind], batch_size=4
    )
    assert result.curve[-1]["loss"] < result.curve[0]["loss"]
    assert_new_item_is_near_block_2(known.embeddings, tower.combine(model, new), features)


COMBINATIONS = {("red", "round"): 3, ("blue", "square"): 5, ("red", "square"): 4, ("blue", "round"): 6}
"""Color and shape -> number of items with both. The first two have one embedding and the others another one, so that
neither feature is informative by itself, nor is a sum of both."""


def test_new_items_are_embedded_by_combinations_of_features(world):
    values = [value for value, count in COMBINATIONS.items() for _ in range(count)]
    group = np.array([value in list(COMBINATIONS)[2:] for value in values], int)
    dense = (group[:, None] == group[None, :]) * 1.0
    np.fill_diagonal(dense, 0)
    config = make_config(roles={"categorical": ("color", "shape")})
    table = pl.DataFrame([("known", *value) for value in values], schema=["item_id", "color", "shape"], orient="row")
    table = table.with_columns(item_id=pl.Series([f"{number:02}" for number in range(len(values))]))
    features = Features.fit(table, config.items, config.tower, np.ones(len(values), np.int64))
    inputs = features.transform(table)
    embeddings = np.eye(8, dtype=np.float32)[[2, 5]][group]
    new = tower.build_for_new_items(tower.build(features, config.tower, 1), features, config.tower, 1)
    Trainer(
        NewItemSiamese(new, inputs, config, anchor_power=0.5, embeddings=embeddings),
        build_optimizer(config.train, new, features, config.train.learning_rate),
        PairBatches(world.store(dense), config),
        inputs,
        config.train,
    ).fit(40)
    new_items = pl.DataFrame([("new", *value) for value in COMBINATIONS], schema=table.columns, orient="row")
    scores = tower.make_encoder(new, 10)(features.transform(new_items)) @ np.eye(8)[[2, 5]].T
    assert np.argmax(scores, axis=1).tolist() == [0, 0, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", CANDIDATES)
def test_same_seed_gives_the_same_embeddings(world, kind):
    settings = {"candidates": CANDIDATES[kind], "passes": 2, "id_dropout": 0.3, "batch_size": 2}
    first, same, different = (world.fit(**settings, seed=seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.embeddings, same.embeddings)
    assert first.curve == same.curve
    assert not np.allclose(first.embeddings, different.embeddings, atol=1e-3)


def test_every_pass_is_reported_and_the_last_one_kept_without_validation(world):
    reported = []
    result, model, features = world.fit(
        passes=5, options={"on_pass": lambda number, figures: reported.append((number, figures))}
    )
    assert [number for number, _ in reported] == [1, 2, 3, 4, 5]
    assert [figures for _, figures in reported] == result.curve
    assert result.curve[-1]["loss"] < result.curve[0]["loss"]
    assert (result.best_pass, result.score) == (5, -np.inf)
    assert [set(figures) for figures in result.curve] == [{"loss"}] * 5
    encoded = tower.make_encoder(model, 7)(features.transform(block_items()))
    np.testing.assert_allclose(result.embeddings, encoded, atol=1e-6)


def test_loss_of_a_pass_does_not_depend_on_the_batch_size(world):
    """At a learning rate of nearly 0, so that the order of the anchors does not matter."""
    fixed = {"passes": 1, "learning_rate": 1e-12}
    one_batch, several = (world.fit(batch_size=size, **fixed)[0].curve[0]["loss"] for size in (NUM_ITEMS, 3))
    assert NUM_ITEMS % 3 == 0
    assert several == pytest.approx(one_batch, rel=1e-5)


# --- early stopping


def test_early_stopping_restores_the_weights_of_the_best_pass(world):
    weights, holdout = [], misleading_holdout()

    def options(model):
        return {"on_pass": lambda *_: weights.append(model.get_weights())}

    result, model, _ = world.fit(passes=40, patience=3, validation=holdout, options=options)
    scores = scores_of(result)
    assert result.best_pass == 1 + scores.index(max(scores))
    assert result.score == max(scores) > scores[-1]
    assert len(result.curve) == result.best_pass + 3 < 40
    for weight, best, last in zip(model.get_weights(), weights[result.best_pass - 1], weights[-1], strict=True):
        np.testing.assert_array_equal(weight, best)
        assert not np.array_equal(best, last)
    index = ExactIndex(result.embeddings)
    expected = ranking_metrics(target_ranks(index, Queries.from_items(holdout.queries), holdout.targets))
    figures = result.curve[result.best_pass - 1]
    for name, value in expected.items():
        assert figures[f"validation_{name}"] == pytest.approx(value, abs=1e-9)


def test_best_pass_equals_training_of_exactly_so_many_passes(world):
    stopped, _, _ = world.fit(passes=40, patience=2, validation=misleading_holdout())
    exact, _, _ = world.fit(passes=stopped.best_pass)
    np.testing.assert_allclose(stopped.embeddings, exact.embeddings, atol=1e-5)


def test_initial_weights_are_restored_if_no_pass_beats_the_given_score(world):
    initial = []

    def options(model):
        initial.extend(model.get_weights())
        return {"score_to_beat": 0.999}

    result, model, _ = world.fit(passes=40, patience=2, validation=misleading_holdout(), options=options)
    assert (result.best_pass, result.score, len(result.curve)) == (0, 0.999, 2)
    for weight, expected in zip(model.get_weights(), initial, strict=True):
        np.testing.assert_array_equal(weight, expected)


def test_pass_that_beats_the_given_score_is_kept(world):
    targets = [number + 1 if BLOCK_OF[number] in BLOCK_OF[number + 1 :] else number - 1 for number in range(NUM_ITEMS)]
    holdout = last_item_holdout(np.arange(NUM_ITEMS), targets)
    result, _, _ = world.fit(passes=8, patience=8, validation=holdout, options={"score_to_beat": 0.3})
    assert result.best_pass >= 1
    assert result.score == max(scores_of(result)) > 0.3


# --- learning rates and errors


def test_frozen_encoder_learns_after_the_pass_that_thaws_it(world):
    tables = []

    def options(model):
        layer = model.get_layer(tower.ID_ENCODER)
        tables.append(layer.get_weights()[0])
        return {"on_pass": lambda *_: tables.append(layer.get_weights()[0])}

    world.fit(passes=3, **BY_BRAND, learning_rates={"id": 0.0}, thaw_after=2, options=options)
    np.testing.assert_array_equal(tables[0], tables[2])
    assert not np.array_equal(tables[2], tables[3])


def test_rejects_a_loss_that_is_not_finite(world):
    with pytest.raises(StageError, match="in pass 1"):
        world.fit(passes=2, temperature=1e-39)


def test_error_while_a_batch_is_drawn_is_raised(world):
    class Broken(Batches):
        def __len__(self):
            return 2

        def one_pass(self):
            yield from ()
            raise StageError("the pairs cannot be read")

    with pytest.raises(StageError, match="cannot be read"):
        world.fit(batches=Broken())


# --- hard negatives


def test_hard_negatives_are_mined_after_the_configured_pass_and_reported(world, store, monkeypatch):
    candidates = CANDIDATES["sampled"] | {"hard_negatives": 1, "negatives": 2}
    monkeypatch.setattr(hard_negatives, "RANKS", (2, 14))
    monkeypatch.setattr(batches_module, "FIRST_MINED_PASS", 2)
    batches = PairBatches(store(block_pairs()), make_config(candidates=candidates, batch_size=2))
    assert batches.sampler.kind == "sampled"
    mined = []

    def recorded(*arguments):
        mined.append(mine(*arguments))
        return mined[-1]

    monkeypatch.setattr(batches_module, "mine", recorded)
    result, _, _ = world.fit(passes=4, candidates=candidates, batches=batches, batch_size=2)
    names = {f"hard_{name}" for name in ("considered", "known_positive", "too_similar", "kept")}
    assert [names <= set(figures) for figures in result.curve] == [False, True, True, True]
    assert set(result.curve[0]) == {"loss"}
    for figures, expected in zip(result.curve[1:], mined, strict=True):
        assert {name: figures[f"hard_{name}"] for name in expected.report} == expected.report
        assert figures["hard_considered"] == NUM_ITEMS * 13
        assert figures["hard_kept"] > 0
    assert batches.hard_negatives is mined[-1].negatives
    for number, row in enumerate(mined[-1].negatives.tolist()):
        assert all(BLOCK_OF[other] != BLOCK_OF[number] for other in row if other >= 0)
    result, _, _ = world.fit(passes=12, candidates=candidates, batch_size=2)
    assert_blocks(result.embeddings)


def test_nothing_is_mined_without_hard_negatives(world, monkeypatch):
    monkeypatch.setattr(batches_module, "mine", lambda *_: pytest.fail("mined"))
    world.fit(passes=2, candidates=CANDIDATES["sampled"])


# --- histories

SIDES, CONTEXT, ANSWERS = 2, 5, 4
SHARED = SIDES * (CONTEXT + ANSWERS)
"""The item that both sides share, just before the target."""


def context_item(side, number):
    return side * (CONTEXT + ANSWERS) + number


def answer_item(side, number):
    return side * (CONTEXT + ANSWERS) + CONTEXT + number


def ambiguous_sequences():
    """Two items of a side, the shared item, and a target of the side: the last item does not tell the side."""
    rng = np.random.default_rng(4)
    sequences = []
    for user in range(160):
        first, second = rng.choice(CONTEXT, 2, replace=False)
        side = user % SIDES
        target = answer_item(side, rng.integers(ANSWERS))
        sequences.append([context_item(side, first), context_item(side, second), SHARED, target])
    return sequences


@pytest.mark.slow
def test_passes_over_histories_improve_history_queries(store):
    """Pairs reach one item far: they tell which items belong to a side, but not which targets do."""
    sequences = np.array(ambiguous_sequences(), np.int32)
    known, heldout = sequences[:120], sequences[120:]
    config = Config(
        data={"interactions": "log.csv"},
        prepare={"window": 1},
        tower={"dimension": 8, "id_dropout": 0.0},
        candidates={"popularity_correction": 0.0},
        train={"learning_rate": 0.03, "seed": 3, "batch_size": 8, "patience": 30},
    )
    times = np.arange(known.size, dtype=np.float64)
    split = Split(
        Sequences([str(user) for user in range(len(known))], known.ravel(), 4 * np.arange(len(known) + 1), times),
        TimeCut(1e9, 1e9),
    )
    dense = np.zeros((SHARED + 1, SHARED + 1))
    counted = cooccurrence.count_pairs(split, np.ones(known.size, np.float32), config.prepare, times[-1])
    for anchor, positive, weight in counted.select("anchor", "positive", "weight").rows():
        dense[anchor, positive] = dense[positive, anchor] = weight
    stored = store(dense)
    starts = 4 * np.arange(len(heldout))
    validation = Validation(Holdout(heldout.ravel(), starts, starts + 3), COSINE)
    table = pl.DataFrame({"item_id": [f"{number:02}" for number in range(SHARED + 1)]})
    features = Features.fit(table, config.items, config.tower, np.ones(SHARED + 1, np.int64))
    inputs = features.transform(table)
    model = tower.build(features, config.tower, config.train.seed)

    def fit(batches, learning_rate, **options):
        adam = build_optimizer(config.train, model, features, learning_rate)
        siamese = Siamese(model, inputs, config)
        return Trainer(siamese, adam, batches, inputs, config.train, validation, **options).fit(15)

    first = fit(PairBatches(stored, config), 0.03)
    histories = HistoryBatches(split, "test", stored, config, 0.4)
    decay = keras.optimizers.schedules.PolynomialDecay(0.01, 15 * len(histories), end_learning_rate=0.0)
    refined = fit(histories, decay, score_to_beat=first.score)
    name = "validation_history_ndcg_at_5"
    before, after = first.curve[first.best_pass - 1][name], refined.curve[refined.best_pass - 1][name]
    assert refined.best_pass > 0
    assert refined.score > first.score
    assert after > before + 0.15
    best_possible = np.mean([1 / np.log2(rank + 2) for rank in range(ANSWERS)])
    assert after > 0.8 * best_possible
