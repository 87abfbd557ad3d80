import math

import polars as pl
import pytest

from recsys.config.sections import ItemsConfig
from recsys.features.tfidf import tfidf_matrix

FRAME = pl.DataFrame(
    {
        "item_id": list("abcde"),
        "title": ["The Red fox", "red  RED, the end", None, "", "fox_1 été"],
        "brand": ["red", "blue", None, "red", "red"],
        "tags": [["x", "y"], ["y"], [], None, ["red", "y"]],
    },
    schema_overrides={"tags": pl.List(pl.String)},
)


def naive(held):
    """Rows of {attribute: weight} of rows of sets."""
    items = len(held)
    every = {attribute for own in held for attribute in own}
    weight = {attribute: math.log(items / sum(attribute in own for own in held)) for attribute in every}
    return [{attribute: weight[attribute] for attribute in own if weight[attribute]} for own in held]


def dots(rows):
    """Products of all rows: what is independent of the order of the attributes."""
    return [[sum(one[key] * other.get(key, 0) for key in one) for other in rows] for one in rows]


BRANDS = [{"red"}, {"blue"}, set(), {"red"}, {"red"}]
TAGS = [{"x", "y"}, {"y"}, set(), set(), {"red", "y"}]
WORDS = [{"the", "red", "fox"}, {"red", "the", "end"}, set(), set(), {"fox_1", "été"}]


def named(column, held):
    return [{(column, value) for value in own} for own in held]


@pytest.mark.parametrize(
    ("items", "held"),
    [
        ({"categorical": ["brand"]}, [named("brand", BRANDS)]),
        ({"multi_categorical": ["tags"]}, [named("tags", TAGS)]),
        ({"title": "title", "text": ["title"]}, [named("title", WORDS)]),
        (
            {"title": "name", "text": ["name"], "categorical": ["brand"], "multi_categorical": ["tags"]},
            [named("brand", BRANDS), named("tags", TAGS), named("name", WORDS)],
        ),
    ],
    ids=["categorical", "multi-categorical", "title", "all"],
)
def test_rare_attributes_weigh_more(items, held):
    """The same value in two columns is two attributes; the catalog calls the title `title`."""
    matrix = tfidf_matrix(FRAME, ItemsConfig.model_validate(items))
    rows = naive([set().union(*own) for own in zip(*held, strict=True)])
    assert matrix.shape == (5, len({attribute for row in rows for attribute in row}))
    assert [len(row) for row in rows] == (matrix.toarray() > 0).sum(axis=1).tolist()
    products = (matrix @ matrix.T).toarray().tolist()
    assert products == [pytest.approx(row) for row in dots(rows)]


def test_attribute_of_all_items_has_weight_zero():
    frame = pl.DataFrame({"item_id": ["a", "b"], "title": [None, None], "shop": ["s", "s"], "tags": [["x"], ["y"]]})
    matrix = tfidf_matrix(frame, ItemsConfig(categorical=("shop",), multi_categorical=("tags",)))
    assert (matrix.toarray() > 0).sum(axis=1).tolist() == [1, 1]
    assert tfidf_matrix(frame, ItemsConfig(categorical=("shop",))) is None


def test_no_attributes_give_no_bags():
    assert tfidf_matrix(FRAME, ItemsConfig()) is None
    nothing = FRAME.with_columns(brand=pl.lit(None, pl.String))
    assert tfidf_matrix(nothing, ItemsConfig(categorical=("brand",))) is None
