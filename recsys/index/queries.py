"""Batches of queries: weighted items, and the items to exclude from the result.

One representation for a single item, several items and a user's history, so that an index, exact search and every
baseline are searched and measured in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys.data.splits import Holdout

PADDING = -1

MAX_EXCLUDED = 1_000
"""Maximum number of newest items of a history that are excluded from the result: bounds a query to 4 kB.

Users with more items are rare, and returning one of their older items is not an error. All models are measured in the
same way.
"""


def default_recency(recencies: Sequence[float]) -> float:
    """Return the recency to use before the best one is known: the median, of two the larger."""
    return sorted(recencies)[len(recencies) // 2]


@dataclass(frozen=True)
class Queries:
    """A batch of n queries."""

    items: NDArray[np.int32]
    """Item numbers, int32 [n, length]; -1 pads at the end. An item can occur twice."""
    weights: NDArray[np.float32]
    """Weights of the items, float32 [n, length]; 0 for padding."""
    excluded: NDArray[np.int32]
    """Item numbers that are not returned, int32 [n, width]; -1 is padding."""

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, rows: slice | NDArray[np.intp]) -> Queries:
        return Queries(self.items[rows], self.weights[rows], self.excluded[rows])

    @classmethod
    def from_items(cls, item_numbers: NDArray[np.int32]) -> Queries:
        """Return one query per item, int32 [n]; only the item itself is excluded."""
        column = item_numbers[:, None]
        return cls(column, np.ones(column.shape, np.float32), column)

    @classmethod
    def from_histories(cls, holdout: Holdout, recency: float, length: int) -> Queries:
        """Return one query per user, from the interactions before the target.

        The whole history is excluded from the result, of longer histories the newest `MAX_EXCLUDED` items.

        Args:
            holdout: users, their histories and targets.
            recency: factor on the weight for each step back, in (0, 1]: the newest item has weight 1, the one
                before it `recency`, then `recency` squared.
            length: number of newest items with a weight.
        """
        histories = holdout.histories(max(length, MAX_EXCLUDED))
        items = histories[:, :length]
        weights = recency ** np.arange(items.shape[1], dtype=np.float32)
        return cls(items, np.where(items == PADDING, 0, weights).astype(np.float32), histories)
