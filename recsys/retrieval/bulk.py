"""The nearest items of many items as a table, the same row by row as `recsys.retrieval.engine` returns item by item.

The index is queried for `k` items, where the engine queries it for more and reads on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

import numpy as np
import polars as pl

from recsys.data.catalog import Catalog
from recsys.errors import InputError
from recsys.evaluation.calibration import Calibration
from recsys.index.annoy_index import Index
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
    reach: int = 1_000
    """Number of nearest items of each item to which the filter is applied."""

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
        neighbor_filter: its `min_similarity` and `reach` are applied; without it, all items pass.
        mask: `neighbor_filter.mask(catalog)`, computed once for all calls.

    Returns:
        A table of `SCHEMA`, items in the order of `item_numbers`, neighbors nearest first.
    """
    neighbor_filter = neighbor_filter or NeighborFilter()
    min_similarity = -np.inf if neighbor_filter.min_similarity is None else neighbor_filter.min_similarity
    neighbors: list[int] = []
    similarities: list[float] = []
    counts = []
    exact = searcher.is_exact(len(catalog) if mask is None else int(np.count_nonzero(mask)))
    for item_number in item_numbers:
        if exact:
            nearest_items, nearest_similarities = _nearest_exact(searcher, item_number, k, mask)
        elif mask is None:
            nearest_items, nearest_similarities = searcher.index.nearest(item_number, k)
        else:
            nearest_items, nearest_similarities = _nearest_filtered(
                searcher.index,
                item_number,
                k,
                mask=mask,
                min_similarity=min_similarity,
                reach=neighbor_filter.reach,
            )
        neighbors += nearest_items
        similarities += nearest_similarities
        counts.append(len(nearest_items))
    query_rows = np.repeat(np.arange(len(counts)), counts)
    starts = np.cumsum([0, *counts[:-1]])
    similarity = np.clip(np.array(similarities, np.float64), -1.0, 1.0)
    probability = None if calibration is None else calibration.to_probabilities(similarity)
    item_ids = catalog.frame["item_id"]
    return pl.DataFrame(
        {
            "item_id": item_ids.gather(np.asarray(item_numbers, np.int64)[query_rows]),
            "rank": np.arange(1, len(neighbors) + 1) - starts[query_rows],
            "neighbor_id": item_ids.gather(np.array(neighbors, np.int64)),
            "similarity": similarity,
            "probability": pl.repeat(None, len(neighbors), eager=True) if probability is None else probability,
        },
        schema_overrides=SCHEMA,
    ).filter(pl.col("similarity") >= min_similarity)


def _nearest_exact(searcher: Searcher, item_number: int, k: int, mask: Mask | None) -> tuple[list[int], list[float]]:
    """Return the same as `index.nearest`, by the engine's exact comparison."""
    allowed = AllowedItems(mask, len(searcher.vectors), {item_number})
    items = [*islice(searcher.ranking(item_number, allowed), k)]
    return [item.item_number for item in items], [item.similarity for item in items]


def _nearest_filtered(
    index: Index, item_number: int, k: int, *, mask: Mask, min_similarity: float, reach: int
) -> tuple[list[int], list[float]]:
    """Return the same as `index.nearest` for the items of a mask, searching at most the `reach` nearest items."""
    count = k
    while True:
        neighbors, similarities = index.nearest(item_number, count)
        passing = np.flatnonzero(mask[neighbors])[:k].tolist() if neighbors else []
        exhausted = count >= reach or len(neighbors) < count or similarities[-1] < min_similarity
        if len(passing) == k or exhausted:
            return [neighbors[row] for row in passing], [similarities[row] for row in passing]
        count = min(2 * count, reach)


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
