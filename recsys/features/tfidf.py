"""Attributes of the catalog's items as one sparse matrix, for what compares items by content alone."""

from __future__ import annotations

import numpy as np
import polars as pl
from scipy import sparse

from recsys.config.sections import ItemsConfig


def tfidf_matrix(frame: pl.DataFrame, items: ItemsConfig) -> sparse.csr_array | None:
    r"""Bags of attributes, each weighted by its inverse document frequency; None where no attribute says anything.

    An attribute is a value of a categorical or multi-categorical column, or a word of a text column (a run of
    letters, digits and underscores, in lower case); the same value in another column is another attribute.
    Having one twice counts once. The weight is ln(num_items / items that have it) (Spärck Jones, 1972): what all
    items have says nothing.

    Args:
        frame: the catalog's columns, one row an item.
        items: which column is what.

    Returns:
        float64 [num_items, num_attributes].
    """
    rows = frame.with_row_index("item")
    read = {column: pl.col(column) for column in (*items.categorical, *items.multi_categorical)}
    for column in items.text:
        text = pl.col("title" if column == items.title else column)
        read[column] = text.str.to_lowercase().str.extract_all(r"\w+")
    listed = [
        rows.select("item", pl.lit(column).alias("column"), expression.alias("value"))
        for column, expression in read.items()
    ]
    flat = [part.explode("value", empty_as_null=False) if part.schema["value"] == pl.List else part for part in listed]
    if not flat:
        return None
    held = pl.concat(flat).drop_nulls("value").unique()
    weighed = held.with_columns(weight=(frame.height / pl.len().over("column", "value")).log()).filter(
        pl.col("weight") > 0
    )
    if not weighed.height:
        return None
    attribute = weighed.select(pl.struct("column", "value").rank("dense") - 1).to_series().to_numpy()
    coordinates = (weighed["item"].to_numpy(), attribute)
    shape = (frame.height, int(attribute.max()) + 1)
    return sparse.coo_array((weighed["weight"].to_numpy(), coordinates), shape=shape, dtype=np.float64).tocsr()
