import keras
import numpy as np
import polars as pl
import pytest

from recsys import tower
from recsys.config import ItemsConfig, TowerConfig
from recsys.errors import InputError
from recsys.features import Features

ROLES = ItemsConfig(categorical=("brand",), multi_categorical=("tags",), numeric=("price",))
DIMENSION = 6


def items(*rows):
    schema = {"item_id": pl.String, "brand": pl.String, "tags": pl.List(pl.String), "price": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


KNOWN = items(
    ("a", "acme", ["red", "blue", "wide"], 1.0),
    ("b", "bolt", ["red"], None),
    ("c", None, None, 3.0),
    ("d", "acme", ["blue", "red"], 9.0),
    ("e", "core", ["wide"], 2.5),
)


@pytest.fixture
def features():
    return Features.fit(KNOWN, ROLES, np.ones(5, bool))


def built(features, seed=1, **options):
    return tower.build(features, TowerConfig(**{"dimension": DIMENSION} | options), seed)


def embed(model, inputs, batch_size=100):
    return tower.encoder(model, batch_size)(inputs)


def naive(model, inputs):
    """The sum of each feature's own encoding, one item at a time, normalised; for towers without hidden layers."""
    ids = model.get_layer("id_embedding").get_weights()[0]
    (brands,) = (
        layer.get_weights()[0]
        for layer in model.layers
        if isinstance(layer, keras.layers.Embedding) and layer.name != "id_embedding"
    )
    (tags,) = (layer.get_weights()[0] for layer in model.layers if isinstance(layer, tower.MeanOfBag))
    ((kernel, bias),) = (layer.get_weights() for layer in model.layers if isinstance(layer, keras.layers.Dense))
    vectors = []
    for row in range(len(inputs["id"])):
        vector = ids[inputs["id"][row]] + brands[inputs["tokens_0"][row]]
        bag = [tags[token] for token in inputs["tokens_1"][row] if token != 0]
        vector = vector + sum(bag) / len(bag)
        vector = vector + inputs["numeric"][row] @ kernel + bias
        vectors.append(vector / np.sqrt((vector**2).sum()))
    return np.array(vectors)


def test_an_embedding_is_the_normalised_sum_of_the_features(features):
    model, inputs = built(features), features.transform(KNOWN)
    np.testing.assert_allclose(embed(model, inputs), naive(model, inputs), atol=1e-6)


@pytest.mark.parametrize("hidden", [(), (7,), (9, 4)], ids=str)
def test_embeddings_are_float32_of_unit_length(features, hidden):
    vectors = embed(built(features, hidden=hidden, dropout=0.3), features.transform(KNOWN))
    assert vectors.shape == (5, DIMENSION)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_a_tower_of_ids_alone_needs_no_other_input():
    features = Features.fit(KNOWN, ItemsConfig(), np.ones(5, bool))
    model = built(features)
    vectors = embed(model, features.transform(KNOWN))
    table = model.get_layer("id_embedding").get_weights()[0]
    assert table.shape == (6, DIMENSION)
    np.testing.assert_allclose(vectors, table[1:] / np.linalg.norm(table[1:], axis=1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 64], ids="size {}".format)
def test_the_batch_size_changes_nothing(features, batch_size):
    model, inputs = built(features, hidden=(7,)), features.transform(KNOWN)
    np.testing.assert_allclose(embed(model, inputs, batch_size), embed(model, inputs), atol=1e-6)


def test_wider_padding_changes_nothing(features):
    model, inputs = built(features), features.transform(KNOWN)
    wider = inputs | {"tokens_1": np.pad(inputs["tokens_1"], ((0, 0), (0, 4)))}
    np.testing.assert_allclose(embed(model, wider), embed(model, inputs), atol=1e-6)


def test_no_items_have_no_embeddings(features):
    assert embed(built(features), features.transform(KNOWN.head(0))).shape == (0, DIMENSION)


def test_a_seed_repeats_the_initial_weights(features):
    inputs = features.transform(KNOWN)
    one = embed(built(features, seed=5), inputs)
    np.testing.assert_array_equal(one, embed(built(features, seed=5), inputs))
    assert not np.allclose(one, embed(built(features, seed=6), inputs))


# --- unknown items


def test_items_that_training_did_not_see_are_embedded_by_their_features(features):
    new = items(
        ("n1", "acme", ["red"], 3.0),
        ("n2", "acme", ["red"], 3.0),
        ("n3", "bolt", ["red"], 3.0),
        ("n4", "acme", ["wide"], 3.0),
        ("n5", "acme", ["red"], 30.0),
    )
    vectors = embed(built(features), features.transform(new))
    np.testing.assert_array_equal(vectors[0], vectors[1])
    for row in (2, 3, 4):
        assert np.abs(vectors[0] - vectors[row]).max() > 1e-3
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


# --- dropping ids


def test_id_dropout_hides_its_share_of_the_ids_during_training():
    layer, ids = tower.IdDropout(0.3, seed=2), np.arange(1, 10_001, dtype=np.int32)
    hidden = np.asarray(layer(ids, training=True))
    assert set(np.unique(hidden[hidden != ids])) == {0}
    assert (hidden == 0).mean() == pytest.approx(0.3, abs=0.02)
    assert not np.array_equal(hidden, np.asarray(layer(ids, training=True)))


@pytest.mark.parametrize(("rate", "training"), [(0.9, False), (0.0, True)], ids=["looking up", "rate 0"])
def test_id_dropout_leaves_ids_alone(rate, training):
    ids = np.arange(7, dtype=np.int32)
    np.testing.assert_array_equal(np.asarray(tower.IdDropout(rate)(ids, training=training)), ids)


def test_a_tower_drops_ids_in_training_only(features):
    model, inputs = built(features, id_dropout=0.9), features.transform(KNOWN)
    unknown = inputs | {"id": np.zeros(5, np.int32)}
    np.testing.assert_allclose(embed(model, inputs), naive(model, inputs), atol=1e-6)
    trained = np.concatenate([np.asarray(model(inputs, training=True)) for _ in range(20)])
    as_known = np.isclose(trained, np.tile(naive(model, inputs), (20, 1)), atol=1e-5).all(axis=1)
    as_unknown = np.isclose(trained, np.tile(naive(model, unknown), (20, 1)), atol=1e-5).all(axis=1)
    assert (as_known ^ as_unknown).all()
    assert as_unknown.mean() == pytest.approx(0.9, abs=0.12)


# --- mean of a bag


def test_the_mean_of_a_bag_leaves_padding_out():
    layer = tower.MeanOfBag(5, 2)
    bags = np.array([[2, 0, 0], [4, 2, 3], [0, 0, 0], [3, 3, 0]], np.int32)
    means = np.asarray(layer(bags))
    table = layer.get_weights()[0]
    expected = [table[2], (table[4] + table[2] + table[3]) / 3, [0, 0], table[3]]
    np.testing.assert_allclose(means, expected, atol=1e-6)


# --- files


@pytest.mark.parametrize("hidden", [(), (7, 4)], ids=str)
def test_survives_being_saved_exactly(features, tmp_path, hidden):
    model, inputs = built(features, hidden=hidden, dropout=0.2, id_dropout=0.4), features.transform(KNOWN)
    model.save(tmp_path / "tower.keras")
    loaded = tower.load(tmp_path / "tower.keras")
    np.testing.assert_array_equal(embed(loaded, inputs), embed(model, inputs))
    (dropout,) = (layer for layer in loaded.layers if isinstance(layer, tower.IdDropout))
    assert dropout.rate == 0.4


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"absent\.keras"):
        tower.load(tmp_path / "absent.keras")


def test_a_file_that_is_no_tower_is_refused(tmp_path):
    (tmp_path / "tower.keras").write_bytes(b"no tower")
    with pytest.raises(InputError, match=r"tower\.keras"):
        tower.load(tmp_path / "tower.keras")


def test_a_truncated_file_is_refused(features, tmp_path):
    built(features).save(tmp_path / "tower.keras")
    content = (tmp_path / "tower.keras").read_bytes()
    (tmp_path / "cut.keras").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"cut\.keras"):
        tower.load(tmp_path / "cut.keras")


def test_a_damaged_file_is_refused(features, tmp_path):
    """As long as before, but with other bytes in its middle."""
    built(features).save(tmp_path / "tower.keras")
    content = bytearray((tmp_path / "tower.keras").read_bytes())
    start = content.index(b"config.json") + 40
    content[start : start + 60] = bytes(60)
    (tmp_path / "damaged.keras").write_bytes(content)
    with pytest.raises(InputError, match=r"damaged\.keras"):
        tower.load(tmp_path / "damaged.keras")


def test_a_file_with_code_of_its_own_is_refused(tmp_path):
    inputs = keras.Input((3,))
    keras.Model(inputs, keras.layers.Lambda(lambda x: x + 1)(inputs)).save(tmp_path / "lambda.keras")
    with pytest.raises(InputError, match=r"lambda\.keras"):
        tower.load(tmp_path / "lambda.keras")
