"""Splits of the interactions into training data and held-out targets: leave-one-out, or at points in time.

Leave-one-out: the last item of each user is the test target, the one before it the validation target. Only users
with at least three interactions take part; all interactions of the others are training data.

Global time: the first item of each user after a point in time is the target, and the training data end at that
point for all users. It is harder, and closer to production, where the future is unknown for every user.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from recsys.config.sections import EvaluateConfig
from recsys.data.sequences import Sequences

MIN_LENGTH = 3
"""A query, a validation target and a test target."""

DAY_S = 86_400.0

HELD_OUT_SHARE = 1 / 3
"""Share of the users who are left out to judge likeness."""

Weight = Literal["weight", "weight_before_validation", "weight_without_held_out"]
"""Weights of a pair. They count the interactions before the test targets, those before the validation targets, and
those before the test targets of users who are not held out."""
WEIGHTS = get_args(Weight)

Target = Literal["validation", "test"]
TARGET_FROM_END: dict[Target, int] = {"test": 0, "validation": 1}
"""Leave-one-out: how many of the user's interactions come after the target."""


@dataclass(frozen=True)
class Holdout:
    """Held-out targets, one per query: the item that followed the items of a user."""

    items: NDArray[np.int32]
    """The item numbers of all users, int32 [num_interactions]."""
    starts: NDArray[np.int64]
    """Position of each user's first item, int64 [num_queries]."""
    ends: NDArray[np.int64]
    """Position of each user's target, int64 [num_queries]; the items from start to end precede it."""

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def queries(self) -> NDArray[np.int32]:
        """Item number of the item before the target, int32 [num_queries]."""
        return self.items[self.ends - 1]

    @property
    def targets(self) -> NDArray[np.int32]:
        """Item number of the target, int32 [num_queries]."""
        return self.items[self.ends]

    def histories(self, max_items: int) -> NDArray[np.int32]:
        """Return the `max_items` newest items before each target, newest first, int32 [num_queries, width]; -1 pads."""
        width = min(int((self.ends - self.starts).max(initial=0)), max_items)
        newest = np.full((len(self), width), -1, np.int32)
        for step in range(width):  # by column: no temporary array is larger than the result
            rows = np.flatnonzero(self.ends - self.starts > step)
            newest[rows, step] = self.items[self.ends[rows] - 1 - step]
        return newest

    def subsample(self, max_queries: int) -> Holdout:
        """Return at most `max_queries` of the queries, evenly spaced."""
        rows = np.linspace(0, len(self) - 1, min(len(self), max_queries)).astype(np.intp)
        return Holdout(self.items, self.starts[rows], self.ends[rows])


class TimeCut(NamedTuple):
    """The points in time of a split by global time, in seconds."""

    validation: float
    """Interactions from this time on are not known before validation."""
    test: float
    """Interactions from this time on are not known before the test."""


def time_cut(newest: float, config: EvaluateConfig) -> TimeCut | None:
    """Return the points in time for a log that ends at `newest` seconds; None for leave-one-out."""
    if config.split == "leave_one_out":
        return None
    test = newest - config.test_days * DAY_S
    return TimeCut(test - config.validation_days * DAY_S, test)


def held_out_users(user_ids: Iterable[str], share: float = HELD_OUT_SHARE) -> NDArray[np.bool_]:
    """Return which users are left out of the fits that likeness is judged by, bool [num_users].

    A user's id alone decides, so the choice never changes.
    """
    hashes = (hashlib.blake2b(user_id.encode(), digest_size=8, person=b"held-out").digest() for user_id in user_ids)
    return np.array([int.from_bytes(each) < share * 2**64 for each in hashes], np.bool_)


@dataclass(frozen=True)
class Split:
    """Sequences, split into training data and held-out targets.

    Args:
        sequences: the items of each user, oldest first.
        time_cut: points in time of a split by global time; None for leave-one-out.
    """

    sequences: Sequences
    time_cut: TimeCut | None = None

    @cached_property
    def held_out(self) -> NDArray[np.bool_]:
        """Users left out of the fits that likeness is judged by, bool [num_users]."""
        return held_out_users(self.sequences.user_ids)

    def training_mask(self, weight: Weight) -> NDArray[np.bool_]:
        """Return which interactions count in a weight of the pairs, bool [num_interactions]."""
        if weight == "weight_before_validation":
            return self.known_before("validation")
        known = self.known_before("test")
        return known & ~self.held_out[self.sequences.users] if weight == "weight_without_held_out" else known

    def known_before(self, target: Target) -> NDArray[np.bool_]:
        """Return which interactions may be used to predict the target, bool [num_interactions]."""
        if self.time_cut is not None:
            end: float = getattr(self.time_cut, target)
            mask: NDArray[np.bool_] = self.sequences.times < end
            return mask
        lengths = self.sequences.lengths
        takes_part = np.repeat(lengths >= MIN_LENGTH, lengths)
        return ~takes_part | (self.sequences.positions_from_end > TARGET_FROM_END[target])

    def holdout(self, target: Target, max_users: int, seed: int = 0) -> Holdout:
        """Return the held-out targets of all users, or of a random sample of `max_users` users."""
        starts, stops = self.sequences.offsets[:-1], self.sequences.offsets[1:]
        if self.time_cut is None:
            users = np.flatnonzero(self.sequences.lengths >= MIN_LENGTH)
            ends = stops - 1 - TARGET_FROM_END[target]
        else:
            num_known = np.concatenate([[0], np.cumsum(self.known_before(target))])
            ends = starts + num_known[stops] - num_known[starts]
            until = np.inf if target == "test" else self.time_cut.test
            has_target = (ends > starts) & (ends < stops)
            has_target[has_target] = self.sequences.times[ends[has_target]] < until
            users = np.flatnonzero(has_target)
        if len(users) > max_users:
            rng = np.random.default_rng(seed)
            users = users[np.sort(rng.choice(len(users), max_users, replace=False))]
        return Holdout(self.sequences.items, starts[users], ends[users])
