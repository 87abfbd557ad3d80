"""Leave-one-out: the last item of a user is the test target, the one before it the validation target.

Only users with at least three interactions take part; the others are training data as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from recsys.sequences import Sequences

MIN_LENGTH = 3
"""A query, a validation target and a test target."""

Target = Literal["validation", "test"]
FROM_END: dict[Target, int] = {"test": 0, "validation": 1}
"""How many of the user's interactions come after the target."""


@dataclass(frozen=True)
class Holdout:
    """Questions with one right answer each: after `query`, the user touched `target`."""

    queries: NDArray[np.int32]
    """Item numbers, int32 [num_users]."""
    targets: NDArray[np.int32]
    """Item numbers, int32 [num_users]."""

    def __len__(self) -> int:
        return len(self.queries)


def leave_one_out(sequences: Sequences, target: Target, max_users: int, seed: int = 0) -> Holdout:
    """The item before the target as query, for all users or a fixed sample of `max_users` of them."""
    ends = sequences.offsets[1:][sequences.lengths >= MIN_LENGTH]
    if len(ends) > max_users:
        rng = np.random.default_rng(seed)
        ends = ends[np.sort(rng.choice(len(ends), max_users, replace=False))]
    position = ends - 1 - FROM_END[target]
    return Holdout(sequences.items[position - 1], sequences.items[position])


def known_before(sequences: Sequences, target: Target) -> NDArray[np.bool_]:
    """Which interactions come before the target of their user, bool [num_interactions]."""
    takes_part = np.repeat(sequences.lengths >= MIN_LENGTH, sequences.lengths)
    return ~takes_part | (sequences.from_end > FROM_END[target])
