import numpy as np
import polars as pl
import pytest
from scipy import sparse

from recsys import tower, training
from recsys.config import ItemsConfig, TowerConfig, TrainConfig
from recsys.errors import StageError
from recsys.evaluation import evaluate
from recsys.exact import ExactIndex
from recsys.features import Features
from recsys.sampling import Sampler
from recsys.splitting import Holdout

BLOCKS = (3, 4, 5, 6)
"""Users of a block touch its items and no others."""
BLOCK_OF = np.repeat(np.arange(len(BLOCKS)), BLOCKS)
NUM_ITEMS = len(BLOCK_OF)

WHOLE = {"batch_size": 5}
SAMPLED = {"batch_size": 2, "whole_catalogue_up_to": 1, "max_positives": 7, "negatives": 4}


def block_pairs():
    dense = (BLOCK_OF[:, None] == BLOCK_OF[None, :]).astype(np.float32) * (1 + np.arange(NUM_ITEMS) % 2)
    dense = np.minimum(dense, dense.T)
    np.fill_diagonal(dense, 0)
    return sparse.csr_array(dense.astype(np.float32))


def block_items(num_new=0):
    """Items whose brand is their block; new ones of block 2 come last."""
    brands = [f"brand {block}" for block in BLOCK_OF] + ["brand 2"] * num_new
    return pl.DataFrame({"item_id": [f"{number:02}" for number in range(len(brands))], "brand": brands})


def fit(
    candidates=WHOLE,
    *,
    roles=None,
    passes=12,
    seed=1,
    id_dropout=0.0,
    validation=None,
    on_pass=None,
    pairs=None,
    **train,
):
    table = block_items()
    features = Features.fit(table, roles or ItemsConfig(), np.ones(NUM_ITEMS, bool))
    inputs = features.transform(table)
    fitted = training.fit(
        features,
        inputs,
        block_pairs() if pairs is None else pairs,
        TowerConfig(dimension=8, id_dropout=id_dropout),
        TrainConfig(**{"learning_rate": 0.05, "seed": seed} | candidates | train),
        passes=passes,
        validation=validation,
        on_pass=on_pass or (lambda *_: None),
    )
    return fitted, features, tower.encoder(fitted.tower, 100)(inputs)


@pytest.mark.parametrize("candidates", [WHOLE, SAMPLED], ids=["whole catalogue", "sampled"])
def test_the_neighbours_of_an_item_are_exactly_those_of_its_block(candidates):
    _, _, vectors = fit(candidates)
    assert Sampler(block_pairs(), TrainConfig(**SAMPLED), np.random.default_rng(0)).num_candidates < NUM_ITEMS
    for number in range(NUM_ITEMS):
        others = np.flatnonzero((BLOCK_OF[number] == BLOCK_OF) & (np.arange(NUM_ITEMS) != number))
        found = ExactIndex(vectors).neighbours(np.array([number], np.int32), len(others))
        assert set(found[0].tolist()) == set(others.tolist())


@pytest.mark.parametrize("candidates", [WHOLE, SAMPLED], ids=["whole catalogue", "sampled"])
def test_a_seed_repeats_the_embeddings(candidates):
    _, _, one = fit(candidates, passes=2, id_dropout=0.3)
    _, _, same = fit(candidates, passes=2, id_dropout=0.3)
    _, _, other = fit(candidates, passes=2, id_dropout=0.3, seed=2)
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other, atol=1e-3)


def test_items_without_interactions_find_their_block_by_their_features():
    fitted, features, vectors = fit(roles=ItemsConfig(categorical=("brand",)), id_dropout=0.5)
    new = tower.encoder(fitted.tower, 100)(features.transform(block_items(num_new=1).tail(1)))
    nearest = np.argsort(-(vectors @ new[0]))[: BLOCKS[2]]
    assert set(BLOCK_OF[nearest]) == {2}


def test_the_loss_falls_and_every_pass_is_reported():
    told = []
    fitted, _, _ = fit(passes=5, on_pass=lambda number, figures: told.append((number, figures)))
    assert [number for number, _ in told] == [1, 2, 3, 4, 5]
    assert [figures for _, figures in told] == fitted.curve
    assert fitted.curve[-1]["loss"] < fitted.curve[0]["loss"]
    assert fitted.passes == 5


def misleading():
    """Questions whose answers lie in other blocks: the longer the training, the worse."""
    queries = np.arange(NUM_ITEMS, dtype=np.int32)
    return Holdout(queries, ((queries + 7) % NUM_ITEMS).astype(np.int32))


def test_early_stopping_ends_after_its_patience_and_keeps_the_best_pass():
    validation = misleading()
    fitted, _, vectors = fit(passes=40, patience=3, validation=validation)
    scores = [figures["validation_ndcg_at_20"] for figures in fitted.curve]
    assert fitted.passes == 1 + scores.index(max(scores))
    assert len(fitted.curve) == fitted.passes + 3 < 40
    assert evaluate(ExactIndex(vectors), validation)["ndcg_at_20"] == pytest.approx(max(scores), abs=1e-9)
    assert scores[-1] < max(scores)


def test_the_kept_pass_is_as_if_training_had_ended_there():
    stopped, _, vectors = fit(passes=40, patience=2, validation=misleading())
    _, _, direct = fit(passes=stopped.passes)
    np.testing.assert_allclose(vectors, direct, atol=1e-5)


def test_a_holdout_without_questions_counts_as_none():
    nothing = Holdout(np.empty(0, np.int32), np.empty(0, np.int32))
    fitted, _, _ = fit(passes=3, patience=1, validation=nothing)
    assert fitted.passes == 3
    assert [set(figures) for figures in fitted.curve] == [{"loss"}] * 3


def test_without_pairs_there_is_nothing_to_train_on():
    with pytest.raises(StageError, match="at least one pair"):
        fit(pairs=sparse.csr_array((NUM_ITEMS, NUM_ITEMS), dtype=np.float32))


def test_a_loss_that_is_no_number_stops_the_training():
    with pytest.raises(StageError, match="in pass 1"):
        fit(passes=2, temperature=1e-39)


def test_a_pass_asks_every_anchor_and_the_next_pass_in_another_order():
    config = TrainConfig(batch_size=4)
    batches = training.PassOfBatches(Sampler(block_pairs(), config, np.random.default_rng(3)))

    def one_pass():
        drawn = [batches[index][0] for index in range(len(batches))]
        return np.concatenate([batch.candidates[batch.anchors] for batch in drawn]).tolist()

    first = one_pass()
    batches.on_epoch_end()
    second = one_pass()
    for order in (first, second):
        assert sorted(order[:NUM_ITEMS]) == list(range(NUM_ITEMS))
        assert len(order) == 20
    assert first != second


def test_the_loss_of_a_pass_is_the_weighted_mean_over_the_anchors():
    """One batch, one pass, a learning rate too small to move anything: computed again in NumPy."""
    pairs, temperature = block_pairs(), 0.3
    fitted, _, vectors = fit(
        passes=1, pairs=pairs, batch_size=NUM_ITEMS, learning_rate=1e-12, temperature=temperature, anchor_power=0.5
    )
    weights = pairs.toarray().astype(float)
    logits = vectors.astype(float) @ vectors.T / temperature
    np.fill_diagonal(logits, -np.inf)
    losses = []
    for number in range(NUM_ITEMS):
        log_softmax = logits[number] - np.log(np.exp(logits[number]).sum())
        target = weights[number] / weights[number].sum()
        losses.append(-sum(t * p for t, p in zip(target, log_softmax, strict=True) if t))
    anchor_weights = weights.sum(axis=1) ** 0.5
    expected = np.average(losses, weights=anchor_weights)
    assert fitted.curve[0]["loss"] == pytest.approx(expected, rel=1e-4)
