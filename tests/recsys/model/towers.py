"""Small catalogs and the towers that tests build for them."""

import numpy as np
import polars as pl

from recsys.config.sections import ItemsConfig, TowerConfig
from recsys.features.encoding import Features
from recsys.model import tower

ROLES = ItemsConfig(categorical=("brand",), multi_categorical=("tags",), numeric=("price",))
TEXT_ROLES = ROLES.model_copy(update={"text": ("name",)})
DIMENSION = 6


def make_items(*rows):
    schema = {"item_id": pl.String, "brand": pl.String, "tags": pl.List(pl.String), "price": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


ITEMS = make_items(
    ("a", "acme", ["red", "blue", "wide"], 1.0),
    ("b", "bolt", ["red"], None),
    ("c", None, None, 3.0),
    ("d", "acme", ["blue", "red"], 9.0),
    ("e", "core", ["wide"], 2.5),
)
NAMED_ITEMS = ITEMS.with_columns(name=pl.Series(["red wine", "wine of old", None, "old red wine", "unheard"]))


def make_tower(fusion, text_encoder, distance="cosine", *, frame=NAMED_ITEMS, seed=1, **options):
    """Features and a tower; the first item has no pairs, the second shares a bucket, the others have their own ids."""
    config = TowerConfig(
        dimension=DIMENSION, fusion=fusion, text_encoder=text_encoder, distance=distance, min_count=2
    ).model_copy(update=options)
    features = Features.fit(frame, TEXT_ROLES, config, np.arange(frame.height), hash_buckets=3)
    return features, tower.build(features, config, seed)


def embed(model, inputs, batch_size=100):
    return tower.make_encoder(model, batch_size)(inputs)


def table_of(layer_name, model):
    """The first weight of a layer."""
    return model.get_layer(layer_name).get_weights()[0]
