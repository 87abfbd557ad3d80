import keras
import numpy as np
import polars as pl
import pytest
import tensorflow as tf
from keras import ops

from recsys.config.sections import ItemsConfig, TowerConfig, TrainConfig
from recsys.errors import ConfigError
from recsys.features.encoding import Features
from recsys.model import tower
from recsys.model.optimizer import EncoderAdam, build_optimizer, feature_rate_factor
from recsys.model.tables import EmbeddingTable

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


class DenseAdam(keras.optimizers.Adam):
    """Adam on gradients of whole tables; Keras does not sum the squares of a row that is read twice correctly."""

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(tf.convert_to_tensor(gradient), variable, learning_rate)


class Learner(keras.Model):
    """Model whose loss pulls all embeddings to fixed points."""

    def __init__(self, model):
        super().__init__()
        self.tower = model
        self.points = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)

    def call(self, inputs, training=False):
        return self.tower(inputs, training=training)

    def compute_loss(self, x, y, y_pred, *_):  # noqa: ARG002 - Keras's signature
        return ops.mean(ops.square(y_pred - self.points))


class World:
    """A small tower, its inputs, and its weights."""

    def __init__(
        self, keras_optimizer=None, *, text_encoder="bag", fusion="gating", traced=False, feature_rate=1.0, **options
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
        self.traced = traced
        self.compile(self.optimizer)

    def compile(self, learner):
        self.learner.compile(optimizer=learner, jit_compile=False, run_eagerly=not self.traced)

    def weights(self):
        """Return the weights by encoder, or by layer for layers outside the encoders."""
        names = tower.encoder_names(self.features)
        return {names.get(layer.name, layer.name): layer.get_weights() for layer in self.model.layers if layer.weights}

    def moved(self, steps=1):
        """Return the largest change of a weight of each part after some steps."""
        before = self.weights()
        self.learner.fit(self.inputs, epochs=steps, batch_size=6, shuffle=False, verbose=0)
        after = self.weights()
        return {
            part: max(np.abs(new - old).max() for new, old in zip(after[part], before[part], strict=True))
            for part in before
        }


@pytest.mark.slow
@pytest.mark.parametrize("text_encoder", ["bag", "recurrent"])
def test_default_settings_agree_with_adam_if_all_rows_are_read(text_encoder):
    built = World(text_encoder=text_encoder, traced=True)
    plain = World(DenseAdam(RATE), text_encoder=text_encoder, traced=True)
    assert min(built.moved(4).values()) > 0
    plain.moved(4)
    for actual, expected in zip(built.model.get_weights(), plain.model.get_weights(), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ENCODERS)
def test_only_a_frozen_encoder_does_not_change(encoder):
    moved = World(learning_rates={encoder: 0.0}, weight_decay=0.1).moved(5)
    assert moved.pop(encoder) == 0
    assert min(moved.values()) > 0


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_factors_scale_the_first_step_of_their_encoders_only(factor):
    """Compared with plain Adam, whose first step depends on the current gradients only."""
    plain = World().moved()
    moved = World(learning_rates={"brand": factor, "numeric": factor}).moved()
    expected = {part: step * (factor if part in ("brand", "numeric") else 1) for part, step in plain.items()}
    assert moved == pytest.approx(expected, rel=1e-3)
    assert min(expected.values()) > 0


@pytest.mark.slow
@pytest.mark.parametrize(("text_encoder", "text_factor"), [("bag", 4.0), ("convolutional", 1.0), ("recurrent", 1.0)])
def test_feature_rate_applies_to_features_except_convolutional_and_recurrent_text(text_encoder, text_factor):
    plain = World(text_encoder=text_encoder).moved()
    moved = World(text_encoder=text_encoder, feature_rate=4.0).moved()
    factors = {"brand": 4.0, "numeric": 4.0, "title": text_factor}
    assert moved == pytest.approx({part: step * factors.get(part, 1.0) for part, step in plain.items()}, rel=1e-3)


@pytest.mark.parametrize(("interactions", "rate"), [(5.0, 10.0), (15.0, 8.0), (60.0, 2.0), (500.0, 1.0)])
def test_feature_rate_factor_falls_with_interactions_per_item(interactions, rate):
    assert feature_rate_factor(120.0, interactions) == rate
    assert feature_rate_factor(0.0, interactions) == 1.0


def test_learning_rate_of_an_encoder_replaces_the_feature_rate():
    plain = World().moved()
    moved = World(feature_rate=4.0, learning_rates={"brand": 0.5, "id": 2.0}).moved()
    factors = {"brand": 0.5, "id": 2.0, "numeric": 4.0, "title": 4.0}
    assert moved == pytest.approx({part: step * factors.get(part, 1.0) for part, step in plain.items()}, rel=1e-3)


@pytest.mark.slow
def test_frozen_encoder_learns_after_it_is_thawed():
    world = World(learning_rates={"title": 0.0, "brand": 0.5}, thaw_after=1, traced=True)
    assert world.moved(5)["title"] == 0
    world.optimizer.thaw()
    step = world.moved()["title"]
    assert RATE / 20 < step < 2 * RATE  # Adam's moments are up to date, so the step has a normal size


def test_rejects_unknown_encoders():
    with pytest.raises(ConfigError, match=r"tower: id, brand, title, numeric\. Received: color, idd\."):
        World(learning_rates={"idd": 1.0, "color": 0.5, "id": 0.1})


def test_weight_decay_agrees_with_adamw_and_excludes_biases():
    plain = keras.optimizers.AdamW(RATE, weight_decay=0.2)
    plain.exclude_from_weight_decay(var_names=["bias"])
    adamw, built = World(plain, fusion="concatenation"), World(weight_decay=0.2, fusion="concatenation")
    undecayed = World(fusion="concatenation")
    for world in (adamw, built, undecayed):
        world.moved()
    variables = built.model.trainable_weights
    assert {variable.name for variable in variables} >= {"bias", "kernel", "embeddings"}
    for variable, expected, without_decay in zip(
        variables, adamw.model.trainable_weights, undecayed.model.trainable_weights, strict=True
    ):
        known = slice(1 if variable.name == "embeddings" else 0, None)  # row 0 of a table is not read
        np.testing.assert_allclose(variable.numpy()[known], expected.numpy()[known], atol=1e-7)
        assert np.array_equal(variable.numpy(), without_decay.numpy()) == (variable.name == "bias")


def test_factor_also_scales_the_weight_decay():
    """The decay of a step is in proportion to the weights before it."""
    worlds = [World(learning_rates={"id": 0.5}, weight_decay=decay, fusion="sum") for decay in (0.0, 0.2)]
    before = worlds[0].weights()["id"][0][1:]
    for world in worlds:
        world.moved()
    without_decay, with_decay = (world.weights()["id"][0][1:] for world in worlds)
    np.testing.assert_allclose(without_decay - with_decay, before * (RATE * 0.5 * 0.2), atol=1e-8)


def test_schedule_replaces_the_learning_rate():
    world = World(learning_rates={"brand": 0.5})
    schedule = keras.optimizers.schedules.PolynomialDecay(RATE / 4, 2, end_learning_rate=0.0)
    learner = build_optimizer(TrainConfig(learning_rates={"brand": 0.5}), world.model, world.features, schedule)
    world.compile(learner)
    plain, moved = World().moved(), world.moved()
    assert moved["brand"] == pytest.approx(plain["brand"] / 8, rel=1e-3)
    assert moved["id"] == pytest.approx(plain["id"] / 4, rel=1e-3)
    world.moved()
    assert max(world.moved().values()) == 0


class Lookup(keras.Model):
    """Pulls the rows of a table that a batch reads towards points; a row can be read more than once."""

    def __init__(self, size):
        super().__init__()
        self.table = EmbeddingTable(size, 3)
        self.table.build(None)

    def call(self, rows, training=False):  # noqa: ARG002 - Keras's signature
        return self.table(rows)

    def compute_loss(self, x, y, y_pred, *_):  # noqa: ARG002 - Keras's signature
        return ops.sum(ops.square(y_pred - ops.cast(x, "float32")[:, None]))


def naive_adam(table, batches, rate, decay):
    """Adam on the rows of each batch, one row at a time."""
    table = table.astype(np.float64)
    moments = {row: (np.zeros(3), np.zeros(3)) for row in range(len(table))}
    for step, batch in enumerate(batches, 1):
        for row in set(batch):
            gradient = batch.count(row) * 2 * (table[row] - row)
            m, v = (0.9 * moments[row][0] + 0.1 * gradient, 0.999 * moments[row][1] + 0.001 * gradient**2)
            moments[row] = m, v
            step_size = m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.999**step)) + 1e-7 / np.sqrt(1 - 0.999**step))
            table[row] -= rate * step_size + rate * decay * table[row]
    return table


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_a_step_changes_only_the_rows_that_its_batch_reads(decay):
    """Compared with Adam on single rows; row 2 is read twice by a batch, and not at all by the next one."""
    batches = [[1, 2, 2, 4], [4, 1], [2, 4, 5]]
    model, optimizer = Lookup(7), EncoderAdam(RATE, decay=decay)
    model.compile(optimizer=optimizer, jit_compile=False)
    before = model.table.embeddings.numpy()
    for batch in batches:
        model.train_on_batch(np.array(batch, np.int32))
    after = model.table.embeddings.numpy()
    np.testing.assert_allclose(after, naive_adam(before, batches, RATE, decay), atol=1e-6)
    np.testing.assert_array_equal(after[[0, 3, 6]], before[[0, 3, 6]])
    assert (after[[1, 2, 4, 5]] != before[[1, 2, 4, 5]]).all()
