"""What tuning may choose from: `tune.ranges`, checked against the config that it starts from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pipelines.context.overrides import with_settings
from recsys.config.sections import Config, Range, Span
from recsys.errors import ConfigError

SOURCE = "tune.ranges"

TABLES = ("prepare", "tower", "candidates", "train")
"""Whose settings change the tower, and so what is found on the validation target."""

FIXED = {
    "prepare.max_dead_letter_ratio": "it says which input is too bad",
    "prepare.rows_per_unit": "it is about memory",
    "train.shuffle_pairs": "it is about memory",
    "train.validation_users": "all trials must be asked the same questions",
    "train.seed": "that would be a search for luck",
}
"""Settings of those tables that may not be tuned, and why."""

DIGITS = 4
"""Significant digits of a number that is suggested: a person is to read and to paste it."""


@dataclass(frozen=True)
class Numbers:
    """All numbers from `low` to `high`, both included."""

    low: float
    high: float
    log: bool
    whole: bool

    @property
    def size(self) -> float:
        """How many there are."""
        return self.high - self.low + 1 if self.whole else math.inf

    def tidy(self, value: float) -> float:
        """The number with few digits that is near `value`."""
        return value if self.whole else min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)


@dataclass(frozen=True)
class Values:
    """These and no others."""

    values: tuple[Any, ...]

    @property
    def size(self) -> float:
        """How many there are."""
        return len(self.values)

    def tidy(self, value: Any) -> Any:
        """The value itself."""
        return value


@dataclass(frozen=True)
class Space:
    """Where to search, and where to begin."""

    ranges: dict[str, Numbers | Values]
    """By the name of the setting, in alphabetical order."""
    start: dict[str, Any]
    """What the config has; lies in every range."""

    @property
    def size(self) -> float:
        """How many combinations there are."""
        return math.prod(choice.size for choice in self.ranges.values())

    def settings(self, point: dict[str, Any]) -> dict[str, Any]:
        """What is different at a point from the start, its numbers tidied."""
        changed = {name: self.ranges[name].tidy(value) for name, value in point.items() if value != self.start[name]}
        return {name: value for name, value in changed.items() if value != self.start[name]}


def check(config: Config) -> Space:
    """The ranges of a config, each extended to the value that the config has.

    Raises:
        ConfigError: naming every range that cannot be searched.
    """
    if not config.tune.ranges:
        raise ConfigError(f"{SOURCE} must name settings to search. Received: none.")
    ranges, start, problems = {}, {}, []
    for name, wanted in sorted(config.tune.ranges.items()):
        try:
            ranges[name], start[name] = _check(config, name, wanted)
        except ConfigError as problem:
            problems.append(str(problem))
    if problems:
        raise ConfigError("\n".join(problems))
    return Space(ranges, start)


def _check(config: Config, name: str, wanted: Range) -> tuple[Numbers | Values, Any]:
    """One range, and the value to start from."""
    table, dot, key = name.partition(".")
    if not (table and dot and key):
        raise ConfigError(f"{SOURCE}: a setting is named table.key. Received: {name!r}. For example: train.temperature")
    fields = Config.model_fields.get(table)
    if fields is None or key not in type(getattr(config, table)).model_fields:
        with_settings(config, {name: None}, SOURCE)  # raises, with the name that was meant
    _may_be_tuned(name, table)
    start = _value(config, name)
    if isinstance(wanted, Span):
        return _numbers(config, name, wanted, start), start
    values = [_value(with_settings(config, {name: value}, SOURCE), name) for value in wanted]
    twice = sorted({repr(value) for value in values if values.count(value) > 1})
    if twice:
        raise ConfigError(f"{SOURCE}: {name} must list each value once. Received twice: {', '.join(twice)}.")
    return Values(tuple(values if start in values else [start, *values])), start


def _may_be_tuned(name: str, table: str) -> None:
    if table not in TABLES:
        raise ConfigError(
            f"{SOURCE}: only settings of {', '.join(TABLES)} change what is found on the validation target. "
            f"Received: {name}. Set it in its own table."
        )
    if name in FIXED:
        raise ConfigError(f"{SOURCE}: {name} may not be tuned: {FIXED[name]}. Set it in its own table.")


def _numbers(config: Config, name: str, span: Span, start: Any) -> Numbers:
    table, _, key = name.partition(".")
    kinds = _kinds(type(getattr(config, table)).model_fields[key].annotation)
    whole = float not in kinds
    if whole and int not in kinds:
        raise ConfigError(f"{SOURCE}: {name} is no number. Received: a range from low to high. Give a list of values.")
    if whole and not (span.low.is_integer() and span.high.is_integer()):
        raise ConfigError(
            f"{SOURCE}: {name} must be a whole number. Received: low {span.low}, high {span.high}. "
            "Give whole bounds, or a list of values."
        )
    number = int if whole else float
    for corner in (span.low, span.high):
        with_settings(config, {name: number(corner)}, SOURCE)
    if start is None or (span.log and start <= 0):
        scale = ", and that has no logarithm" if span.log and start is not None else ""
        raise ConfigError(
            f"{SOURCE}: {name} is {'not set' if start is None else start} in the config{scale}, so the search cannot "
            f"begin there. Received: a range from low to high. Set {name}, or give a list of values."
        )
    return Numbers(min(number(span.low), start), max(number(span.high), start), span.log, whole)


def _kinds(annotation: Any) -> set[Any]:
    """Types that a setting may have."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kinds(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return {kind for part in get_args(annotation) for kind in _kinds(part)}
    return {annotation}


def _value(config: Config, name: str) -> Any:
    table, _, key = name.partition(".")
    return getattr(getattr(config, table), key)
