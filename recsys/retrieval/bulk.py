"""The nearest of many items as one table: row by row what `recsys.retrieval.engine` answers item by item.

Where that asks the index, this asks for no more than is wanted, and `recsys.retrieval.engine` may look farther.
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
from recsys.index.annoy_index import Index
from recsys.retrieval.search import Allowed, Space

SCHEMA: Final = {
    "item_id": pl.String,
    "rank": pl.Int32,
    "neighbor_id": pl.String,
    "similarity": pl.Float64,
    "probability": pl.Float64,
}
"""A row says that `neighbor_id` is the neighbor of `item_id` at `rank`, from 1; `probability` is null where the
release has no calibration."""


@dataclass(frozen=True)
class Filter:
    """What may be a neighbor. Every item is asked about, whatever it is."""

    min_similarity: float | None = None
    """Smallest similarity."""
    min_interactions: int = 0
    """Fewest interactions."""
    where: Mapping[str, Sequence[int | float | str]] = field(default_factory=dict)
    """Column of the catalog -> values, one of which it must have; a list must hold one of them."""
    reach: int = 1_000
    """Nearest items among which those that may be neighbors are searched, for each item."""

    def allowed(self, catalog: Catalog) -> NDArray[np.bool_] | None:
        """Whether an item may be a neighbor, bool [num_items]; None where all may.

        Raises:
            InputError: the catalog has no such column, or one of another type.
        """
        if not self.min_interactions and not self.where:
            return None
        tests = [pl.col("interactions") >= self.min_interactions]
        tests += [_has_one_of(catalog.frame, column, values) for column, values in self.where.items()]
        return catalog.frame.select(pl.all_horizontal(tests).fill_null(value=False)).to_series().to_numpy()


def nearest(
    catalog: Catalog,
    space: Space,
    numbers: Sequence[int],
    k: int,
    *,
    calibration: Calibration | None = None,
    wanted: Filter | None = None,
    allowed: NDArray[np.bool_] | None = None,
) -> pl.DataFrame:
    """The `k` nearest items of each item of `numbers` that may be its neighbors.

    In the order of the service: what it answers, less what may not be a neighbor.

    Args:
        catalog: of the release.
        space: where the release's engine looks.
        numbers: items to ask about.
        k: neighbors of each; fewer where no more are found.
        calibration: of the release.
        wanted: its smallest similarity and its reach; without it, all are let through.
        allowed: `wanted.allowed(catalog)`, which is the same for all items.

    Returns:
        Of `SCHEMA`, by item in the order of `numbers`, nearest first.
    """
    wanted = wanted or Filter()
    least = -np.inf if wanted.min_similarity is None else wanted.min_similarity
    found: list[int] = []
    similar: list[float] = []
    counts = []
    count = len(catalog) if allowed is None else int(np.count_nonzero(allowed))
    few = space.compares_each(count)
    for number in numbers:
        if few:
            others, similarities = _nearest_of_few(space, number, k, allowed)
        elif allowed is None:
            others, similarities = space.index.nearest(number, k)
        else:
            others, similarities = _nearest_allowed(
                space.index, number, k, allowed=allowed, least=least, reach=wanted.reach
            )
        found += others
        similar += similarities
        counts.append(len(others))
    repeated = np.repeat(np.arange(len(counts)), counts)
    starts = np.cumsum([0, *counts[:-1]])
    similarity = np.clip(np.array(similar, np.float64), -1.0, 1.0)
    probability = None if calibration is None else calibration.probabilities_of(similarity)
    item_ids = catalog.frame["item_id"]
    return pl.DataFrame(
        {
            "item_id": item_ids.gather(np.asarray(numbers, np.int64)[repeated]),
            "rank": np.arange(1, len(found) + 1) - starts[repeated],
            "neighbor_id": item_ids.gather(np.array(found, np.int64)),
            "similarity": similarity,
            "probability": pl.repeat(None, len(found), eager=True) if probability is None else probability,
        },
        schema_overrides=SCHEMA,
    ).filter(pl.col("similarity") >= least)


def _nearest_of_few(
    space: Space, number: int, k: int, allowed: NDArray[np.bool_] | None
) -> tuple[list[int], list[float]]:
    """As `index.nearest`, by the comparisons that the engine makes."""
    near = [*islice(space.nearest(number, Allowed(allowed, len(space.vectors), {number})), k)]
    return [one.number for one in near], [one.similarity for one in near]


def _nearest_allowed(
    index: Index, number: int, k: int, *, allowed: NDArray[np.bool_], least: float, reach: int
) -> tuple[list[int], list[float]]:
    """As `index.nearest`, but only of what is allowed, as far as `reach` goes."""
    width = k
    while True:
        others, similarities = index.nearest(number, width)
        kept = np.flatnonzero(allowed[others])[:k].tolist() if others else []
        if len(kept) == k or width >= reach or len(others) < width or similarities[-1] < least:
            return [others[rank] for rank in kept], [similarities[rank] for rank in kept]
        width = min(2 * width, reach)


def _has_one_of(catalog: pl.DataFrame, column: str, values: Sequence[int | float | str]) -> pl.Expr:
    """Whether a column of the catalog has one of the values."""
    if column not in catalog.columns:
        raise InputError(
            f"neighbors.where must name columns of the release's catalog: {', '.join(catalog.columns)}. "
            f"Received: {column!r}."
        )
    kind = catalog.schema[column]
    inner = kind.inner if isinstance(kind, pl.List) else kind
    numeric = inner.is_numeric()
    wrong = [value for value in values if isinstance(value, str) == numeric]
    if wrong:
        raise InputError(
            f"neighbors.where.{column} must list {'numbers' if numeric else 'texts'}, as the catalog holds there. "
            f"Received: {wrong[0]!r}."
        )
    if isinstance(kind, pl.List):
        return pl.col(column).list.eval(pl.any_horizontal([pl.element() == value for value in values])).list.any()
    return pl.any_horizontal([pl.col(column) == value for value in values])
