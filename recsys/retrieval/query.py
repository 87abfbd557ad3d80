"""What a release can be asked: a place in the space of the embeddings, what may be there, and how many."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from recsys.errors import InputError

Value = str | float | bool
OnUnknown = Literal["error", "skip", "fallback"]


def finite(number: float) -> bool:
    """Whether a float holds a number, which may be an integer of any size: at those `math.isfinite` fails."""
    return -sys.float_info.max <= number <= sys.float_info.max


class Weighted(NamedTuple):
    """An item, and how much it counts beside the others."""

    item_id: str
    weight: float = 1.0


@dataclass(frozen=True)
class Condition:
    """What a column of the catalog must hold. A missing value meets none."""

    column: str
    any_of: tuple[Value, ...] | None = None
    """One of these; a column of lists must hold one of them."""
    least: float | None = None
    """A number at least this."""
    most: float | None = None
    """A number at most this."""

    def __post_init__(self) -> None:
        ranged = self.least is not None or self.most is not None
        if (self.any_of is not None) == ranged:
            raise InputError(
                f"a condition must have values or a range. Received: {self.column!r} with "
                f"{'both' if ranged else 'neither'}."
            )
        if self.any_of == ():
            raise InputError(f"a condition must name at least one value. Received: none for {self.column!r}.")
        for name, bound in (("least", self.least), ("most", self.most)):
            if bound is not None and not finite(bound):
                raise InputError(f"{name} of {self.column!r} must be a finite number. Received: {bound}.")
        for value in self.any_of or ():
            if not (isinstance(value, str) or finite(value)):
                raise InputError(f"numbers of {self.column!r} must be finite. Received: {value}.")
        if self.least is not None and self.most is not None and self.least > self.most:
            raise InputError(f"least of {self.column!r} must not be above most. Received: {self.least}, {self.most}.")


@dataclass(frozen=True)
class Diversity:
    """How unlike each other the neighbors have to be."""

    balance: float = 1.0
    """Lambda of maximal marginal relevance: 1 orders by similarity alone, 0 by unlikeness to those before."""
    at_most: Mapping[str, int] = field(default_factory=dict)
    """Column -> so many neighbors with the same value. Those without a value do not count."""

    def __post_init__(self) -> None:
        if not 0 <= self.balance <= 1:
            raise InputError(f"lambda of the diversity must be from 0 to 1. Received: {self.balance}.")
        for column, most in self.at_most.items():
            if most < 1:
                raise InputError(f"at_most of {column!r} must be at least 1. Received: {most}.")


ANYTHING = Diversity()
"""No diversity is asked for."""


@dataclass(frozen=True)
class Question:
    """One question. Nothing in it is looked up yet: ids may be unknown, columns missing."""

    items: tuple[Weighted, ...] = ()
    """What the neighbors should be like."""
    negatives: tuple[Weighted, ...] = ()
    """What they should rather not be like: half as much as the items together."""
    history: tuple[str, ...] = ()
    """What a user touched, newest last: each step back weighs the release's recency times as much."""
    vector: tuple[float, ...] | None = None
    """A place of its own, which weighs 1 beside items."""
    k: int = 10
    """How many neighbors."""
    offset: int = 0
    """So many nearest are skipped."""
    min_similarity: float | None = None
    """Less similar ones are none."""
    min_probability: float | None = None
    """Less probable ones are none; of a calibrated release."""
    exclude: tuple[str, ...] = ()
    """Ids that may not be in the answer. What is asked about never is."""
    allow: tuple[str, ...] | None = None
    """Only these may be."""
    where: tuple[Condition, ...] = ()
    """All of them hold for each neighbor."""
    only_available: bool = False
    """Neighbors are available; an item of which that is not known is."""
    diversity: Diversity = ANYTHING
    on_unknown: OnUnknown = "error"
    """What to do with unknown items: refuse, go on without them, or give popular items where none is known."""
    why: bool = False
    """Tell what each neighbor has in common with the items."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"k must be at least 1. Received: {self.k}.")
        if self.offset < 0:
            raise InputError(f"offset must be at least 0. Received: {self.offset}.")
        if not (self.items or self.history or self.vector is not None):
            raise InputError(
                f"a question must name items, a history or a vector. Received: "
                f"{'negative items alone' if self.negatives else 'none of them'}."
            )
        for item_id, weight in (*self.items, *self.negatives):
            if not (finite(weight) and weight > 0):
                raise InputError(
                    f"weights must be finite and above 0. Received: {weight} of {item_id!r}. "
                    "Name what it should not be like as a negative item."
                )
        liked = {item_id for item_id, _ in self.items} | set(self.history)
        both = sorted(liked & {item_id for item_id, _ in self.negatives})
        if both:
            raise InputError(f"an item must not be asked about and be a negative one too. Received: {both[0]!r}.")
        if self.min_similarity is not None and self.min_probability is not None:
            raise InputError("a question must have min_similarity or min_probability. Received: both.")
        if self.min_similarity is not None and not finite(self.min_similarity):
            raise InputError(f"min_similarity must be a finite number. Received: {self.min_similarity}.")
        if self.min_probability is not None and not 0 <= self.min_probability <= 1:
            raise InputError(f"min_probability must be from 0 to 1. Received: {self.min_probability}.")

    @classmethod
    def of_item(cls, item_id: str, k: int = 10) -> Question:
        """More like one item."""
        return cls(items=(Weighted(item_id),), k=k)

    @property
    def only_item(self) -> str | None:
        """The item, if the question is about one item alone."""
        alone = len(self.items) == 1 and not (self.negatives or self.history or self.vector is not None)
        return self.items[0].item_id if alone else None
