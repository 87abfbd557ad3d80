"""The nearest items of many items as a data frame, the same row by row as `recsys.retrieval.engine` returns.

They are read from the neighbor table. Items of which too few neighbors there pass a filter are compared with all items
that pass it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.data.catalog import Catalog
from recsys.errors import InputError
from recsys.evaluation.calibration import Calibration
from recsys.index.exact import exact_similarities, item_vector
from recsys.index.neighbors import Neighbors, exact_neighbors
from recsys.index.queries import PADDING
from recsys.retrieval.filters import Mask
from recsys.retrieval.search import AllowedItems, Searcher

SCHEMA: Final = {
    "item_id": pl.String,
    "rank": pl.Int32,
    "neighbor_id": pl.String,
    "similarity": pl.Float64,
    "probability": pl.Float64,
}
"""`neighbor_id` is the neighbor of `item_id` at `rank`, from 1; `probability` is null if the release has no
calibration."""


@dataclass(frozen=True)
class NeighborFilter:
    """Which items can be neighbors. Neighbors are searched for every item, whether or not it passes the filter."""

    min_similarity: float | None = None
    """Smallest similarity."""
    min_interactions: int = 0
    """Smallest number of interactions."""
    where: Mapping[str, Sequence[int | float | str]] = field(default_factory=dict)
    """Catalog column -> accepted values; a list column must contain at least one of them."""

    def mask(self, catalog: Catalog) -> Mask | None:
        """Return which items can be neighbors, bool [num_items]; None if all can.

        Raises:
            InputError: the catalog has no such column, or one of another type.
        """
        if not self.min_interactions and not self.where:
            return None
        conditions = [pl.col("interactions") >= self.min_interactions]
        conditions += [_has_any_value(catalog.frame, column, values) for column, values in self.where.items()]
        return catalog.frame.select(pl.all_horizontal(conditions).fill_null(value=False)).to_series().to_numpy()


def nearest(
    catalog: Catalog,
    searcher: Searcher,
    item_numbers: Sequence[int],
    k: int,
    *,
    calibration: Calibration | None = None,
    neighbor_filter: NeighborFilter | None = None,
    mask: Mask | None = None,
) -> pl.DataFrame:
    """Return the `k` nearest items of each item that pass a filter.

    The ranking is the engine's, without the items that do not pass the filter.

    Args:
        catalog: of the release.
        searcher: of the release's engine.
        item_numbers: items whose neighbors are searched.
        k: maximum number of neighbors of each item.
        calibration: of the release.
        neighbor_filter: its `min_similarity` is applied; without it, all items pass.
        mask: `neighbor_filter.mask(catalog)`, computed once for all calls.

    Returns:
        A table of `SCHEMA`, items in the order of `item_numbers`, neighbors nearest first.
    """
    items = np.asarray(item_numbers, np.int64)
    minimum = -np.inf
    if neighbor_filter is not None and neighbor_filter.min_similarity is not None:
        minimum = neighbor_filter.min_similarity
    neighbors = _nearest(searcher, items, k, mask, minimum)
    query_rows, ranks = np.nonzero(neighbors != PADDING)
    neighbor_numbers = neighbors[query_rows, ranks]
    similarities = [
        _similarities(searcher, item, row[row != PADDING]) for item, row in zip(items, neighbors, strict=True)
    ]
    similarity = np.concatenate([np.empty(0), *similarities])
    similarity = np.clip(similarity, -1.0, 1.0)
    probability = None if calibration is None else calibration.to_probabilities(similarity)
    item_ids = catalog.frame["item_id"]
    return pl.DataFrame(
        {
            "item_id": item_ids.gather(items[query_rows]),
            "rank": ranks + 1,
            "neighbor_id": item_ids.gather(neighbor_numbers),
            "similarity": similarity,
            "probability": pl.repeat(None, len(similarity), eager=True) if probability is None else probability,
        },
        schema_overrides=SCHEMA,
    ).filter(pl.col("similarity") >= minimum)


def _nearest(searcher: Searcher, items: NDArray[np.int64], k: int, mask: Mask | None, minimum: float) -> Neighbors:
    """Return the `k` nearest other items of each item that pass a mask, -1 where there are fewer, int32 [n, k].

    Of items below the minimum similarity, some may be missing.
    """
    num_items = len(searcher.vectors)
    if searcher.neighbors is None:  # a release of format 1 to 5
        result = np.full((len(items), k), PADDING, np.int32)
        for neighbors, item_number in zip(result, items.tolist(), strict=True):
            ranking = searcher.ranking(item_number, AllowedItems(mask, num_items, {item_number}))
            nearest_items = [neighbor.item_number for neighbor in islice(ranking, k)]
            neighbors[: len(nearest_items)] = nearest_items
        return result
    table = searcher.neighbors[items]
    passes = np.ones(table.shape, np.bool_) if mask is None else mask[table]
    rank = np.cumsum(passes, axis=1) - 1
    row, column = np.nonzero(passes & (rank < k))
    result = np.full((len(items), k), PADDING, np.int32)
    result[row, rank[row, column]] = table[row, column]
    if table.shape[1] < num_items - 1:
        incomplete = [
            row
            for row in np.flatnonzero(result[:, -1] == PADDING)
            if _similarities(searcher, items[row], table[row, -1:])[0] >= minimum
        ]
        result[incomplete] = exact_neighbors(searcher.vectors, items[incomplete], k, searcher.distance, mask)
    return result


def _similarities(searcher: Searcher, item_number: int, neighbors: NDArray[np.int32]) -> NDArray[np.float64]:
    query = item_vector(searcher.vectors, item_number, searcher.distance)
    return exact_similarities(searcher.distance, query, searcher.vectors[neighbors])


def _has_any_value(catalog: pl.DataFrame, column: str, values: Sequence[int | float | str]) -> pl.Expr:
    """Return the expression for a catalog column having any of the values."""
    if column not in catalog.columns:
        raise InputError(
            f"export.where must name columns of the release's catalog: {', '.join(catalog.columns)}. "
            f"Received: {column!r}."
        )
    dtype = catalog.schema[column]
    is_list = isinstance(dtype, pl.List)
    numeric = dtype.inner.is_numeric() if isinstance(dtype, pl.List) else dtype.is_numeric()
    invalid = [value for value in values if isinstance(value, str) == numeric]
    if invalid:
        raise InputError(
            f"export.where.{column} must list {'numbers' if numeric else 'strings'}, the type of that catalog "
            f"column. Received: {invalid[0]!r}."
        )
    if is_list:
        return pl.col(column).list.eval(pl.any_horizontal([pl.element() == value for value in values])).list.any()
    return pl.any_horizontal([pl.col(column) == value for value in values])
