import numpy as np
import polars as pl
import pytest

from recsys.config.sections import TowerConfig
from recsys.errors import InputError
from recsys.features.encoding import Features
from recsys.model import tower
from recsys.model.warm_start import require_same_shape, warm_start
from tests import GOLDEN_RELEASES
from tests.recsys.model.towers import (
    DIMENSION,
    NAMED_ITEMS,
    ROLES,
    TEXT_ROLES,
    embed,
    make_items,
    make_tower,
    table_of,
)

LATER = make_items(
    ("b", "bolt", ["red"], 4.0),
    ("d", "acme", ["blue", "never"], 9.0),
    ("e", "newcomer", ["wide"], 2.5),
    ("z", "acme", ["red"], 1.0),
).with_columns(name=pl.Series(["wine of old", "old red wine", None, "old wine of old"]))


@pytest.mark.parametrize(
    ("fusion", "text_encoder"), [("sum", "recurrent"), ("concatenation", "convolutional"), ("gating", "bag")]
)
def test_equal_vocabularies_copy_the_whole_tower(fusion, text_encoder):
    features, earlier = make_tower(fusion, text_encoder, hidden=(7,))
    _, model = make_tower(fusion, text_encoder, hidden=(7,), seed=2)
    inputs = features.transform(NAMED_ITEMS)
    assert not np.allclose(embed(model, inputs), embed(earlier, inputs), atol=1e-3)
    report = warm_start(model, features, earlier, features)
    np.testing.assert_array_equal(embed(model, inputs), embed(earlier, inputs))
    assert {part: figures["new"] for part, figures in report.items()} == dict.fromkeys(report, 0)
    behind = {"hidden"} if fusion == "sum" else {"fusion", "hidden"}
    assert set(report) == {"id", "brand", "tags", "name", "numeric"} | behind


def test_warm_start_from_a_combined_tower_copies_the_tower_of_known_items():
    features, earlier = make_tower("concatenation", "bag", hidden=(7,))
    config = TowerConfig(dimension=DIMENSION, fusion="concatenation", hidden=(7,))
    whole = tower.combine(earlier, tower.build_without_ids(features, config, 5))
    _, model = make_tower("concatenation", "bag", hidden=(7,), seed=2)
    inputs = features.transform(NAMED_ITEMS)
    report = warm_start(model, features, whole, features)
    np.testing.assert_array_equal(embed(model, inputs), embed(earlier, inputs))
    assert {figures["new"] for figures in report.values()} == {0}


def test_rows_of_earlier_ids_and_tokens_are_copied_and_new_rows_are_zero():
    """Earlier, a has no pairs, b is in a bucket, c to e have their own ids; later, b has none, d is in a bucket."""
    features, earlier = make_tower("sum", "bag")
    new_features, model = make_tower("sum", "bag", frame=LATER)
    report = warm_start(model, new_features, earlier, features)
    old_ids, new_ids = table_of("id_embedding", earlier), table_of("id_embedding", model)
    np.testing.assert_array_equal(new_ids[1], old_ids[features.item_ids.index("e") + 1])
    np.testing.assert_array_equal(new_ids[0], old_ids[0])
    np.testing.assert_array_equal(new_ids[-3:], old_ids[-3:])
    assert not new_ids[2].any()
    assert report["id"] == {"copied": 5, "new": 1}
    for position, reserved in ((0, 1), (1, 2), (2, 2)):
        layer = f"tokens_{position}_encoder"
        old, new = table_of(layer, earlier), table_of(layer, model)
        before, after = features.tokens[position].vocabulary, new_features.tokens[position].vocabulary
        np.testing.assert_array_equal(new[:reserved], old[:reserved])
        for row, token in enumerate(after, start=reserved):
            expected = old[before.index(token) + reserved] if token in before else np.zeros(DIMENSION)
            np.testing.assert_array_equal(new[row], expected)
        unknown = len(set(after) - set(before))
        assert report[features.tokens[position].column] == {"copied": len(new) - unknown, "new": unknown}
    assert report["brand"]["new"] == report["tags"]["new"] == 1


def test_id_that_shared_a_bucket_starts_from_the_row_of_the_bucket():
    features, earlier = make_tower("sum", "bag")
    config = TowerConfig(dimension=DIMENSION)
    new_features = Features.fit(NAMED_ITEMS, TEXT_ROLES, config, np.ones(5, int))
    model = tower.build(new_features, config, 2)
    warm_start(model, new_features, earlier, features)
    row = new_features.item_ids.index("b") + 1
    np.testing.assert_array_equal(
        table_of("id_embedding", model)[row], table_of("id_embedding", earlier)[features.hash_bucket_row("b")]
    )


def test_new_column_does_not_change_embeddings_of_summed_features():
    config = TowerConfig(dimension=DIMENSION)
    features = Features.fit(NAMED_ITEMS, ROLES, config, np.ones(5, int))
    earlier = tower.build(features, config, 1)
    wider = TEXT_ROLES.model_copy(update={"numeric": ("size", "price")})
    table = NAMED_ITEMS.with_columns(size=pl.Series([1.0, 2.0, None, 4.0, 5.0]))
    new_features = Features.fit(table, wider, config, np.ones(5, int))
    model = tower.build(new_features, config, 2)
    report = warm_start(model, new_features, earlier, features)
    before, after = embed(earlier, features.transform(table)), embed(model, new_features.transform(table))
    np.testing.assert_allclose(after, before, atol=1e-6)
    assert report["name"]["copied"] == 0
    assert report["numeric"] == {"copied": 2, "new": 2}


def test_fusion_layer_of_other_encoders_is_not_copied():
    features, earlier = make_tower("concatenation", "bag")
    fewer = TEXT_ROLES.model_copy(update={"text": ()})
    config = TowerConfig(dimension=DIMENSION, fusion="concatenation")
    new_features = Features.fit(NAMED_ITEMS, fewer, config, np.ones(5, int))
    model = tower.build(new_features, config, 2)
    fresh = [array.copy() for array in model.get_layer(tower.FUSION).get_weights()]
    report = warm_start(model, new_features, earlier, features)
    assert report["fusion"] == {"copied": 0, "new": 2}
    np.testing.assert_array_equal(model.get_layer(tower.FUSION).get_weights()[0], fresh[0])


@pytest.mark.parametrize(
    ("options", "received"),
    [({"dimension": 4}, "4 dimensions, cosine"), ({"distance": "manhattan"}, "6 dimensions, manhattan")],
    ids=str,
)
def test_rejects_an_earlier_tower_of_another_shape(options, received):
    _, earlier = make_tower("sum", "bag", **options)
    with pytest.raises(InputError, match=rf"of the config: 6 dimensions, cosine\. Received: {received}"):
        require_same_shape(TowerConfig(dimension=DIMENSION), earlier)
    _, same = make_tower("sum", "bag")
    require_same_shape(TowerConfig(dimension=DIMENSION), same)


GOLDEN = GOLDEN_RELEASES / "v1"


def test_tower_of_release_format_1_embeds_and_warm_starts_a_new_tower():
    features, earlier = Features.load(GOLDEN / "features.json"), tower.load(GOLDEN / "tower.keras")
    inputs = features.transform(pl.read_parquet(GOLDEN / "catalogue.parquet"))
    vectors = embed(earlier, inputs)
    np.testing.assert_allclose(vectors, np.load(GOLDEN / "embeddings.npy"), atol=1e-6)
    model = tower.build(features, TowerConfig(dimension=vectors.shape[1]), 3)
    warm_start(model, features, earlier, features)
    np.testing.assert_allclose(embed(model, inputs), vectors, atol=1e-6)
