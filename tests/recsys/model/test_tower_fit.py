import keras
import numpy as np
import polars as pl
import pytest
from scipy import sparse

from recsys.data.sequences import Sequences
from recsys.data.splits import Split, TimeCut
from recsys.evaluation.likeness import Evidence
from recsys.model import tower_fit
from recsys.model.fit_plan import FitPlan, HistoryPhase, NewItemPhase, PairPhase
from recsys.model.tower_fit import FitData, TowerFit
from tests.recsys.model.block_world import BLOCK_OF, BY_BRAND, NUM_ITEMS, block_items, block_pairs, make_config

PAIRS = PairPhase(2, validate=False, anchor_power=1.0)


@pytest.fixture
def fit(store):
    """Fits towers to the blocks; ten users have interactions with three items of a block each."""
    rng = np.random.default_rng(8)
    users = 10
    blocks = [np.flatnonzero(user % 4 == BLOCK_OF) for user in range(users)]
    items = np.concatenate([rng.choice(block, 3, replace=False) for block in blocks]).astype(np.int32)
    sequences = Sequences([str(user) for user in range(users)], items, 3 * np.arange(users + 1), np.arange(3.0 * users))

    def run(phases, on_pass=lambda *_: None, evidence=None, **settings):
        catalog = block_items().with_columns(interactions=pl.lit(3))
        data = FitData(catalog, Split(sequences, TimeCut(1e9, 1e9)), store(block_pairs()), evidence=evidence)
        return TowerFit(FitPlan("test", phases), data, make_config(**settings), on_pass=on_pass).run()

    return run


@pytest.fixture
def optimizers(monkeypatch):
    """The optimizers that were built."""
    built, original = [], tower_fit.build_optimizer

    def recorded(*arguments, **options):
        built.append(original(*arguments, **options))
        return built[-1]

    monkeypatch.setattr(tower_fit, "build_optimizer", recorded)
    return built


def learning_rate(optimizer):
    return float(keras.ops.convert_to_numpy(optimizer.learning_rate))


def test_pair_phase_has_a_constant_learning_rate(fit, optimizers):
    rates = []
    fit((PAIRS,), on_pass=lambda *_: rates.append(learning_rate(optimizers[0])), learning_rate=0.06)
    assert rates == pytest.approx([0.06, 0.06])


def test_learning_rate_of_the_history_phase_decays_from_a_third_to_0(fit, optimizers):
    rates = []

    def on_pass(phase, *_):
        if phase == "histories":
            rates.append(learning_rate(optimizers[1]))

    fit((PAIRS, HistoryPhase(4, validate=False, recency=0.4)), on_pass=on_pass, learning_rate=0.06, batch_size=5)
    assert rates == pytest.approx([0.015, 0.01, 0.005, 0.0], abs=1e-8)
    assert int(optimizers[1].iterations) == 4 * 4


def test_features_lead_in_the_phases_with_ids_only(fit, optimizers):
    """Ten users with three interactions each: the mean is below two, so the lead of 150 gives the largest factor."""
    fit((PAIRS, HistoryPhase(1, validate=False, recency=0.4), NewItemPhase(anchor_power=0.5)), **BY_BRAND)
    assert [set(optimizer.factors.values()) for optimizer in optimizers] == [{1.0, 10.0}, {1.0, 10.0}, {1.0}]


def test_passes_are_numbered_from_the_start_of_the_fit(fit):
    reported = []
    phases = (PAIRS, HistoryPhase(1, validate=False, recency=0.4), NewItemPhase(anchor_power=0.5))
    fitted = fit(phases, on_pass=lambda phase, number, _: reported.append((phase, number)), **BY_BRAND)
    expected = ["pairs", "pairs", "histories", *["new_items"] * 4]
    assert reported == [(phase, number) for number, phase in enumerate(expected, start=1)]
    assert len(fitted.curve) == 3
    assert fitted.passes == (2, 1)


@pytest.mark.parametrize(("thaw_after", "moves"), [(0, False), (9, True)])
def test_frozen_encoders_are_thawed_for_new_items_if_they_thaw_at_all(fit, thaw_after, moves):
    """With `thaw_after` 9 they are still frozen after the two passes over pairs."""
    settings = {**BY_BRAND, "learning_rates": {"brand": 0.0}, "thaw_after": thaw_after}
    combined = fit((PAIRS, NewItemPhase(anchor_power=0.5)), **settings).tower
    known, new = (combined.get_layer(name).get_layer("tokens_0_encoder").get_weights()[0] for name in ("known", "new"))
    assert np.array_equal(known, new) != moves


def test_embeddings_of_known_items_do_not_change_in_the_last_phase(fit):
    without = fit((PAIRS,), **BY_BRAND)
    combined = fit((PAIRS, NewItemPhase(anchor_power=0.5)), **BY_BRAND)
    assert len(combined.embeddings) == NUM_ITEMS
    np.testing.assert_array_equal(combined.embeddings, without.embeddings)


def test_passes_are_validated_by_evidence_of_likeness_if_there_is_any(fit):
    """The evidence associates the items of a block, as the pairs do."""
    blocks = sparse.csr_array(block_pairs())
    known = blocks.sum(axis=0) > 0
    curve = fit((PairPhase(4, validate=True, anchor_power=1.0),), evidence=Evidence(blocks, blocks, known)).curve
    scores = [figures["validation_score"] for figures in curve]
    assert [figures["validation_agreement_at_10"] for figures in curve] == scores
    assert scores[-1] > scores[0] > 0
