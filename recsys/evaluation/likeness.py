"""Evidence that the nearest neighbors of an item are like it, rather than popular or next.

Three kinds of evidence that no model was trained on:

- *agreement of other users*: what users who took no part in the training associate with an item
- *item groups*: items that people put together, such as the films of a series
- *columns*: texts or categories of the catalog that no model reads

Every figure is a mean over query items, with a bootstrap interval.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys.data.association import shrunk_lift
from recsys.evaluation.metrics import CONFIDENCE, Recommender
from recsys.index.queries import PADDING, Queries

K = 10
"""Number of neighbors that are judged."""
SEARCHED = 100
"""Number of neighbors that are searched, so that `K` of them are items with evidence."""
HELD_OUT_SHARE = 1 / 3
"""Share of the users who are left out of the training to judge it."""
POPULAR, RARE = 100, 10
"""Interactions from which an item is popular, and below which it is rare."""


class Evidence(NamedTuple):
    """What the neighbors of the items are compared with; None for what there is not."""

    relevance: sparse.csr_array
    """Association of two items among the users left out, from `relevance_of`, [num_items, num_items]."""
    groups: Sequence[NDArray[np.int32]] = ()
    """Item numbers of each group of items that belong together."""
    columns: sparse.csr_array | None = None
    """Rows of length 1 or 0, [num_items, num_terms], of columns that no model reads."""


def held_out_users(user_ids: Iterable[str], share: float = HELD_OUT_SHARE) -> NDArray[np.bool_]:
    """Return which users are left out, bool [num_users]. A user's id alone decides, so the choice never changes."""
    hashes = (hashlib.blake2b(user_id.encode(), digest_size=8, person=b"held-out").digest() for user_id in user_ids)
    return np.array([int.from_bytes(each) < share * 2**64 for each in hashes], np.bool_)


def relevance_of(interactions: sparse.csr_array, min_users: int, shrinkage: float) -> sparse.csr_array:
    """Return the graded relevance of the neighbors of each item: the shrunk lift among users left out.

    Cosine and counts would not do: popular items are near all others by them, so that popularity looks like likeness.

    Args:
        interactions: whole histories of the users left out, 0 or 1, [num_users, num_items].
        min_users: items with fewer users among them have no evidence: their rows and columns are empty.
        shrinkage: of the lift.
    """
    counts = np.asarray(interactions.sum(axis=0)).ravel()
    judged = sparse.diags_array((counts >= min_users).astype(np.float32))
    return shrunk_lift(sparse.csr_array(interactions @ judged), shrinkage, interactions.shape[1])


def likeness_report(
    model: Recommender, evidence: Evidence, popularity: NDArray[np.integer[Any]], resamples: int, *, seed: int = 0
) -> dict[str, Any]:
    """Return the figures of a model, searching each item with interactions once.

    Args:
        model: to evaluate.
        evidence: what its neighbors are compared with.
        popularity: interactions of each item in its training data, [num_items].
        resamples: number of bootstrap resamples of each interval.
        seed: of the resamples.

    Returns:
        JSON-compatible: `agreement_at_10`, `group_recall_at_10` and `column_agreement_at_10` if there is evidence;
        `popularity_at_10`, the median number of interactions of the neighbors; `rare_at_10`, the share of the
        neighbors of popular items that are rare; `intervals` (name: [low, high]); `queries` (name: number of items).
    """
    items = np.flatnonzero(popularity > 0).astype(np.int32)
    top = np.full((len(popularity), SEARCHED), PADDING, np.int32)
    top[items] = model.top_k(Queries.from_items(items), SEARCHED)
    nearest = top[:, :K]
    values = {
        f"agreement_at_{K}": graded_ndcg(top, evidence.relevance),
        f"group_recall_at_{K}": group_recall(nearest, evidence.groups),
    }
    if evidence.columns is not None:
        values[f"column_agreement_at_{K}"] = column_agreement(nearest[items], items, evidence.columns)
    popular = nearest[items[popularity[items] >= POPULAR]]
    shown = popularity[popular[popular >= 0]]
    figures: dict[str, Any] = {name: float(each.mean()) for name, each in values.items() if len(each)}
    returned = nearest[items]
    figures[f"popularity_at_{K}"] = (
        float(np.median(popularity[returned[returned >= 0]])) if (returned >= 0).any() else 0.0
    )
    figures[f"rare_at_{K}"] = float(np.mean(shown < RARE)) if len(shown) else 0.0
    figures["intervals"] = {
        name: mean_interval(each, resamples, seed=seed) for name, each in values.items() if len(each)
    }
    figures["queries"] = {name: len(each) for name, each in values.items()}
    return figures


def graded_ndcg(top: NDArray[np.int32], relevance: sparse.csr_array) -> NDArray[np.float64]:
    """Return the NDCG of the first `K` judged neighbors of each item with evidence, float64 [n].

    Neighbors without evidence are skipped rather than counted as wrong (condensed lists; Sakai, Alternatives to
    Bpref, SIGIR 2007).

    Args:
        top: neighbors of all items, best first, int32 [num_items, SEARCHED]; -1 pads. Items that were not searched
            have no neighbors, and are left out.
        relevance: gains, [num_items, num_items]; an item with evidence has a positive gain in its column.
    """
    judged = np.asarray(relevance.sum(axis=0)).ravel() > 0
    searched = top[:, 0] != PADDING
    discount = 1 / np.log2(np.arange(K) + 2.0)
    result = []
    for item in np.flatnonzero(searched & (np.diff(relevance.indptr) > 0)):
        cells = slice(relevance.indptr[item], relevance.indptr[item + 1])
        gains = np.zeros(len(judged))
        gains[relevance.indices[cells]] = relevance.data[cells]
        neighbors = top[item][top[item] != PADDING]
        received = gains[neighbors[judged[neighbors]][:K]]
        ideal = np.sort(relevance.data[cells])[::-1][:K]
        result.append((received @ discount[: len(received)]) / (ideal @ discount[: len(ideal)]))
    return np.array(result, np.float64)


def group_recall(nearest: NDArray[np.int32], groups: Sequence[NDArray[np.int32]]) -> NDArray[np.float64]:
    """Return for each member of a group the share of the other members among its neighbors, float64 [n].

    Args:
        nearest: neighbors of all items, int32 [num_items, K].
        groups: item numbers of each group.
    """
    return np.array(
        [
            np.isin(np.setdiff1d(group, [item]), nearest[item]).sum() / min(len(group) - 1, K)
            for group in groups
            for item in group
            if len(group) > 1
        ],
        np.float64,
    )


def column_agreement(
    nearest: NDArray[np.int32], items: NDArray[np.int32], columns: sparse.csr_array
) -> NDArray[np.float64]:
    """Return the mean cosine of each item and its neighbors, float64 [n]; a missing neighbor counts 0.

    Args:
        nearest: neighbors of each of the items, int32 [n, K]; -1 pads.
        items: item numbers, int32 [n].
        columns: rows of length 1 or 0, [num_items, num_terms].
    """
    total = np.zeros(len(items))
    for column in nearest.T:
        cosine = np.asarray(columns[items].multiply(columns[column]).sum(axis=1)).ravel()
        total += np.where(column == PADDING, 0, cosine)
    has_terms = np.diff(columns.indptr)[items] > 0
    return total[has_terms] / nearest.shape[1]


def mean_interval(values: NDArray[np.float64], resamples: int, *, seed: int = 0) -> list[float]:
    """Return the bootstrap interval of a mean, [low, high], with the confidence of all intervals."""
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(resamples)]
    return np.percentile(means, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)]).tolist()  # type: ignore[no-any-return]


def load_groups(groups: Mapping[str, Sequence[str]], item_number: Mapping[str, int]) -> list[NDArray[np.int32]]:
    """Return the item numbers of each group; items that the catalog lacks are left out, and then groups of one."""
    numbers = [sorted({item_number[item] for item in group if item in item_number}) for group in groups.values()]
    return [np.array(each, np.int32) for each in numbers if len(each) > 1]
