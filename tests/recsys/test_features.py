import numpy as np
import polars as pl
import pytest

from recsys.config import ItemsConfig
from recsys.features import MAX_TOKENS, Features

ROLES = ItemsConfig(categorical=("brand", "kind of"), multi_categorical=("tags",), numeric=("price", "year"))
SCHEMA = {
    "item_id": pl.String,
    "brand": pl.String,
    "kind of": pl.String,
    "tags": pl.List(pl.String),
    "price": pl.Float64,
    "year": pl.Float64,
}


def items(*rows):
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


FITTED = (
    ("a", "acme", "new", ["red", "blue"], 1.0, 1990.0),
    ("b", "bolt", None, None, 3.0, None),
    ("c", None, "old", None, None, 2000.0),
    ("d", "acme", "new", ["green"], 8.0, 2010.0),
)
SEEN = np.array([True, False, True, True])


@pytest.fixture
def features():
    return Features.fit(items(*FITTED), ROLES, SEEN)


def test_inputs_are_dense_arrays_with_a_row_an_item(features):
    inputs = features.transform(items(*FITTED))
    assert list(inputs) == features.input_names == ["id", "tokens_0", "tokens_1", "tokens_2", "numeric"]
    assert [inputs[name].shape for name in inputs] == [(4,), (4,), (4,), (4, 2), (4, 4)]
    assert [inputs[name].dtype for name in inputs] == [np.int32] * 4 + [np.float32]


def test_ids_count_from_one_and_items_that_training_did_not_see_are_zero(features):
    inputs = features.transform(items(*FITTED, ("zz", *FITTED[0][1:])))
    assert inputs["id"].tolist() == [1, 0, 2, 3, 0]


def test_categories_count_from_one_in_order_and_missing_or_unseen_ones_are_zero(features):
    inputs = features.transform(items(*FITTED, ("e", "never", "old", None, None, None)))
    assert inputs["tokens_0"].tolist() == [1, 2, 0, 1, 0]
    assert inputs["tokens_1"].tolist() == [1, 0, 2, 1, 2]


def test_bags_count_from_two_are_padded_with_zero_and_one_stands_for_none(features):
    """Vocabulary: blue 2, green 3, red 4."""
    bags = features.transform(items(*FITTED))["tokens_2"]
    assert [sorted(bag) for bag in bags.tolist()] == [[2, 4], [0, 1], [0, 1], [0, 3]]


@pytest.mark.parametrize(
    ("tags", "known"),
    [
        (["never"], {1}),
        (["never", "nor this"], {1}),
        (["never", "red"], {4}),
        (["red", "never", "green", "nor this"], {3, 4}),
        ([], {1}),
        (None, {1}),
    ],
    ids=str,
)
def test_an_unseen_token_counts_only_where_no_token_is_known(features, tags, known):
    bag = features.transform(items(("n", None, None, tags, None, None), FITTED[0]))["tokens_2"][0]
    assert set(bag.tolist()) - {0} == known
    assert len(bag[bag != 0]) == len(known)


def test_a_bag_is_as_wide_as_its_longest_and_never_wider_than_the_cap():
    many = [f"t{number:03}" for number in range(MAX_TOKENS + 9)]
    roles = ItemsConfig(multi_categorical=("tags",))
    table = pl.DataFrame({"item_id": ["a", "b"], "tags": [many, ["t001"]]})
    features = Features.fit(table, roles, np.ones(2, bool))
    bags = features.transform(table)["tokens_0"]
    assert bags.shape == (2, MAX_TOKENS)
    assert len(set(bags[0].tolist())) == MAX_TOKENS
    assert features.transform(table.tail(1))["tokens_0"].shape == (1, 1)


def test_numbers_are_standardised_over_the_known_values_and_missing_ones_flagged(features):
    numeric = features.transform(items(*FITTED))["numeric"]
    price, year = np.array([1.0, 3.0, 8.0]), np.array([1990.0, 2000.0, 2010.0])
    scaled_price = (price - 4) / np.sqrt((9 + 1 + 16) / 3)
    scaled_year = (year - 2000) / np.sqrt(200 / 3)
    expected = [
        [scaled_price[0], scaled_year[0], 0, 0],
        [scaled_price[1], 0, 0, 1],
        [0, scaled_year[1], 1, 0],
        [scaled_price[2], scaled_year[2], 0, 0],
    ]
    np.testing.assert_allclose(numeric, expected, atol=1e-6)


def test_new_items_are_scaled_like_the_fitted_ones(features):
    numeric = features.transform(items(("n", None, None, None, 4.0, 2000.0 + np.sqrt(200 / 3))))["numeric"]
    np.testing.assert_allclose(numeric, [[0, 1, 0, 0]], atol=1e-6)


@pytest.mark.parametrize("values", [[5.0, 5.0, 5.0], [None, None, None]], ids=["constant", "all missing"])
def test_a_column_that_says_nothing_stays_finite(values):
    table = pl.DataFrame({"item_id": ["a", "b", "c"], "price": pl.Series(values, dtype=pl.Float64)})
    features = Features.fit(table, ItemsConfig(numeric=("price",)), np.ones(3, bool))
    numeric = features.transform(table)["numeric"]
    assert numeric[:, 0].tolist() == [0, 0, 0]
    new = features.transform(pl.DataFrame({"item_id": ["n"], "price": [6.0]}))["numeric"]
    assert np.isfinite(new).all()


@pytest.mark.parametrize(("value", "count"), [(0.1, 3), (0.3, 10), (1.1, 100)], ids=str)
def test_a_constant_that_rounds_does_not_blow_up_new_items(value, count):
    """A new item one above the constant must not be 10 ** 16 deviations away."""
    table = pl.DataFrame({"item_id": [str(row) for row in range(count)], "price": [value] * count})
    features = Features.fit(table, ItemsConfig(numeric=("price",)), np.ones(count, bool))
    numeric = features.transform(pl.DataFrame({"item_id": ["n"], "price": [value + 1]}))["numeric"]
    assert abs(numeric[0, 0]) < 1e3


def test_without_numeric_columns_there_is_no_numeric_input():
    table = items(*FITTED)
    features = Features.fit(table, ItemsConfig(categorical=("brand",)), SEEN)
    assert list(features.transform(table)) == features.input_names == ["id", "tokens_0"]


def test_the_rows_of_an_embedding_table_cover_every_index(features):
    inputs = features.transform(items(*FITTED))
    for position, feature in enumerate(features.tokens):
        assert inputs[f"tokens_{position}"].max() == feature.size - 1


def test_a_part_of_the_items_has_the_same_inputs_as_within_the_whole(features):
    whole = features.transform(items(*FITTED))
    for start, stop in ((0, 1), (1, 3), (3, 4)):
        part = features.transform(items(*FITTED[start:stop]))
        for name, array in part.items():
            if name == "tokens_2":  # as wide as the longest of the part
                assert [set(bag) - {0} for bag in array.tolist()] == [
                    set(bag) - {0} for bag in whole[name][start:stop].tolist()
                ]
            else:
                np.testing.assert_array_equal(array, whole[name][start:stop])


def test_no_items_have_empty_inputs(features):
    for name, array in features.transform(items(*FITTED).head(0)).items():
        assert len(array) == 0, name


def test_survives_being_saved(features, tmp_path):
    features.save(tmp_path / "features.json")
    loaded = Features.load(tmp_path / "features.json")
    assert loaded == features
    for name, array in loaded.transform(items(*FITTED)).items():
        np.testing.assert_array_equal(array, features.transform(items(*FITTED))[name])
