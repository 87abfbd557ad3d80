"""How well neighbours foretell what a user touches next: HR, NDCG and MRR of one relevant item."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from recsys.splitting import Holdout

CUTS = (10, 20)
TARGET_METRIC = "ndcg_at_20"
"""What training stops by and releases are compared by."""


class Neighbours(Protocol):
    """What can be asked for neighbours: an index, exact search, a baseline."""

    def neighbours(self, numbers: NDArray[np.int32], k: int) -> NDArray[np.int32]:
        """The `k` best other items of each item, best first; int32 [len(numbers), k], -1 pads."""
        ...


def ranks(model: Neighbours, holdout: Holdout, k: int = max(CUTS)) -> NDArray[np.int64]:
    """Rank from 0 of each target among the query's `k` neighbours, `k` where it is not among them; int64 [n].

    Only the query itself is left out of the answer.
    """
    queries, question = np.unique(holdout.queries, return_inverse=True)
    found = model.neighbours(queries, k)[question] == holdout.targets[:, None]  # [n, k]
    return np.where(found.any(axis=1), found.argmax(axis=1), k)


def metrics(rank: NDArray[np.int64]) -> dict[str, float]:
    """Means over the questions, each with one relevant item.

    HR@k is 1 where rank < k; NDCG@k is 1 / log2(rank + 2) there (the ideal gain is 1); MRR@k is
    1 / (rank + 1) there. Without questions there are no figures.
    """
    if not len(rank):
        return {}
    values: dict[str, float] = {}
    for k in CUTS:
        hit = rank < k
        values[f"hr_at_{k}"] = float(np.mean(hit))
        values[f"ndcg_at_{k}"] = float(np.mean(hit / np.log2(rank + 2.0)))
        values[f"mrr_at_{k}"] = float(np.mean(hit / (rank + 1.0)))
    return values


def evaluate(model: Neighbours, holdout: Holdout) -> dict[str, float]:
    """`metrics` of a model's answers."""
    return metrics(ranks(model, holdout))
