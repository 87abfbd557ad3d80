import itertools
import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.config.sections import ItemsConfig, TowerConfig
from recsys.features import tokenization as text
from recsys.features.encoding import MAX_TOKENS, Features
from tests import GOLDEN_RELEASES

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
COUNTS = np.array([3, 0, 1, 2])
TOWER = TowerConfig()


@pytest.fixture
def features():
    return Features.fit(items(*FITTED), ROLES, TOWER, COUNTS)


def test_inputs_are_dense_arrays_with_a_row_per_item(features):
    inputs = features.transform(items(*FITTED))
    assert list(inputs) == features.input_names == ["id", "tokens_0", "tokens_1", "tokens_2", "numeric"]
    assert [inputs[name].shape for name in inputs] == [(4,), (4,), (4,), (4, 2), (4, 4)]
    assert [inputs[name].dtype for name in inputs] == [np.int32] * 4 + [np.float32]


def test_id_rows_start_at_one_and_untrained_items_are_zero(features):
    inputs = features.transform(items(*FITTED, ("zz", *FITTED[0][1:])))
    assert inputs["id"].tolist() == [1, 0, 2, 3, 0]


def test_category_indices_start_at_one_and_unknown_values_are_zero(features):
    inputs = features.transform(items(*FITTED, ("e", "never", "old", None, None, None)))
    assert inputs["tokens_0"].tolist() == [1, 2, 0, 1, 0]
    assert inputs["tokens_1"].tolist() == [1, 0, 2, 1, 2]


def test_bag_indices_start_at_two_with_zero_for_padding_and_one_for_empty(features):
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
def test_unknown_token_is_used_only_without_known_tokens(features, tags, known):
    bag = features.transform(items(("n", None, None, tags, None, None), FITTED[0]))["tokens_2"][0]
    assert set(bag.tolist()) - {0} == known
    assert len(bag[bag != 0]) == len(known)


def test_bag_width_is_the_longest_up_to_the_limit():
    many = [f"t{number:03}" for number in range(MAX_TOKENS + 9)]
    roles = ItemsConfig(multi_categorical=("tags",))
    table = pl.DataFrame({"item_id": ["a", "b"], "tags": [many, ["t001"]]})
    features = Features.fit(table, roles, TOWER, np.ones(2, int))
    bags = features.transform(table)["tokens_0"]
    assert bags.shape == (2, MAX_TOKENS)
    assert len(set(bags[0].tolist())) == MAX_TOKENS
    assert features.transform(table.tail(1))["tokens_0"].shape == (1, 1)


def test_numbers_are_standardized_and_missing_values_flagged(features):
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


def test_new_items_are_scaled_by_the_fitted_statistics(features):
    numeric = features.transform(items(("n", None, None, None, 4.0, 2000.0 + np.sqrt(200 / 3))))["numeric"]
    np.testing.assert_allclose(numeric, [[0, 1, 0, 0]], atol=1e-6)


@pytest.mark.parametrize("values", [[5.0, 5.0, 5.0], [None, None, None]], ids=["constant", "all missing"])
def test_constant_or_empty_column_is_finite(values):
    table = pl.DataFrame({"item_id": ["a", "b", "c"], "price": pl.Series(values, dtype=pl.Float64)})
    features = Features.fit(table, ItemsConfig(numeric=("price",)), TOWER, np.ones(3, int))
    numeric = features.transform(table)["numeric"]
    assert numeric[:, 0].tolist() == [0, 0, 0]
    new = features.transform(pl.DataFrame({"item_id": ["n"], "price": [6.0]}))["numeric"]
    assert np.isfinite(new).all()


@pytest.mark.parametrize(("value", "count"), [(0.1, 3), (0.3, 10), (1.1, 100)], ids=str)
def test_rounded_constant_does_not_scale_up_new_items(value, count):
    """A new item one above the constant must not be 10 ** 16 deviations away."""
    table = pl.DataFrame({"item_id": [str(row) for row in range(count)], "price": [value] * count})
    features = Features.fit(table, ItemsConfig(numeric=("price",)), TOWER, np.ones(count, int))
    numeric = features.transform(pl.DataFrame({"item_id": ["n"], "price": [value + 1]}))["numeric"]
    assert abs(numeric[0, 0]) < 1e3


def test_no_numeric_input_without_numeric_columns():
    table = items(*FITTED)
    features = Features.fit(table, ItemsConfig(categorical=("brand",)), TOWER, COUNTS)
    assert list(features.transform(table)) == features.input_names == ["id", "tokens_0"]


def test_embedding_tables_cover_every_index(features):
    inputs = features.transform(items(*FITTED))
    for position, feature in enumerate(features.tokens):
        assert inputs[f"tokens_{position}"].max() == feature.size - 1


def test_inputs_of_a_subset_equal_those_of_the_catalog(features):
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


def test_no_items_give_empty_inputs(features):
    for name, array in features.transform(items(*FITTED).head(0)).items():
        assert len(array) == 0, name


def test_save_and_load(features, tmp_path):
    features.save(tmp_path / "features.json")
    loaded = Features.load(tmp_path / "features.json")
    assert loaded == features
    for name, array in loaded.transform(items(*FITTED)).items():
        np.testing.assert_array_equal(array, features.transform(items(*FITTED))[name])


# --- rare ids


def of_counts(counts, hash_buckets, **options):
    table = pl.DataFrame({"item_id": [f"i{number}" for number in range(len(counts))]})
    return table, Features.fit(table, ItemsConfig(), TowerConfig(**options), np.array(counts), hash_buckets)


def test_rare_ids_share_buckets_and_new_ids_are_zero():
    table, features = of_counts([3, 0, 1, 2, 9], min_count=3, hash_buckets=4)
    own, rare = features.item_ids, features.rare_ids
    assert (own, rare, features.num_id_rows) == (["i0", "i4"], ["i2", "i3"], 7)
    index = features.transform(table.vstack(pl.DataFrame({"item_id": ["never"]})))["id"]
    assert index[[0, 1, 4, 5]].tolist() == [1, 0, 2, 0]
    assert set(index[[2, 3]].tolist()) <= {3, 4, 5, 6}


def test_buckets_are_stable_and_used():
    """Fixed values: a bucket that moved would give an item another item's embedding."""
    table, features = of_counts([1] * 200, min_count=2, hash_buckets=8)
    index = features.transform(table)["id"]
    assert [features.hash_bucket_row(item_id) for item_id in ("i0", "i1", "é", "")] == [1, 1, 4, 5]
    assert index.tolist() == [features.hash_bucket_row(item_id) for item_id in table["item_id"]]
    assert set(index.tolist()) == set(range(1, 9))


def test_no_buckets_without_a_minimum_count():
    _, features = of_counts([1, 0, 5], min_count=1, hash_buckets=4)
    assert (features.item_ids, features.rare_ids, features.num_id_rows) == (["i0", "i2"], [], 3)


# --- text

TITLES = ["Red wine glass", "red wine", "GLASS", "blue wine", None, "wines", "", "the red, red wine"]
TEXT_ROLES = ItemsConfig(title="title", text=("title",))


def titled(titles):
    return pl.DataFrame(
        {"item_id": [str(row) for row in range(len(titles))], "title": pl.Series(titles, dtype=pl.String)}
    )


def of_titles(titles, text_encoder):
    table = titled(titles)
    config = TowerConfig(text_encoder=text_encoder)
    return Features.fit(table, TEXT_ROLES, config, np.ones(len(titles), int))


def test_bag_of_text_has_known_tokens_with_words_first():
    features = of_titles(TITLES, "bag")
    (feature,) = features.tokens
    bags = features.transform(titled(TITLES))["tokens_0"]
    assert bags.dtype == np.int32
    for title, bag in zip(TITLES, bags.tolist(), strict=True):
        words = (title or "").lower().replace(",", "").split()
        pairs = [" ".join(pair) for pair in itertools.pairwise(words)]
        grams = [
            "~" + f"<{word}>"[start : start + length]
            for length in (5, 4, 3)
            for word in words
            if len(word) + 2 > length
            for start in range(len(word) + 3 - length)
        ]
        expected = [token for token in (*words, *pairs, *grams) if token in feature.vocabulary]
        got = [token for token in bag if token]
        assert got == ([feature.vocabulary.index(token) + 2 for token in expected] or [1])
        assert not any(bag[len(got) :])


def test_sequences_keep_the_order_of_words():
    """Vocabulary: glass 2, red 3, wine 4."""
    features = of_titles(TITLES, "recurrent")
    words = features.transform(titled([*TITLES, "wine of old red"]))["tokens_0"]
    assert words.shape == (9, text.MAX_WORDS)
    kept = [[3, 4, 2], [3, 4], [2], [1, 4], [1], [1], [1], [1, 3, 3, 4], [4, 1, 1, 3]]
    assert words[:, :4].tolist() == [row + [0] * (4 - len(row)) for row in kept]
    assert not words[:, 4:].any()


def test_bag_of_a_long_text_keeps_its_words():
    long = " ".join(f"word{number}" for number in range(text.MAX_WORDS))
    features = of_titles([long, long], "bag")
    (feature,) = features.tokens
    bag = features.transform(titled([long]))["tokens_0"][0]
    assert len(bag) == MAX_TOKENS
    kept = {feature.vocabulary[index - 2] for index in bag}
    assert set(long.split()) < kept
    assert {len(token) for token in kept if token.startswith("~")} <= {6}  # "~" and the longest n-grams


def test_chunks_do_not_change_texts(monkeypatch):
    features = of_titles(TITLES, "bag")
    whole = features.transform(titled(TITLES))["tokens_0"]
    monkeypatch.setattr("recsys.features.encoding.TEXT_CHUNK", 3)
    np.testing.assert_array_equal(features.transform(titled(TITLES))["tokens_0"], whole)


# --- files


def test_features_of_release_format_1_load():
    golden = GOLDEN_RELEASES / "v1"
    features = Features.load(golden / "features.json")
    catalog = pl.read_parquet(golden / "catalogue.parquet")
    assert (features.rare_ids, features.hash_buckets, features.num_id_rows) == ([], 0, len(features.item_ids) + 1)
    assert [feature.text_encoder for feature in features.tokens] == [None]
    inputs = features.transform(catalog)
    assert inputs["id"].tolist() == [
        features.item_ids.index(item_id) + 1 if item_id in features.item_ids else 0 for item_id in catalog["item_id"]
    ]


any_text = st.text(st.characters(codec="utf-8"), max_size=12)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(any_text, st.none() | any_text, st.integers(0, 4)), min_size=1, max_size=8),
    st.sampled_from(["bag", "convolutional", "recurrent"]),
    st.integers(1, 3),
)
def test_save_and_load_return_equal_features(tmp_path_factory, rows, text_encoder, min_count):
    table = pl.DataFrame(
        {
            "item_id": [f"{item_id}{row}" for row, (item_id, _, _) in enumerate(rows)],
            "title": pl.Series([title for _, title, _ in rows], dtype=pl.String),
        }
    )
    config = TowerConfig(text_encoder=text_encoder, min_count=min_count)
    features = Features.fit(table, TEXT_ROLES, config, np.array([count for _, _, count in rows]), hash_buckets=3)
    path = tmp_path_factory.mktemp("saved") / "features.json"
    features.save(path)
    assert json.loads(path.read_text(encoding="utf-8"))["hash_buckets"] == features.hash_buckets
    loaded = Features.load(path)
    assert loaded == features
    for name, array in loaded.transform(table).items():
        np.testing.assert_array_equal(array, features.transform(table)[name])
        assert array.max() < {"id": features.num_id_rows, "tokens_0": features.tokens[0].size}[name]


@pytest.mark.parametrize("count", [0, 1, 40])
def test_id_rows_do_not_depend_on_the_order_of_ids(count):
    ids = [f"i{number}" for number in np.random.default_rng(3).permutation(count)]
    queried_ids = [f"i{number}" for number in range(50)] + ["", "zzz", None]
    indices = Features(ids, [], []).id_rows(pl.Series(queried_ids, dtype=pl.String))
    assert indices.tolist() == [ids.index(item_id) + 1 if item_id in ids else 0 for item_id in queried_ids]
