"""Splits of the interactions into training data and held-out targets: leave-one-out, or at points in time.

Leave-one-out: the last item of each user is the test target. Only users with at least three interactions take part;
all interactions of the others are training data.

Global time: the first item of each user after a point in time is the target, and the training data end at that
point for all users. It is harder, and closer to production, where the future is unknown for every user.

For validation, a share of the users is held out: their interactions are no training data, so several items of each
are targets, and what they associate over their whole histories is evidence of likeness.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recsys.config.sections import EvaluateConfig
from recsys.data.sequences import Sequences

MIN_LENGTH = 3
"""A query, a validation target and a test target."""
MAX_TARGETS = 3
"""Maximum number of validation targets of a user, the nearest to the test. As a third of the users is held out, there
are about as many validation queries as test queries: with one target of each user, the few hundred users held out of
MovieLens 100k do not tell passes apart, and targets far from the test prefer other recencies on Last.fm."""

DAY_S = 86_400.0

HELD_OUT_SHARE = 1 / 3
"""Share of the users who are held out for validation."""

Target = Literal["validation", "test"]
Weight = Literal["weight", "validation_weight"]
WEIGHTS: Mapping[Target, Weight] = {"test": "weight", "validation": "validation_weight"}
"""Weights of a pair: each counts the training data for one target."""


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
    """Return which users are held out for validation, bool [num_users].

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
        """Users held out for validation, bool [num_users]."""
        return held_out_users(self.sequences.user_ids)

    def training_mask(self, target: Target) -> NDArray[np.bool_]:
        """Return which interactions are training data for a target, bool [num_interactions].

        For the test, those before the test targets. For validation, of the users who are not held out, those before the
        test targets or, in a split at points in time, before the one of validation.
        """
        if self.time_cut is not None:
            known: NDArray[np.bool_] = self.sequences.times < getattr(self.time_cut, target)
        else:
            lengths = self.sequences.lengths
            known = np.repeat(lengths < MIN_LENGTH, lengths) | (self.sequences.positions_from_end > 0)
        return known & ~self.held_out[self.sequences.users] if target == "validation" else known

    def popularity(self, target: Target, num_items: int) -> NDArray[np.int64]:
        """Return the number of interactions of each item in the training data for a target, int64 [num_items]."""
        return np.bincount(self.sequences.items[self.training_mask(target)], minlength=num_items)

    def holdout(self, target: Target, max_queries: int, seed: int = 0) -> Holdout:
        """Return the held-out targets.

        For the test, one of each user. For validation, up to `MAX_TARGETS` of each user held out, between training data
        and test target.

        Args:
            target: which.
            max_queries: maximum number of targets. Of more, the nearest to the training data or, in leave-one-out, to
                the test are chosen, and at random between equally near ones.
            seed: of that choice.
        """
        first_choice, step, takes_part, end_of_targets = self._targets(target)
        starts, stops = self.sequences.offsets[:-1], self.sequences.offsets[1:]
        rng = np.random.default_rng(seed)
        chosen: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        for rank in range(MAX_TARGETS if target == "validation" else 1):
            ends = first_choice + rank * step
            has_target = takes_part & (ends > starts) & (ends < stops)
            has_target[has_target] = self.sequences.times[ends[has_target]] < end_of_targets
            users = np.flatnonzero(has_target)
            remaining = max_queries - sum(len(each) for each, _ in chosen)
            if len(users) > remaining:
                users = np.sort(rng.choice(users, remaining, replace=False))
            chosen.append((starts[users], ends[users]))
        starts, ends = (np.concatenate(each) for each in zip(*chosen, strict=True))
        order = np.argsort(ends)
        return Holdout(self.sequences.items, starts[order], ends[order])

    def _targets(self, target: Target) -> tuple[NDArray[np.int64], int, NDArray[np.bool_], float]:
        """Return each user's first choice of a target, the step to the next choice, who takes part, and the end.

        Choices are positions in `items`, int64 [num_users]; targets are before the end, a time in seconds.
        """
        starts, stops = self.sequences.offsets[:-1], self.sequences.offsets[1:]
        trained_on = ~self.held_out if target == "validation" else np.zeros(len(self.sequences), np.bool_)
        if self.time_cut is None:
            newest = stops - 1 if target == "test" else stops - 2
            return newest, -1, (self.sequences.lengths >= MIN_LENGTH) & ~trained_on, np.inf
        before = np.concatenate([[0], np.cumsum(self.sequences.times < getattr(self.time_cut, target))])
        first = starts + before[stops] - before[starts]
        return first, 1, (first > starts) & ~trained_on, np.inf if target == "test" else self.time_cut.test
