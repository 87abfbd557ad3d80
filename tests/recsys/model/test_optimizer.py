import keras
import numpy as np
import polars as pl
import pytest
from keras import ops

from recsys.config.sections import ItemsConfig, TowerConfig, TrainConfig
from recsys.errors import ConfigError
from recsys.features.encoding import Features
from recsys.model import tower
from recsys.model.optimizer import build_optimizer, feature_rate_factor

TABLE = pl.DataFrame(
    {
        "item_id": list("abcdef"),
        "brand": ["x", "y", None, "x", "z", "y"],
        "price": [1.0, None, 3.0, 4.0, 5.0, 6.0],
        "title": ["red wine", "wine", "red glass", "glass", None, "red"],
    }
)
ROLES = ItemsConfig(title="title", categorical=("brand",), numeric=("price",), text=("title",))
ENCODERS = ["id", "brand", "title", "numeric"]
RATE = 0.01


class Learner(keras.Model):
    """A loss that pulls all embeddings to fixed points."""

    def __init__(self, model):
        super().__init__()
        self.tower = model
        self.points = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)

    def call(self, inputs, training=False):
        return self.tower(inputs, training=training)

    def compute_loss(self, x, y, y_pred, *_):  # noqa: ARG002 - Keras's signature
        return ops.mean(ops.square(y_pred - self.points))


class World:
    """A small tower, what it learns from, and its weights before and after."""

    def __init__(
        self, keras_optimizer=None, *, text_encoder="bag", fusion="gating", compiled=False, feature_rate=1.0, **options
    ):
        config = TowerConfig(
            dimension=4, distance="euclidean", id_dropout=0.0, text_encoder=text_encoder, fusion=fusion, hidden=(5,)
        )
        self.features = Features.fit(TABLE, ROLES, config, np.ones(6, int))
        self.inputs = self.features.transform(TABLE)
        self.model = tower.build(self.features, config, 1)
        train = TrainConfig(learning_rate=RATE, **options)
        self.optimizer = keras_optimizer or build_optimizer(
            train, self.model, self.features, RATE, feature_rate=feature_rate
        )
        self.learner = Learner(self.model)
        self.compiled = compiled
        self.compile(self.optimizer)

    def compile(self, learner):
        self.learner.compile(optimizer=learner, jit_compile=self.compiled, run_eagerly=not self.compiled)

    def weights(self):
        """By encoder; what belongs to none by its layer."""
        names = tower.encoder_names(self.features)
        return {names.get(layer.name, layer.name): layer.get_weights() for layer in self.model.layers if layer.weights}

    def moved(self, steps=1):
        """Each part's largest movement in some steps."""
        before = self.weights()
        self.learner.fit(self.inputs, epochs=steps, batch_size=6, shuffle=False, verbose=0)
        after = self.weights()
        return {
            part: max(np.abs(new - old).max() for new, old in zip(after[part], before[part], strict=True))
            for part in before
        }


@pytest.mark.parametrize("text_encoder", ["bag", "recurrent"])
def test_without_settings_it_is_adam_number_by_number(text_encoder):
    ours = World(text_encoder=text_encoder, compiled=True)
    plain = World(keras.optimizers.Adam(RATE), text_encoder=text_encoder, compiled=True)
    assert min(ours.moved(4).values()) > 0
    plain.moved(4)
    for got, expected in zip(ours.model.get_weights(), plain.model.get_weights(), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_frozen_encoder_does_not_move_while_all_others_do(encoder):
    moved = World(learning_rates={encoder: 0.0}, weight_decay=0.1).moved(5)
    assert moved.pop(encoder) == 0
    assert min(moved.values()) > 0


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_factors_scale_the_first_steps_of_their_encoders_only(factor):
    """Beside plain Adam, whose first step depends on the gradients of this step alone."""
    plain = World().moved()
    moved = World(learning_rates={"brand": factor, "numeric": factor}).moved()
    expected = {part: step * (factor if part in ("brand", "numeric") else 1) for part, step in plain.items()}
    assert moved == pytest.approx(expected, rel=1e-3)
    assert min(expected.values()) > 0


@pytest.mark.parametrize(("text_encoder", "of_text"), [("bag", 4.0), ("convolutional", 1.0), ("recurrent", 1.0)])
def test_features_learn_faster_than_ids_and_read_text_does_not(text_encoder, of_text):
    plain = World(text_encoder=text_encoder).moved()
    moved = World(text_encoder=text_encoder, feature_rate=4.0).moved()
    factors = {"brand": 4.0, "numeric": 4.0, "title": of_text}
    assert moved == pytest.approx({part: step * factors.get(part, 1.0) for part, step in plain.items()}, rel=1e-3)


@pytest.mark.parametrize(("touched", "rate"), [(5.0, 10.0), (15.0, 8.0), (60.0, 2.0), (500.0, 1.0)])
def test_features_lead_where_little_is_known_of_items(touched, rate):
    assert feature_rate_factor(120.0, touched) == rate
    assert feature_rate_factor(0.0, touched) == 1.0


def test_a_rate_of_its_own_takes_the_place_of_that_of_features():
    plain = World().moved()
    moved = World(feature_rate=4.0, learning_rates={"brand": 0.5, "id": 2.0}).moved()
    factors = {"brand": 0.5, "id": 2.0, "numeric": 4.0, "title": 4.0}
    assert moved == pytest.approx({part: step * factors.get(part, 1.0) for part, step in plain.items()}, rel=1e-3)


def test_a_frozen_encoder_learns_once_it_is_thawed():
    world = World(learning_rates={"title": 0.0, "brand": 0.5}, thaw_after=1, compiled=True)
    assert world.moved(5)["title"] == 0
    world.optimizer.thaw()
    step = world.moved()["title"]
    assert RATE / 20 < step < 2 * RATE  # its moments are up to date: no first step out of proportion


def test_unknown_encoders_are_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"tower: id, brand, title, numeric\. Received: color, idd\."):
        World(learning_rates={"idd": 1.0, "color": 0.5, "id": 0.1})


def test_weight_decay_is_that_of_adamw_and_spares_biases():
    plain = keras.optimizers.AdamW(RATE, weight_decay=0.2)
    plain.exclude_from_weight_decay(var_names=["bias"])
    theirs, ours = World(plain, fusion="concatenation"), World(weight_decay=0.2, fusion="concatenation")
    undecayed = World(fusion="concatenation")
    for world in (theirs, ours, undecayed):
        world.moved()
    variables = ours.model.trainable_weights
    assert {variable.name for variable in variables} >= {"bias", "kernel", "embeddings"}
    for variable, expected, free in zip(
        variables, theirs.model.trainable_weights, undecayed.model.trainable_weights, strict=True
    ):
        np.testing.assert_allclose(variable.numpy(), expected.numpy(), atol=1e-7)
        assert np.array_equal(variable.numpy(), free.numpy()) == (variable.name == "bias")


def test_a_factor_scales_the_decay_too():
    """Row 0 of the ids has no gradient here: nothing but decay moves it."""
    world = World(learning_rates={"id": 0.5}, weight_decay=0.2, fusion="sum")
    before = world.weights()["id"][0][0].copy()
    world.moved()
    np.testing.assert_allclose(world.weights()["id"][0][0], before * (1 - RATE * 0.5 * 0.2), rtol=1e-6)


def test_a_schedule_takes_the_place_of_the_rate():
    world = World(learning_rates={"brand": 0.5})
    schedule = keras.optimizers.schedules.PolynomialDecay(RATE / 4, 2, end_learning_rate=0.0)
    learner = build_optimizer(TrainConfig(learning_rates={"brand": 0.5}), world.model, world.features, schedule)
    world.compile(learner)
    plain, moved = World().moved(), world.moved()
    assert moved["brand"] == pytest.approx(plain["brand"] / 8, rel=1e-3)
    assert moved["id"] == pytest.approx(plain["id"] / 4, rel=1e-3)
    world.moved()
    assert max(world.moved().values()) == 0
