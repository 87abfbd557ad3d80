import itertools

import keras
import numpy as np
import polars as pl
import pytest

from recsys.config.sections import ItemsConfig, TowerConfig
from recsys.errors import InputError
from recsys.features.encoding import Features
from recsys.model import tower
from recsys.model.layers import IdDropout, MeanOfBag
from tests.recsys.model.towers import DIMENSION, ITEMS, NAMED_ITEMS, ROLES, embed, make_items, make_tower, table_of


@pytest.fixture
def features():
    return Features.fit(ITEMS, ROLES, TowerConfig(), np.ones(5, int))


def built(features, seed=1, **options):
    return tower.build(features, TowerConfig(**{"dimension": DIMENSION} | options), seed)


def naive(model, inputs):
    """Normalized sum of the encoded features, item by item; for towers without hidden layers."""
    ids = model.get_layer("id_embedding").get_weights()[0]
    (brands,) = (
        layer.get_weights()[0]
        for layer in model.layers
        if isinstance(layer, keras.layers.Embedding) and layer.name != "id_embedding"
    )
    (tags,) = (layer.get_weights()[0] for layer in model.layers if isinstance(layer, MeanOfBag))
    ((kernel, bias),) = (layer.get_weights() for layer in model.layers if isinstance(layer, keras.layers.Dense))
    vectors = []
    for row in range(len(inputs["id"])):
        vector = ids[inputs["id"][row]] + brands[inputs["tokens_0"][row]]
        bag = [tags[token] for token in inputs["tokens_1"][row] if token != 0]
        vector = vector + sum(bag) / len(bag)
        vector = vector + inputs["numeric"][row] @ kernel + bias
        vectors.append(vector / np.sqrt((vector**2).sum()))
    return np.array(vectors)


def test_embedding_is_the_normalized_sum_of_the_encoded_features(features):
    model, inputs = built(features), features.transform(ITEMS)
    np.testing.assert_allclose(embed(model, inputs), naive(model, inputs), atol=1e-6)


@pytest.mark.parametrize("hidden", [(), (7,), (9, 4)], ids=str)
def test_embeddings_are_float32_of_unit_length(features, hidden):
    vectors = embed(built(features, hidden=hidden, dropout=0.3), features.transform(ITEMS))
    assert vectors.shape == (5, DIMENSION)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_tower_without_features_reads_ids_only():
    features = Features.fit(ITEMS, ItemsConfig(), TowerConfig(), np.ones(5, int))
    model = built(features)
    vectors = embed(model, features.transform(ITEMS))
    table = model.get_layer("id_embedding").get_weights()[0]
    assert table.shape == (6, DIMENSION)
    np.testing.assert_allclose(vectors, table[1:] / np.linalg.norm(table[1:], axis=1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 64], ids="size {}".format)
def test_batch_size_does_not_change_embeddings(features, batch_size):
    model, inputs = built(features, hidden=(7,)), features.transform(ITEMS)
    np.testing.assert_allclose(embed(model, inputs, batch_size), embed(model, inputs), atol=1e-6)


def test_wider_padding_does_not_change_embeddings(features):
    model, inputs = built(features), features.transform(ITEMS)
    wider = inputs | {"tokens_1": np.pad(inputs["tokens_1"], ((0, 0), (0, 4)))}
    np.testing.assert_allclose(embed(model, wider), embed(model, inputs), atol=1e-6)


def test_no_items_give_an_empty_matrix(features):
    assert embed(built(features), features.transform(ITEMS.head(0))).shape == (0, DIMENSION)


def test_same_seed_gives_the_same_initial_weights(features):
    inputs = features.transform(ITEMS)
    one = embed(built(features, seed=5), inputs)
    np.testing.assert_array_equal(one, embed(built(features, seed=5), inputs))
    assert not np.allclose(one, embed(built(features, seed=6), inputs))


# --- unknown items


def test_items_with_unknown_ids_are_embedded_by_their_features(features):
    new = make_items(
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


def test_ids_are_dropped_in_training_only(features):
    model, inputs = built(features, id_dropout=0.9), features.transform(ITEMS)
    unknown = inputs | {"id": np.zeros(5, np.int32)}
    np.testing.assert_allclose(embed(model, inputs), naive(model, inputs), atol=1e-6)
    trained = np.concatenate([np.asarray(model(inputs, training=True)) for _ in range(20)])
    as_known = np.isclose(trained, np.tile(naive(model, inputs), (20, 1)), atol=1e-5).all(axis=1)
    as_unknown = np.isclose(trained, np.tile(naive(model, unknown), (20, 1)), atol=1e-5).all(axis=1)
    assert (as_known ^ as_unknown).all()
    assert as_unknown.mean() == pytest.approx(0.9, abs=0.12)


# --- text, fusion and distance

FUSIONS, TEXT_ENCODERS = ("sum", "concatenation", "gating"), ("bag", "convolutional", "recurrent")
DISTANCE_NAMES = ("cosine", "euclidean", "manhattan")
SHAPES = [
    # three quick ones have every fusion, text encoder and distance
    pytest.param(FUSIONS[i], TEXT_ENCODERS[j], DISTANCE_NAMES[(i + j) % 3], marks=[] if i == j else pytest.mark.slow)
    for i, j in itertools.product(range(3), repeat=2)
]
"""Every combination of two of the three settings."""


@pytest.mark.parametrize(("fusion", "text_encoder", "distance"), SHAPES, ids=str)
def test_saved_tower_of_every_shape_gives_the_same_embeddings(tmp_path, fusion, text_encoder, distance):
    features, model = make_tower(fusion, text_encoder, distance)
    inputs = features.transform(NAMED_ITEMS)
    vectors = embed(model, inputs)
    model.save(tmp_path / "tower.keras")
    loaded = tower.load(tmp_path / "tower.keras")
    np.testing.assert_array_equal(embed(loaded, inputs), vectors)
    assert tower.distance(loaded) == distance
    assert len(np.unique(vectors, axis=0)) == len(NAMED_ITEMS)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5) == (distance == "cosine")


def encode_features(model, features, inputs):
    """Output of each encoder, in the order of the tower."""
    layers = [model.get_layer(name) for name in tower.encoder_names(features)]
    return [np.asarray(layer(inputs[name])) for layer, name in zip(layers, features.input_names, strict=True)]


def test_concatenation_is_a_dense_layer_over_all_encoded_features():
    features, model = make_tower("concatenation", "bag", "euclidean")
    inputs = features.transform(NAMED_ITEMS)
    kernel, bias = model.get_layer(tower.FUSION).get_weights()
    assert kernel.shape == (5 * DIMENSION, DIMENSION)
    expected = np.hstack(encode_features(model, features, inputs)) @ kernel + bias
    np.testing.assert_allclose(embed(model, inputs), expected, atol=1e-5)


@pytest.mark.parametrize("fusion", ["sum", "gating"])
def test_sum_and_untrained_gating_add_the_encoded_features(fusion):
    features, model = make_tower(fusion, "recurrent", "manhattan")
    inputs = features.transform(NAMED_ITEMS)
    np.testing.assert_allclose(embed(model, inputs), sum(encode_features(model, features, inputs)), atol=1e-5)


def test_encoders_have_the_names_of_their_columns():
    features, model = make_tower("sum", "bag")
    names = tower.encoder_names(features)
    assert list(names.values()) == ["id", "brand", "tags", "name", "numeric"]
    assert {layer.name for layer in model.layers if layer.weights} == set(names)


# --- new items


NEW_ITEMS = make_items(("x", "acme", ["red"], 4.0), ("y", None, None, None)).with_columns(
    name=pl.Series(["old wine", None])
)
ALL_ITEMS = pl.concat([NAMED_ITEMS, NEW_ITEMS]).sample(fraction=1, shuffle=True, seed=4)


@pytest.mark.parametrize(("fusion", "text_encoder", "distance"), SHAPES, ids=str)
def test_combined_tower_selects_the_tower_by_id(tmp_path, fusion, text_encoder, distance):
    """Also after saving. `a` has no pairs, so it is new like `x` and `y`; `b` shares a bucket, so it is known."""
    features, known = make_tower(fusion, text_encoder, distance, hidden=(7,))
    config = TowerConfig(
        dimension=DIMENSION, fusion=fusion, text_encoder=text_encoder, distance=distance, hidden=(7,), min_count=2
    )
    new = tower.build_without_ids(features, config, 5)
    inputs = features.transform(ALL_ITEMS)
    of_known, of_new = embed(known, inputs), embed(new, inputs)
    assert not np.isclose(of_known, of_new, atol=1e-3).all(axis=1).any()
    is_new = ALL_ITEMS["item_id"].is_in(["a", "x", "y"]).to_numpy()
    expected = np.where(is_new[:, None], of_new, of_known)
    model = tower.combine(known, new)
    np.testing.assert_allclose(embed(model, inputs), expected, atol=1e-6)
    assert tower.distance(model) == distance
    model.save(tmp_path / "tower.keras")
    loaded = tower.load(tmp_path / "tower.keras")
    np.testing.assert_array_equal(embed(loaded, inputs), embed(model, inputs))
    assert tower.distance(loaded) == distance


def test_untrained_tower_for_new_items_sums_the_features_encoded_by_the_known_tower():
    features, known = make_tower("sum", "convolutional", "manhattan")
    config = TowerConfig(dimension=DIMENSION, text_encoder="convolutional", distance="manhattan")
    new = tower.build_for_new_items(known, features, config, 5)
    inputs = features.transform(NAMED_ITEMS)
    assert "id" not in new.input
    np.testing.assert_allclose(embed(new, inputs), sum(encode_features(known, features, inputs)[1:]), atol=1e-5)


def test_fusion_layer_that_includes_the_id_is_not_copied_to_the_tower_for_new_items():
    features, known = make_tower("concatenation", "bag", hidden=(7,))
    config = TowerConfig(dimension=DIMENSION, fusion="concatenation", hidden=(7,))
    new = tower.build_for_new_items(known, features, config, 5)
    assert new.get_layer(tower.FUSION).get_weights()[0].shape == (4 * DIMENSION, DIMENSION)
    for layer in ("tokens_1_encoder", "numeric_encoder", "hidden_0"):
        np.testing.assert_array_equal(table_of(layer, new), table_of(layer, known))


@pytest.mark.parametrize("fusion", ["sum", "concatenation"])
def test_tower_for_new_items_adds_a_residual_block_over_the_fused_features(fusion):
    features, _ = make_tower("sum", "bag")
    config = TowerConfig(dimension=DIMENSION, fusion=fusion, distance="manhattan")
    new = tower.build_without_ids(features, config, 5)
    inputs = features.transform(ALL_ITEMS)
    fused = embed(new, inputs)
    rng = np.random.default_rng(3)
    together, crossed = (new.get_layer(name) for name in ("cross_hidden", "cross"))
    assert together.units == 2 * DIMENSION
    kernel, bias = (rng.normal(size=weight.shape) for weight in together.get_weights())
    (back,) = (rng.normal(size=weight.shape) for weight in crossed.get_weights())
    together.set_weights([kernel, bias])
    crossed.set_weights([back])
    expected = [row + np.where(row @ kernel + bias > 0, row @ kernel + bias, 0) @ back for row in fused.astype(float)]
    np.testing.assert_allclose(embed(new, inputs), expected, rtol=1e-4, atol=1e-5)


def test_tower_of_known_items_has_no_residual_block():
    _, known = make_tower("sum", "bag")
    assert not {"cross", "cross_hidden"} & {layer.name for layer in known.layers}


# --- files


@pytest.mark.parametrize("hidden", [(), (7, 4)], ids=str)
def test_saved_tower_with_hidden_layers_gives_the_same_embeddings(features, tmp_path, hidden):
    model, inputs = built(features, hidden=hidden, dropout=0.2, id_dropout=0.4), features.transform(ITEMS)
    model.save(tmp_path / "tower.keras")
    loaded = tower.load(tmp_path / "tower.keras")
    np.testing.assert_array_equal(embed(loaded, inputs), embed(model, inputs))
    (dropout,) = (layer for layer in loaded.layers if isinstance(layer, IdDropout))
    assert dropout.rate == 0.4


def test_rejects_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"absent\.keras"):
        tower.load(tmp_path / "absent.keras")


def test_rejects_a_file_that_is_not_a_keras_model(tmp_path):
    (tmp_path / "tower.keras").write_bytes(b"no tower")
    with pytest.raises(InputError, match=r"tower\.keras"):
        tower.load(tmp_path / "tower.keras")


def test_rejects_a_truncated_file(features, tmp_path):
    built(features).save(tmp_path / "tower.keras")
    content = (tmp_path / "tower.keras").read_bytes()
    (tmp_path / "cut.keras").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"cut\.keras"):
        tower.load(tmp_path / "cut.keras")


def test_rejects_a_damaged_file(features, tmp_path):
    """Of the same length, with other bytes in the middle."""
    built(features).save(tmp_path / "tower.keras")
    content = bytearray((tmp_path / "tower.keras").read_bytes())
    start = content.index(b"config.json") + 40
    content[start : start + 60] = bytes(60)
    (tmp_path / "damaged.keras").write_bytes(content)
    with pytest.raises(InputError, match=r"damaged\.keras"):
        tower.load(tmp_path / "damaged.keras")


def test_rejects_a_file_with_a_lambda_layer(tmp_path):
    inputs = keras.Input((3,))
    keras.Model(inputs, keras.layers.Lambda(lambda x: x + 1)(inputs)).save(tmp_path / "lambda.keras")
    with pytest.raises(InputError, match=r"lambda\.keras"):
        tower.load(tmp_path / "lambda.keras")
