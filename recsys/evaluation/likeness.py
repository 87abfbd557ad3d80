"""Evidence that the nearest neighbors of an item are like it, rather than popular or next.

Three kinds of evidence that no model was trained on:

- *agreement of other users*: what users who took no part in the training associate with an item
- *item groups*: items that people put together, such as the films of a series
- *columns*: texts or categories of the catalog that no model reads

Every figure is a mean over query items, with a bootstrap interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys.data.association import partial_weights, shrunk_lift
from recsys.data.catalog import Catalog
from recsys.data.splits import Split
from recsys.evaluation.baselines import user_item_matrix
from recsys.evaluation.metrics import BOUNDS, Recommender, ndcg_of_gains
from recsys.index.queries import PADDING, Queries

K = 10
"""Number of neighbors that are judged."""
AGREEMENT = f"agreement_at_{K}"
"""Metric by which towers for likeness are selected."""
SEARCHED = 100
"""Number of neighbors that are searched, so that `K` of them are items with evidence."""
MAX_ITEMS = 2_000
"""Number of items whose neighbors are searched to choose a pass or a candidate; a sample, if more can be judged."""
MIN_ITEMS = 100
"""With evidence of fewer items, the interval of the agreement is too wide to compare models."""
MIN_USERS = (20, 10, 5)
"""Numbers of users held out from which an item can be judged."""
JUDGED_SHARE = 0.25
"""Share of the catalog that has to be judged."""
POPULAR, RARE = 100, 10
"""Interactions from which an item is popular, and below which it is rare."""


class Evidence(NamedTuple):
    """What users who took no part in the training associate."""

    lift: sparse.csr_array
    """Shrunk lift of two items among the users held out, [num_items, num_items]."""
    partial: sparse.csr_array
    """Partial weight of two items among the users held out, [num_items, num_items]."""
    judged: NDArray[np.bool_]
    """Items with enough of these users, bool [num_items]; others are skipped among the neighbors of an item."""

    @classmethod
    def from_interactions(cls, interactions: sparse.csr_array, max_items: int | None = None) -> Evidence:
        """Measure the association of items among users held out.

        Lift alone would reward neighbors that are associated through a third item, and partial weights alone are noisy.
        Counts and cosine would reward popularity: popular items are near all others by them.

        Items with too few of these users are not judged. The number is the largest of `MIN_USERS` that a quarter of the
        items reach; shrinkage and penalty are in proportion to it.

        Args:
            interactions: whole histories of the users held out, 0 or 1, [num_users, num_items].
            max_items: maximum number of items whose neighbors can be judged, a random sample; None for all items.
        """
        counts = np.asarray(interactions.sum(axis=0)).ravel()
        min_users = next((each for each in MIN_USERS if np.mean(counts >= each) >= JUDGED_SHARE), MIN_USERS[-1])
        judged = counts >= min_users
        # without the other items, but with all users: the lift depends on their number
        known = sparse.csr_array(interactions @ sparse.diags_array(judged.astype(np.float32)))
        known.eliminate_zeros()
        items = np.flatnonzero(judged)
        if max_items is not None and len(items) > max_items:
            items = np.sort(np.random.default_rng(0).choice(items, max_items, replace=False))
        num_items = known.shape[1]
        lift = shrunk_lift(known, min_users / 2, num_items, items)
        partial = partial_weights(known, 5.0 * min_users, 1.0, num_items, items)
        return cls(_at_rows(lift, items, num_items), _at_rows(partial, items, num_items), judged)

    @classmethod
    def of_held_out_users(cls, split: Split, num_items: int) -> Evidence:
        """Return what the users held out associate before their test targets; a sample of at most `MAX_ITEMS` items."""
        included = split.training_mask("test") & split.held_out[split.sequences.users]
        interactions = user_item_matrix(split.sequences, included, num_items)
        return cls.from_interactions(interactions[split.held_out], MAX_ITEMS)

    def save(self, path: Path) -> None:
        """Write the associations and the judged items."""
        arrays: dict[str, Any] = {"judged": self.judged}
        for name, matrix in (("lift", self.lift), ("partial", self.partial)):
            arrays |= {f"{name}_{part}": getattr(matrix, part) for part in ("data", "indices", "indptr")}
        np.savez(path, **arrays)

    @classmethod
    def load(cls, path: Path) -> Evidence:
        """Read a file written by `save`."""
        with np.load(path) as arrays:
            judged = arrays["judged"]
            lift, partial = (
                sparse.csr_array(
                    tuple(arrays[f"{name}_{part}"] for part in ("data", "indices", "indptr")),
                    shape=(len(judged), len(judged)),
                )
                for name in ("lift", "partial")
            )
        return cls(lift, partial, judged)

    @property
    def items(self) -> NDArray[np.int32]:
        """Items whose neighbors can be judged, ascending, int32 [n]."""
        return np.flatnonzero(np.diff(self.lift.indptr) > 0).astype(np.int32)

    @property
    def is_enough(self) -> bool:
        """Whether there are enough items to compare models."""
        return len(self.items) >= MIN_ITEMS


class CatalogEvidence(NamedTuple):
    """What the catalog says about items that are alike, and no model reads."""

    groups: Sequence[NDArray[np.int32]] = ()
    """Item numbers of each group of items that belong together."""
    columns: sparse.csr_array | None = None
    """Rows of length 1 or 0, [num_items, num_terms], of columns that no model reads."""


def agreement(top: NDArray[np.int32], items: NDArray[np.int32], evidence: Evidence) -> dict[str, NDArray[np.float64]]:
    """Return `lift_agreement_at_10`, `partial_agreement_at_10` and their mean, `agreement_at_10`, of each item.

    Args:
        top: neighbors of the items, best first, int32 [n, SEARCHED]; -1 pads.
        items: item numbers, int32 [n].
        evidence: associations among the users held out.

    Returns:
        float64 [n] each; NaN for items without evidence.
    """
    lift, partial = (
        graded_ndcg(top, items, relevance, evidence.judged) for relevance in (evidence.lift, evidence.partial)
    )
    return {AGREEMENT: (lift + partial) / 2, f"lift_{AGREEMENT}": lift, f"partial_{AGREEMENT}": partial}


def means(values: Mapping[str, NDArray[np.float64]]) -> dict[str, float]:
    """Return the mean of each metric over the items with evidence; metrics without such items are left out."""
    return {name: float(np.nanmean(each)) for name, each in values.items() if np.isfinite(each).any()}


def likeness_report(
    model: Recommender,
    popularity: NDArray[np.integer[Any]],
    resamples: int,
    *,
    users: Evidence | None = None,
    catalog: CatalogEvidence | None = None,
    items: NDArray[np.int32] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the figures of a model, searching each item once.

    Args:
        model: to evaluate.
        popularity: interactions of each item in its training data, [num_items].
        resamples: number of bootstrap resamples of each interval.
        users: evidence of users held out; None leaves the agreement out.
        catalog: groups and columns; None leaves their figures out.
        items: query items, ascending, int32 [n]; None for all items with interactions.
        seed: of the resamples.

    Returns:
        JSON-compatible: the means of `agreement`; `group_recall_at_10` and `column_agreement_at_10` if there is
        evidence; `popularity_at_10`, the median number of interactions of the neighbors; `rare_at_10`, the share of the
        neighbors of popular items that are rare; `intervals` (name: [low, high]); `queries` (name: number of items).
    """
    if items is None:
        items = np.flatnonzero(popularity > 0).astype(np.int32)
    top = model.top_k(Queries.from_items(items), SEARCHED)
    nearest = top[:, :K]
    values = agreement(top, items, users) if users is not None else {}
    if catalog is not None:
        values[f"group_recall_at_{K}"] = group_recall(nearest, items, catalog.groups)
        if catalog.columns is not None:
            values[f"column_agreement_at_{K}"] = column_agreement(nearest, items, catalog.columns)
    values = {name: each[np.isfinite(each)] for name, each in values.items()}
    figures: dict[str, Any] = dict(means(values))
    returned, by_popular = (
        popularity[rows[rows != PADDING]] for rows in (nearest, nearest[popularity[items] >= POPULAR])
    )
    figures[f"popularity_at_{K}"] = float(np.median(returned)) if len(returned) else 0.0
    figures[f"rare_at_{K}"] = float(np.mean(by_popular < RARE)) if len(by_popular) else 0.0
    figures["intervals"] = {
        name: mean_interval(each, resamples, seed=seed) for name, each in values.items() if len(each)
    }
    figures["queries"] = {name: len(each) for name, each in values.items()}
    return figures


def agreement_report(
    model: Recommender, popularity: NDArray[np.integer[Any]], resamples: int, users: Evidence
) -> dict[str, Any]:
    """Return the `likeness_report` of a model on the evidence of users, for the items in its training data.

    Args:
        model: to evaluate, trained without these users.
        popularity: interactions of each item in its training data, [num_items].
        resamples: number of bootstrap resamples of each interval.
        users: evidence of users held out.
    """
    items = users.items[popularity[users.items] > 0]
    return likeness_report(model, popularity, resamples, users=users, items=items)


def graded_ndcg(
    top: NDArray[np.int32], items: NDArray[np.int32], relevance: sparse.csr_array, judged: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return the NDCG of the first `K` judged neighbors of each item, float64 [n]; NaN for items without relevance.

    Neighbors that are not judged are skipped rather than counted as wrong (condensed lists; Sakai,
    Alternatives to Bpref, SIGIR 2007).

    Args:
        top: neighbors of the items, best first, int32 [n, SEARCHED]; -1 pads.
        items: item numbers, int32 [n].
        relevance: gains, [num_items, num_items].
        judged: items that can have relevance, bool [num_items].
    """
    result = np.full(len(items), np.nan)
    gains = np.zeros(len(judged))
    for row, item in enumerate(items):
        cells = slice(relevance.indptr[item], relevance.indptr[item + 1])
        if cells.start == cells.stop:
            continue
        gains[relevance.indices[cells]] = relevance.data[cells]
        neighbors = top[row][top[row] != PADDING]
        result[row] = ndcg_of_gains(gains[neighbors[judged[neighbors]]], relevance.data[cells], K)
        gains[relevance.indices[cells]] = 0
    return result


def _at_rows(rows: sparse.csr_array, items: NDArray[np.int64], num_rows: int) -> sparse.csr_array:
    """Return a matrix of `num_rows` rows with the given rows at `items`, ascending, and no values elsewhere."""
    sizes = np.zeros(num_rows, np.int64)
    sizes[items] = np.diff(rows.indptr)
    indptr = np.concatenate([[0], np.cumsum(sizes)])
    return sparse.csr_array((rows.data, rows.indices, indptr), shape=(num_rows, rows.shape[1]))


def group_recall(
    nearest: NDArray[np.int32], items: NDArray[np.int32], groups: Sequence[NDArray[np.int32]]
) -> NDArray[np.float64]:
    """Return for each member of a group the share of the other members among its neighbors, float64 [num_members].

    Args:
        nearest: neighbors of the items, int32 [n, K]; -1 pads.
        items: item numbers, int32 [n]; the others have no neighbors.
        groups: item numbers of each group.
    """
    neighbors = dict(zip(items.tolist(), nearest, strict=True))
    return np.array(
        [
            np.isin(group[group != item], neighbors.get(item, ())).sum() / min(len(group) - 1, K)
            for group in groups
            for item in group.tolist()
        ],
        np.float64,
    )


def column_agreement(
    nearest: NDArray[np.int32], items: NDArray[np.int32], columns: sparse.csr_array
) -> NDArray[np.float64]:
    """Return the mean cosine of each item and its neighbors, float64 [n]; NaN for items without terms.

    A missing neighbor has the cosine 0.

    Args:
        nearest: neighbors of the items, int32 [n, K]; -1 pads.
        items: item numbers, int32 [n].
        columns: rows of length 1 or 0, [num_items, num_terms].
    """
    total = np.zeros(len(items))
    for column in nearest.T:
        cosine = np.asarray(columns[items].multiply(columns[column]).sum(axis=1)).ravel()
        total += np.where(column == PADDING, 0, cosine)
    has_terms = np.diff(columns.indptr)[items] > 0
    return np.where(has_terms, total / nearest.shape[1], np.nan)


def mean_interval(values: NDArray[np.float64], resamples: int, *, seed: int = 0) -> list[float]:
    """Return the bootstrap interval of a mean, [low, high], with the confidence of all intervals."""
    rng = np.random.default_rng(seed)
    resampled = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(resamples)]
    return np.percentile(resampled, BOUNDS).tolist()  # type: ignore[no-any-return]


def group_item_numbers(groups: Mapping[str, Sequence[str]], catalog: Catalog) -> list[NDArray[np.int32]]:
    """Return the item numbers of each group; items that the catalog lacks are left out, and then groups of one."""
    numbers = [np.unique(catalog.item_numbers(group, missing=PADDING)) for group in groups.values()]
    return [group[group != PADDING] for group in numbers if np.count_nonzero(group != PADDING) > 1]
