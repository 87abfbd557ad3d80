"""TF-IDF matrix of item attributes, for baselines that compare items by content only."""

from __future__ import annotations

import numpy as np
import polars as pl
from scipy import sparse

from recsys.config.sections import ItemsConfig


def tfidf_matrix(frame: pl.DataFrame, items: ItemsConfig) -> sparse.csr_array | None:
    r"""Return the attributes of each item, weighted by inverse document frequency; None if all weights are 0.

    An attribute is a value of a categorical or multi-categorical column, or a word of a text column (a run of
    letters, digits and underscores, in lower case); equal values of different columns are different attributes.
    Repeats count once. The weight is ln(num_items / number of items with the attribute) (Spärck Jones, 1972), so an
    attribute of all items has the weight 0.

    Args:
        frame: the catalog's columns, one row per item.
        items: the roles of the columns.

    Returns:
        float64 [num_items, num_attributes].
    """
    rows = frame.with_row_index("item_number")
    expressions = {column: pl.col(column) for column in (*items.categorical, *items.multi_categorical)}
    for column in items.text:
        text = pl.col("title" if column == items.title else column)
        expressions[column] = text.str.to_lowercase().str.extract_all(r"\w+")
    parts = [
        rows.select("item_number", pl.lit(column).alias("column"), expression.alias("value"))
        for column, expression in expressions.items()
    ]
    flat = [part.explode("value", empty_as_null=False) if part.schema["value"] == pl.List else part for part in parts]
    if not flat:
        return None
    attributes = pl.concat(flat).drop_nulls("value").unique()
    weighted = attributes.with_columns(weight=(frame.height / pl.len().over("column", "value")).log()).filter(
        pl.col("weight") > 0
    )
    if not weighted.height:
        return None
    attribute = weighted.select(pl.struct("column", "value").rank("dense") - 1).to_series().to_numpy()
    coordinates = (weighted["item_number"].to_numpy(), attribute)
    shape = (frame.height, int(attribute.max()) + 1)
    return sparse.coo_array((weighted["weight"].to_numpy(), coordinates), shape=shape, dtype=np.float64).tocsr()


def unit_length_rows(matrix: sparse.csr_array) -> sparse.csr_array:
    """Return the rows scaled to length 1, float64; rows of zeros stay zeros. Their dot products are cosines."""
    matrix = matrix.astype(np.float64)
    lengths = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    return matrix.multiply(1 / np.where(lengths > 0, lengths, 1)[:, None]).tocsr()
