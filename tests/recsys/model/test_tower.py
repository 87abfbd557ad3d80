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
from tests import GOLDEN_RELEASES

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
    return Features.fit(KNOWN, ROLES, TowerConfig(), np.ones(5, int))


def built(features, seed=1, **options):
    return tower.build(features, TowerConfig(**{"dimension": DIMENSION} | options), seed)


def embed(model, inputs, batch_size=100):
    return tower.encoder(model, batch_size)(inputs)


def naive(model, inputs):
    """The sum of each feature's own encoding, one item at a time, normalized; for towers without hidden layers."""
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


def test_an_embedding_is_the_normalized_sum_of_the_features(features):
    model, inputs = built(features), features.transform(KNOWN)
    np.testing.assert_allclose(embed(model, inputs), naive(model, inputs), atol=1e-6)


@pytest.mark.parametrize("hidden", [(), (7,), (9, 4)], ids=str)
def test_embeddings_are_float32_of_unit_length(features, hidden):
    vectors = embed(built(features, hidden=hidden, dropout=0.3), features.transform(KNOWN))
    assert vectors.shape == (5, DIMENSION)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_a_tower_of_ids_alone_needs_no_other_input():
    features = Features.fit(KNOWN, ItemsConfig(), TowerConfig(), np.ones(5, int))
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


def test_a_tower_drops_ids_in_training_only(features):
    model, inputs = built(features, id_dropout=0.9), features.transform(KNOWN)
    unknown = inputs | {"id": np.zeros(5, np.int32)}
    np.testing.assert_allclose(embed(model, inputs), naive(model, inputs), atol=1e-6)
    trained = np.concatenate([np.asarray(model(inputs, training=True)) for _ in range(20)])
    as_known = np.isclose(trained, np.tile(naive(model, inputs), (20, 1)), atol=1e-5).all(axis=1)
    as_unknown = np.isclose(trained, np.tile(naive(model, unknown), (20, 1)), atol=1e-5).all(axis=1)
    assert (as_known ^ as_unknown).all()
    assert as_unknown.mean() == pytest.approx(0.9, abs=0.12)


# --- text, fusion and distance

TEXT_ROLES = ItemsConfig(categorical=("brand",), multi_categorical=("tags",), numeric=("price",), text=("name",))
NAMED = KNOWN.with_columns(name=pl.Series(["red wine", "wine of old", None, "old red wine", "unheard"]))
SHAPES = list(
    itertools.product(
        ("sum", "concatenation", "gating"), ("bag", "convolutional", "recurrent"), ("cosine", "euclidean", "manhattan")
    )
)


def shaped(fusion, text_encoder, distance="cosine", *, frame=NAMED, seed=1, **options):
    config = TowerConfig(
        dimension=DIMENSION, fusion=fusion, text_encoder=text_encoder, distance=distance, min_count=2, hash_buckets=3
    ).model_copy(update=options)
    features = Features.fit(frame, TEXT_ROLES, config, np.arange(frame.height))
    return features, tower.build(features, config, seed)


@pytest.mark.parametrize(("fusion", "text_encoder", "distance"), SHAPES, ids=str)
def test_every_shape_survives_being_saved_exactly(tmp_path, fusion, text_encoder, distance):
    features, model = shaped(fusion, text_encoder, distance)
    inputs = features.transform(NAMED)
    vectors = embed(model, inputs)
    model.save(tmp_path / "tower.keras")
    loaded = tower.load(tmp_path / "tower.keras")
    np.testing.assert_array_equal(embed(loaded, inputs), vectors)
    assert tower.distance(loaded) == distance
    assert len(np.unique(vectors, axis=0)) == len(NAMED)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5) == (distance == "cosine")


def encoded_apart(model, features, inputs):
    """What each encoder gives, in the order of the tower."""
    layers = [model.get_layer(name) for name in tower.encoder_names(features)]
    return [np.asarray(layer(inputs[name])) for layer, name in zip(layers, features.input_names, strict=True)]


def test_concatenation_is_one_product_over_all_encoders():
    features, model = shaped("concatenation", "bag", "euclidean")
    inputs = features.transform(NAMED)
    kernel, bias = model.get_layer(tower.FUSION).get_weights()
    assert kernel.shape == (5 * DIMENSION, DIMENSION)
    expected = np.hstack(encoded_apart(model, features, inputs)) @ kernel + bias
    np.testing.assert_allclose(embed(model, inputs), expected, atol=1e-5)


@pytest.mark.parametrize("fusion", ["sum", "gating"])
def test_a_sum_adds_the_encoders_and_gating_begins_so(fusion):
    features, model = shaped(fusion, "recurrent", "manhattan")
    inputs = features.transform(NAMED)
    np.testing.assert_allclose(embed(model, inputs), sum(encoded_apart(model, features, inputs)), atol=1e-5)


def test_encoders_have_the_names_of_the_config():
    features, model = shaped("sum", "bag")
    names = tower.encoder_names(features)
    assert list(names.values()) == ["id", "brand", "tags", "name", "numeric"]
    assert {layer.name for layer in model.layers if layer.weights} == set(names)


# --- new items


NEWCOMERS = items(("x", "acme", ["red"], 4.0), ("y", None, None, None)).with_columns(name=pl.Series(["old wine", None]))
BOTH = pl.concat([NAMED, NEWCOMERS]).sample(fraction=1, shuffle=True, seed=4)


@pytest.mark.parametrize(("fusion", "text_encoder", "distance"), SHAPES, ids=str)
def test_items_with_an_id_go_through_one_tower_and_new_ones_through_the_other(tmp_path, fusion, text_encoder, distance):
    """Also after it was saved. `a` has no pair, so it is as new as `x` and `y`; `b` shares a bucket, and is not."""
    features, known = shaped(fusion, text_encoder, distance, hidden=(7,))
    config = TowerConfig(
        dimension=DIMENSION, fusion=fusion, text_encoder=text_encoder, distance=distance, hidden=(7,), min_count=2
    )
    new = tower.build(features, config, 5, ids=False)
    inputs = features.transform(BOTH)
    of_known, of_new = embed(known, inputs), embed(new, inputs)
    assert not np.isclose(of_known, of_new, atol=1e-3).all(axis=1).any()
    is_new = BOTH["item_id"].is_in(["a", "x", "y"]).to_numpy()
    expected = np.where(is_new[:, None], of_new, of_known)
    model = tower.joined(known, new)
    np.testing.assert_allclose(embed(model, inputs), expected, atol=1e-6)
    assert tower.distance(model) == distance
    model.save(tmp_path / "tower.keras")
    loaded = tower.load(tmp_path / "tower.keras")
    np.testing.assert_array_equal(embed(loaded, inputs), embed(model, inputs))
    assert tower.distance(loaded) == distance


def test_a_tower_for_new_items_begins_as_the_sum_of_the_known_ones_features():
    features, known = shaped("sum", "convolutional", "manhattan")
    config = TowerConfig(dimension=DIMENSION, text_encoder="convolutional", distance="manhattan")
    new = tower.of_features(known, features, config, 5)
    inputs = features.transform(NAMED)
    assert "id" not in new.input
    np.testing.assert_allclose(embed(new, inputs), sum(encoded_apart(known, features, inputs)[1:]), atol=1e-5)


def test_what_weighs_the_id_too_begins_anew_for_new_items():
    features, known = shaped("concatenation", "bag", hidden=(7,))
    config = TowerConfig(dimension=DIMENSION, fusion="concatenation", hidden=(7,))
    new = tower.of_features(known, features, config, 5)
    assert new.get_layer(tower.FUSION).get_weights()[0].shape == (4 * DIMENSION, DIMENSION)
    for layer in ("tokens_1_encoder", "numeric_encoder", "hidden_0"):
        np.testing.assert_array_equal(rows_of(layer, new), rows_of(layer, known))


@pytest.mark.parametrize("fusion", ["sum", "concatenation"])
def test_for_new_items_a_layer_of_all_features_is_added_to_them(fusion):
    features, _ = shaped("sum", "bag")
    config = TowerConfig(dimension=DIMENSION, fusion=fusion, distance="manhattan")
    new = tower.build(features, config, 5, ids=False)
    inputs = features.transform(BOTH)
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


def test_items_whose_id_is_known_are_the_sum_of_their_features_and_nothing_else():
    _, known = shaped("sum", "bag")
    assert not {"cross", "cross_hidden"} & {layer.name for layer in known.layers}


# --- warm start

EARLIER = NAMED
LATER = items(
    ("b", "bolt", ["red"], 4.0),
    ("d", "acme", ["blue", "never"], 9.0),
    ("e", "newcomer", ["wide"], 2.5),
    ("z", "acme", ["red"], 1.0),
).with_columns(name=pl.Series(["wine of old", "old red wine", None, "old wine of old"]))


def rows_of(layer_name, model):
    return model.get_layer(layer_name).get_weights()[0]


@pytest.mark.parametrize("text_encoder", ["bag", "convolutional", "recurrent"])
@pytest.mark.parametrize("fusion", ["sum", "concatenation", "gating"])
def test_the_same_vocabulary_starts_as_the_earlier_tower(fusion, text_encoder):
    features, earlier = shaped(fusion, text_encoder, hidden=(7,))
    _, model = shaped(fusion, text_encoder, hidden=(7,), seed=2)
    inputs = features.transform(NAMED)
    assert not np.allclose(embed(model, inputs), embed(earlier, inputs), atol=1e-3)
    report = tower.warm_start(model, features, earlier, features)
    np.testing.assert_array_equal(embed(model, inputs), embed(earlier, inputs))
    assert {part: figures["new"] for part, figures in report.items()} == dict.fromkeys(report, 0)
    behind = {"hidden"} if fusion == "sum" else {"fusion", "hidden"}
    assert set(report) == {"id", "brand", "tags", "name", "numeric"} | behind


def test_a_tower_that_has_encoders_for_new_items_starts_another_by_those_of_known_ones():
    features, earlier = shaped("concatenation", "bag", hidden=(7,))
    config = TowerConfig(dimension=DIMENSION, fusion="concatenation", hidden=(7,))
    whole = tower.joined(earlier, tower.build(features, config, 5, ids=False))
    _, model = shaped("concatenation", "bag", hidden=(7,), seed=2)
    inputs = features.transform(NAMED)
    report = tower.warm_start(model, features, whole, features)
    np.testing.assert_array_equal(embed(model, inputs), embed(earlier, inputs))
    assert {figures["new"] for figures in report.values()} == {0}


def test_rows_of_known_ids_and_tokens_are_copied_and_new_ones_start_at_zero():
    """Pairs: a 0, b 1 (in a bucket), c to e of their own; later b 0, d 1 (in a bucket), e and z of their own."""
    features, earlier = shaped("sum", "bag")
    new_features, model = shaped("sum", "bag", frame=LATER)
    report = tower.warm_start(model, new_features, earlier, features)
    old_ids, new_ids = rows_of("id_embedding", earlier), rows_of("id_embedding", model)
    np.testing.assert_array_equal(new_ids[1], old_ids[features.item_ids.index("e") + 1])
    np.testing.assert_array_equal(new_ids[0], old_ids[0])
    np.testing.assert_array_equal(new_ids[-3:], old_ids[-3:])
    assert not new_ids[2].any()
    assert report["id"] == {"copied": 5, "new": 1}
    for position, reserved in ((0, 1), (1, 2), (2, 2)):
        layer = f"tokens_{position}_encoder"
        old, new = rows_of(layer, earlier), rows_of(layer, model)
        before, after = features.tokens[position].vocabulary, new_features.tokens[position].vocabulary
        np.testing.assert_array_equal(new[:reserved], old[:reserved])
        for row, token in enumerate(after, start=reserved):
            expected = old[before.index(token) + reserved] if token in before else np.zeros(DIMENSION)
            np.testing.assert_array_equal(new[row], expected)
        unknown = len(set(after) - set(before))
        assert report[features.tokens[position].column] == {"copied": len(new) - unknown, "new": unknown}
    assert report["brand"]["new"] == report["tags"]["new"] == 1


def test_an_id_that_has_left_its_bucket_starts_from_it():
    features, earlier = shaped("sum", "bag")
    config = TowerConfig(dimension=DIMENSION)
    new_features = Features.fit(NAMED, TEXT_ROLES, config, np.ones(5, int))
    model = tower.build(new_features, config, 2)
    tower.warm_start(model, new_features, earlier, features)
    row = new_features.item_ids.index("b") + 1
    np.testing.assert_array_equal(
        rows_of("id_embedding", model)[row], rows_of("id_embedding", earlier)[features.hash_bucket_row("b")]
    )


def test_a_new_column_leaves_a_sum_as_it_was():
    config = TowerConfig(dimension=DIMENSION)
    features = Features.fit(NAMED, ROLES, config, np.ones(5, int))
    earlier = tower.build(features, config, 1)
    wider = TEXT_ROLES.model_copy(update={"numeric": ("size", "price")})
    table = NAMED.with_columns(size=pl.Series([1.0, 2.0, None, 4.0, 5.0]))
    new_features = Features.fit(table, wider, config, np.ones(5, int))
    model = tower.build(new_features, config, 2)
    report = tower.warm_start(model, new_features, earlier, features)
    before, after = embed(earlier, features.transform(table)), embed(model, new_features.transform(table))
    np.testing.assert_allclose(after, before, atol=1e-6)
    assert report["name"]["copied"] == 0
    assert report["numeric"] == {"copied": 2, "new": 2}


def test_fusion_of_other_encoders_starts_anew():
    features, earlier = shaped("concatenation", "bag")
    fewer = TEXT_ROLES.model_copy(update={"text": ()})
    config = TowerConfig(dimension=DIMENSION, fusion="concatenation")
    new_features = Features.fit(NAMED, fewer, config, np.ones(5, int))
    model = tower.build(new_features, config, 2)
    fresh = [array.copy() for array in model.get_layer(tower.FUSION).get_weights()]
    report = tower.warm_start(model, new_features, earlier, features)
    assert report["fusion"] == {"copied": 0, "new": 2}
    np.testing.assert_array_equal(model.get_layer(tower.FUSION).get_weights()[0], fresh[0])


@pytest.mark.parametrize(
    ("options", "received"),
    [({"dimension": 4}, "4 dimensions, cosine"), ({"distance": "manhattan"}, "6 dimensions, manhattan")],
    ids=str,
)
def test_an_earlier_tower_of_another_shape_is_refused(options, received):
    features, model = shaped("sum", "bag")
    earlier_features, earlier = shaped("sum", "bag", **options)
    with pytest.raises(InputError, match=rf"of the config: 6 dimensions, cosine\. Received: {received}"):
        tower.warm_start(model, features, earlier, earlier_features)


GOLDEN = GOLDEN_RELEASES / "v1"


def test_a_tower_of_format_1_still_embeds_and_starts_a_new_one():
    features, earlier = Features.load(GOLDEN / "features.json"), tower.load(GOLDEN / "tower.keras")
    inputs = features.transform(pl.read_parquet(GOLDEN / "catalogue.parquet"))
    vectors = embed(earlier, inputs)
    np.testing.assert_allclose(vectors, np.load(GOLDEN / "embeddings.npy"), atol=1e-6)
    model = tower.build(features, TowerConfig(dimension=vectors.shape[1]), 3)
    tower.warm_start(model, features, earlier, features)
    np.testing.assert_allclose(embed(model, inputs), vectors, atol=1e-6)


# --- files


@pytest.mark.parametrize("hidden", [(), (7, 4)], ids=str)
def test_survives_being_saved_exactly(features, tmp_path, hidden):
    model, inputs = built(features, hidden=hidden, dropout=0.2, id_dropout=0.4), features.transform(KNOWN)
    model.save(tmp_path / "tower.keras")
    loaded = tower.load(tmp_path / "tower.keras")
    np.testing.assert_array_equal(embed(loaded, inputs), embed(model, inputs))
    (dropout,) = (layer for layer in loaded.layers if isinstance(layer, IdDropout))
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
