import numpy as np
import polars as pl
import pytest

from recsys.data.catalog import Catalog
from recsys.errors import UnknownItemError


def catalog(item_ids, titles=None):
    titles = titles or [None] * len(item_ids)
    return Catalog(
        pl.DataFrame(
            {"item_id": item_ids, "title": titles, "interactions": list(range(len(item_ids)))},
            schema={"item_id": pl.String, "title": pl.String, "interactions": pl.Int64},
        )
    )


def test_numbers_items_by_sorted_id_and_keeps_their_rows_together():
    items = catalog(["b", "é", "a", "10", "9"], ["B", None, "A", "ten", "nine"])
    assert list(items.item_ids) == ["10", "9", "a", "b", "é"]
    assert list(items.titles) == ["ten", "nine", "A", "B", None]
    assert items.frame["interactions"].to_list() == [3, 4, 2, 0, 1]


def test_number_is_the_row_of_the_id():
    items = catalog(["b", "c", "a"])
    assert [items.item_number(item_id) for item_id in ("a", "b", "c")] == [0, 1, 2]


def test_unknown_id_is_an_error_that_names_it():
    with pytest.raises(UnknownItemError, match="'zz'"):
        catalog(["a"]).item_number("zz")


def test_numbers_uses_the_default_for_unknown_ids():
    numbers = catalog(["b", "c", "a"]).item_numbers(["c", "?", "a", "c"], missing=-7)
    assert numbers.tolist() == [2, -7, 0, 2]
    assert numbers.dtype == np.int32


@pytest.mark.parametrize("unknown", ["", "0", "aa", "é", "日本語", "\U0001f600", "\ud800"])
def test_finds_ids_and_only_these(unknown):
    ids = ["日本", "b", "ab", "a", "Z", "10", "9", "\uffff"]
    items = catalog(ids)
    assert [items.find_item_number(item_id) for item_id in sorted(ids)] == list(range(len(ids)))
    assert items.find_item_number(unknown) is None
    assert catalog([]).find_item_number(unknown) is None


def test_numbers_of_an_empty_catalog_are_missing():
    assert catalog([]).item_numbers(["a", "b"], missing=-1).tolist() == [-1, -1]
    assert catalog(["a"]).item_numbers([], missing=-1).tolist() == []


def test_columns_are_read_by_row_and_slice():
    items = catalog(["b", "c", "a"], ["B", None, "A"])
    assert items.item_ids[np.int32(1)] == "b"
    assert items.item_ids[-1] == "c"
    assert items.titles[1:] == ["B", None]
    assert items.item_ids.index("b") == 1


def test_length_is_the_number_of_items():
    assert len(catalog(["a", "b", "c"])) == 3


def test_fingerprint_does_not_depend_on_order_or_titles():
    assert catalog(["b", "a"]).fingerprint == catalog(["a", "b"], ["x", "y"]).fingerprint


@pytest.mark.parametrize("ids", [["a", "b", "c"], ["a", "bc"], ["abc"], ["a", "b"], [], ["ab", "c", ""]], ids="+".join)
def test_fingerprint_depends_on_the_ids(ids):
    """Also where the ids, written one after the other, spell the same text."""
    assert catalog(ids).fingerprint != catalog(["ab", "c"]).fingerprint


def test_save_and_load(tmp_path):
    items = catalog(["b", "日本", 'a,\n"q"'], ["B", None, "A"])
    items.save(tmp_path / "catalog.parquet")
    loaded = Catalog.load(tmp_path / "catalog.parquet")
    assert loaded.frame.equals(items.frame)
    assert loaded.fingerprint == items.fingerprint
