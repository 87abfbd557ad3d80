"""A query: the items, history or vector to find neighbors for, the conditions on neighbors, and their number."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Literal, NamedTuple

from recsys.config.senses import SENSES, Sense
from recsys.errors import InputError

Value = str | float | bool
"""A value of a catalog column; of a list column, one element."""
OnUnknown = Literal["error", "skip", "fallback"]


def is_finite(number: float) -> bool:
    """Return whether a number is finite. Accepts integers of any size, on which `math.isfinite` raises."""
    return -sys.float_info.max <= number <= sys.float_info.max


class WeightedItem(NamedTuple):
    """An item id and its weight relative to the other items of the query."""

    item_id: str
    weight: float = 1.0


@dataclass(frozen=True)
class Condition:
    """A condition on one catalog column. A missing value never satisfies it."""

    column: str
    any_of: tuple[Value, ...] | None = None
    """Accepted values. A list column must contain at least one of them."""
    minimum: float | None = None
    """Smallest accepted number."""
    maximum: float | None = None
    """Largest accepted number."""

    def __post_init__(self) -> None:
        has_range = self.minimum is not None or self.maximum is not None
        if (self.any_of is not None) == has_range:
            raise InputError(
                f"a condition must have values or a range. Received: {self.column!r} with "
                f"{'both' if has_range else 'neither'}."
            )
        if self.any_of == ():
            raise InputError(f"a condition must name at least one value. Received: none for {self.column!r}.")
        for name, bound in (("minimum", self.minimum), ("maximum", self.maximum)):
            if bound is not None and not is_finite(bound):
                raise InputError(f"{name} of {self.column!r} must be a finite number. Received: {bound}.")
        for value in self.any_of or ():
            if not (isinstance(value, str) or is_finite(value)):
                raise InputError(f"numbers of {self.column!r} must be finite. Received: {value}.")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise InputError(
                f"minimum of {self.column!r} must not be above maximum. Received: {self.minimum}, {self.maximum}."
            )


@dataclass(frozen=True)
class Diversity:
    """Diversity of the neighbors."""

    mmr_lambda: float = 1.0
    """Lambda of maximal marginal relevance: 1 ranks by similarity alone, 0 by difference from the items
    ranked before."""
    max_per_value: Mapping[str, int] = field(default_factory=dict)
    """Column -> maximum number of neighbors with the same value. Missing values are not limited."""

    def __post_init__(self) -> None:
        if not 0 <= self.mmr_lambda <= 1:
            raise InputError(f"mmr_lambda must be from 0 to 1. Received: {self.mmr_lambda}.")
        for column, limit in self.max_per_value.items():
            if limit < 1:
                raise InputError(f"max_per_value of {column!r} must be at least 1. Received: {limit}.")


NO_DIVERSITY = Diversity()


def resolve_sense(sense: Sense | None, history: Sequence[str]) -> Sense:
    """Return the sense of a query: by default `next` if it has a history, otherwise `similar`."""
    return sense or ("next" if history else "similar")


@dataclass(frozen=True)
class Query:
    """A request for similar items. It is independent of a release: ids may be unknown, columns may be missing."""

    items: tuple[WeightedItem, ...] = ()
    """Items that the neighbors should resemble."""
    negatives: tuple[WeightedItem, ...] = ()
    """Items that the neighbors should not resemble; together they have half the weight of `items`."""
    history: tuple[str, ...] = ()
    """Item ids that a user interacted with, newest last. Each step back multiplies the weight by the release's
    recency."""
    vector: tuple[float, ...] | None = None
    """An embedding. If the query has items too, its weight is 1."""
    k: int = 10
    """Maximum number of neighbors."""
    offset: int = 0
    """Number of nearest neighbors to skip."""
    min_similarity: float | None = None
    """Smallest similarity of a neighbor."""
    min_probability: float | None = None
    """Smallest probability of a neighbor; requires a calibrated release."""
    exclude: tuple[str, ...] = ()
    """Item ids that must not be returned. Query items are always excluded."""
    allow: tuple[str, ...] | None = None
    """The only item ids that may be returned. None allows all items."""
    where: tuple[Condition, ...] = ()
    """Conditions that every neighbor satisfies."""
    only_available: bool = False
    """Leave out items whose `available` is false; an item without that value counts as available."""
    diversity: Diversity = NO_DIVERSITY
    on_unknown: OnUnknown = "error"
    """Handling of unknown item ids: raise an error, skip them, or return popular items if no item is known."""
    sense: Sense | None = None
    """The sense of similarity. By default `next` for a query with a history, otherwise `similar`."""
    explain: bool = False
    """Return an explanation with each neighbor: what it has in common with the items of the query."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"k must be at least 1. Received: {self.k}.")
        if self.offset < 0:
            raise InputError(f"offset must be at least 0. Received: {self.offset}.")
        if not (self.items or self.history or self.vector is not None):
            raise InputError(
                f"a query must name items, a history or a vector. Received: "
                f"{'negative items alone' if self.negatives else 'none of them'}."
            )
        for item_id, weight in (*self.items, *self.negatives):
            if not (is_finite(weight) and weight > 0):
                raise InputError(
                    f"weights must be finite and above 0. Received: {weight} of {item_id!r}. "
                    "To search away from an item, list it in negatives."
                )
        if self.negatives:
            query_ids = {item_id for item_id, _ in self.items} | set(self.history)
            contradictory = sorted(query_ids & {item_id for item_id, _ in self.negatives})
            if contradictory:
                raise InputError(
                    f"an item must not be in items and in negatives. Received: {contradictory[0]!r} in both."
                )
        if self.sense not in (None, *SENSES):
            raise InputError(f"sense must be one of {', '.join(SENSES)}. Received: {self.sense!r}.")
        self._validate_minimum()

    def _validate_minimum(self) -> None:
        if self.min_similarity is not None and self.min_probability is not None:
            raise InputError("a query must have min_similarity or min_probability. Received: both.")
        if self.min_similarity is not None and not is_finite(self.min_similarity):
            raise InputError(f"min_similarity must be a finite number. Received: {self.min_similarity}.")
        if self.min_probability is not None and not 0 <= self.min_probability <= 1:
            raise InputError(f"min_probability must be from 0 to 1. Received: {self.min_probability}.")

    @classmethod
    def from_item(cls, item_id: str, k: int = 10, sense: Sense | None = None) -> Query:
        """Return the query for the neighbors of one item."""
        return cls(items=(WeightedItem(item_id),), k=k, sense=sense)

    def for_item(self, item_id: str) -> Query:
        """Return the same query for one item, of weight 1, instead of another; its conditions are not checked again."""
        query = object.__new__(Query)
        query.__dict__.update(self.__dict__, items=(WeightedItem(item_id),))
        return query

    @cached_property
    def conditions(self) -> str:
        """All fields as text except the items and the page. `for_item` copies it, if it is known."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        del values["items"]
        values |= {"k": 1, "offset": 0, "explain": False, "sense": self.answered_in}
        return ", ".join(f"{name}={value!r}" for name, value in values.items())

    @property
    def answered_in(self) -> Sense:
        """The sense in which the query is answered."""
        return resolve_sense(self.sense, self.history)

    @property
    def has_filters(self) -> bool:
        """Whether the query restricts which items may be returned."""
        return bool(self.where or self.only_available or self.exclude or self.allow is not None)

    @property
    def single_item_id(self) -> str | None:
        """The item id, if the query consists of one item and nothing else; otherwise None."""
        is_single = len(self.items) == 1 and not (self.negatives or self.history or self.vector is not None)
        return self.items[0].item_id if is_single else None


@dataclass(frozen=True)
class TogetherQuery:
    """A request for the items that users interact with after an item."""

    item_id: str
    k: int = 10
    """Maximum number of neighbors."""
    offset: int = 0
    """Number of neighbors with the highest scores to skip."""
    min_users: int = 0
    """Smallest number of users who interacted with the item and then with the neighbor. Above 0, only the item's
    followers are returned; see `recsys.data.followers`."""
    exclude: tuple[str, ...] = ()
    """Item ids that must not be returned. The query item is always excluded."""
    allow: tuple[str, ...] | None = None
    """The only item ids that may be returned. None allows all items."""
    where: tuple[Condition, ...] = ()
    """Conditions that every neighbor satisfies."""
    only_available: bool = False
    """Leave out items whose `available` is false; an item without that value counts as available."""
    on_unknown: OnUnknown = "error"
    """Handling of unknown item ids: raise an error, skip them, or return popular items."""

    def __post_init__(self) -> None:
        if self.min_users < 0:
            raise InputError(f"min_users must be at least 0. Received: {self.min_users}.")
        self.base  # noqa: B018 - validates the other fields

    @cached_property
    def base(self) -> Query:
        """The search for the nearest items under the same conditions."""
        return Query(
            items=(WeightedItem(self.item_id),),
            k=self.k,
            offset=self.offset,
            exclude=self.exclude,
            allow=self.allow,
            where=self.where,
            only_available=self.only_available,
            on_unknown=self.on_unknown,
            sense="next",
        )
