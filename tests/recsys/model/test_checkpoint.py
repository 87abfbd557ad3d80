import numpy as np
import pytest

from recsys.model import hard_negatives
from recsys.model.checkpoint import Checkpoint
from tests.recsys.model.block_world import BY_BRAND, CANDIDATES, misleading_holdout

SETTINGS = {
    "catalog": {},
    "hard negatives": {"candidates": CANDIDATES["sampled"] | {"hard_negatives": 2}},
    "dropout": {"id_dropout": 0.3, **BY_BRAND},
}


class Killed(BaseException):
    """Not an `Exception`, so that no error handling catches it."""


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("validated", [True, False], ids=["validated", "all passes"])
def test_training_killed_twice_has_the_same_curve_and_weights(world, tmp_path, monkeypatch, settings, validated):
    monkeypatch.setattr(hard_negatives, "RANKS", (1, 9))
    holdout = misleading_holdout() if validated else None
    settings = settings | {"passes": 7, "patience": 3, "batch_size": 4, "validation": holdout}
    uninterrupted, model, _ = world.fit(**settings)
    done = []

    def on_pass(number, _):
        done.append(number)
        if len(done) in {2, 3}:
            raise Killed

    options = {"checkpoint": Checkpoint(tmp_path / "pairs.npz"), "on_pass": on_pass}
    for _ in range(2):
        with pytest.raises(Killed):
            world.fit(**settings, options=options)
    resumed, resumed_model, _ = world.fit(**settings, options=options)
    assert done == list(range(1, len(uninterrupted.curve) + 1))
    assert resumed.curve == uninterrupted.curve
    assert (resumed.best_pass, resumed.score) == (uninterrupted.best_pass, uninterrupted.score)
    np.testing.assert_array_equal(resumed.embeddings, uninterrupted.embeddings)
    for weight, expected in zip(resumed_model.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, expected)


def test_finished_training_is_not_repeated(world, tmp_path):
    options = {"checkpoint": Checkpoint(tmp_path / "pairs.npz")}
    first, _, _ = world.fit(passes=3, options=options)
    again, _, _ = world.fit(passes=3, options=options | {"on_pass": lambda *_: pytest.fail("a pass was done")})
    np.testing.assert_array_equal(again.embeddings, first.embeddings)
