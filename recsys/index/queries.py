"""What a model is asked: items with weights, and the items that may not be in the answer.

One item, several, or a user's history: one shape for all, so that an index, exact search and every baseline
can be asked, and measured, the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys.data.splits import Holdout

PADDING = -1

MOST_EXCLUDED = 1_000
"""Of a history only so many newest items are left out of the answer: 4 kB a question, however long a bot's is.

A person with more is rare, an answer that names one of the older items then is no error, and every model is
measured alike.
"""


def middle(recencies: Sequence[float]) -> float:
    """The recency to look up with while the best one is not known yet: the median, the larger of two."""
    return sorted(recencies)[len(recencies) // 2]


@dataclass(frozen=True)
class Queries:
    """n look-ups."""

    items: NDArray[np.int32]
    """Item numbers, int32 [n, length]; -1 pads at the end. An item may stand there twice."""
    weights: NDArray[np.float32]
    """Of the items, float32 [n, length]; 0 where padded."""
    excluded: NDArray[np.int32]
    """Item numbers that may not be in the answer, int32 [n, width]; -1 pads."""

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, rows: slice | NDArray[np.intp]) -> Queries:
        return Queries(self.items[rows], self.weights[rows], self.excluded[rows])

    @classmethod
    def of_items(cls, numbers: NDArray[np.int32]) -> Queries:
        """Look-ups from one item each, int32 [n]; nothing but the item itself is left out."""
        column = numbers[:, None]
        return cls(column, np.ones(column.shape, np.float32), column)

    @classmethod
    def of_histories(cls, holdout: Holdout, recency: float, length: int) -> Queries:
        """Look-ups from what each user touched before the target.

        All of it is left out of the answer, of longer histories the newest `MOST_EXCLUDED` items.

        Args:
            holdout: users, their histories and targets.
            recency: weight of an item for each step back, in (0, 1]: the newest item weighs 1, the one before
                `recency`, then `recency` squared.
            length: newest items that count.
        """
        everything = holdout.histories(max(length, MOST_EXCLUDED))
        items = everything[:, :length]
        weights = recency ** np.arange(items.shape[1], dtype=np.float32)
        return cls(items, np.where(items == PADDING, 0, weights).astype(np.float32), everything)
