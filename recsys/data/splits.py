"""What is known, and what is asked for: leave-one-out, or a cut through time.

Leave-one-out: the last item of a user is the test target, the one before it the validation target. Only users
with at least three interactions take part; the others are training data as a whole.

Global time: a user's first item after an instant is the target, and nothing after that instant, of whatever
user, is known. It is harder, and closer to a night: the future is unknown for everybody.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recsys.config.sections import EvaluateConfig
from recsys.data.sequences import Sequences

MIN_LENGTH = 3
"""A query, a validation target and a test target."""

DAY_S = 86_400.0

Target = Literal["validation", "test"]
FROM_END: dict[Target, int] = {"test": 0, "validation": 1}
"""Leave-one-out: how many of the user's interactions come after the target."""


@dataclass(frozen=True)
class Holdout:
    """Questions with one right answer each: after these items, the user touched the target."""

    items: NDArray[np.int32]
    """The items of all users, int32 [num_interactions]."""
    starts: NDArray[np.int64]
    """Where each user's items start, int64 [num_questions]."""
    ends: NDArray[np.int64]
    """Where each user's target is, int64 [num_questions]; what lies between is known before it."""

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def queries(self) -> NDArray[np.int32]:
        """The item before the target, int32 [num_questions]."""
        return self.items[self.ends - 1]

    @property
    def targets(self) -> NDArray[np.int32]:
        """The right answers, int32 [num_questions]."""
        return self.items[self.ends]

    def histories(self, most: int) -> NDArray[np.int32]:
        """The newest items before the target, at most `most`, newest first, int32 [num_questions, width]; -1 pads."""
        width = min(int((self.ends - self.starts).max(initial=0)), most)
        newest = np.full((len(self), width), -1, np.int32)
        for step in range(width):  # column by column: the result is all that is as large as the result
            rows = np.flatnonzero(self.ends - self.starts > step)
            newest[rows, step] = self.items[self.ends[rows] - 1 - step]
        return newest

    def thinned(self, most: int) -> Holdout:
        """At most `most` of the questions, spread evenly over them."""
        rows = np.linspace(0, len(self) - 1, min(len(self), most)).astype(np.intp)
        return Holdout(self.items, self.starts[rows], self.ends[rows])


class Cut(NamedTuple):
    """The instants of a split through time, in seconds."""

    validation: float
    """From here on, nothing is known before validation."""
    test: float
    """From here on, nothing is known before the test."""


def cut(newest: float, config: EvaluateConfig) -> Cut | None:
    """Where time is cut for a log whose newest interaction is at `newest` seconds; None for leave-one-out."""
    if config.split == "leave_one_out":
        return None
    test = newest - config.test_days * DAY_S
    return Cut(test - config.validation_days * DAY_S, test)


@dataclass(frozen=True)
class Split:
    """A log in known and held-out interactions.

    Args:
        sequences: users' items, oldest first.
        cut: instants of a split through time; None leaves one out.
    """

    sequences: Sequences
    cut: Cut | None = None

    def known_before(self, target: Target) -> NDArray[np.bool_]:
        """Which interactions a model may have seen before it is asked for the target, bool [num_interactions]."""
        if self.cut is not None:
            instant: float = getattr(self.cut, target)
            known: NDArray[np.bool_] = self.sequences.times < instant
            return known
        lengths = self.sequences.lengths
        takes_part = np.repeat(lengths >= MIN_LENGTH, lengths)
        return ~takes_part | (self.sequences.from_end > FROM_END[target])

    def holdout(self, target: Target, max_users: int, seed: int = 0) -> Holdout:
        """The questions, of all users or of a fixed sample of `max_users` of them."""
        starts, last = self.sequences.offsets[:-1], self.sequences.offsets[1:]
        if self.cut is None:
            users = np.flatnonzero(self.sequences.lengths >= MIN_LENGTH)
            ends = last - 1 - FROM_END[target]
        else:
            known = np.concatenate([[0], np.cumsum(self.known_before(target))])
            ends = starts + known[last] - known[starts]
            until = np.inf if target == "test" else self.cut.test
            asked = (ends > starts) & (ends < last)
            asked[asked] = self.sequences.times[ends[asked]] < until
            users = np.flatnonzero(asked)
        if len(users) > max_users:
            rng = np.random.default_rng(seed)
            users = users[np.sort(rng.choice(len(users), max_users, replace=False))]
        return Holdout(self.sequences.items, starts[users], ends[users])
