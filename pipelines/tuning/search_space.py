"""Search space of a tuning: the part of `tune.ranges` for its sense, validated against the config of the start."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pipelines.context.overrides import with_settings
from recsys.config.sections import Config, Range, Span
from recsys.config.senses import Sense
from recsys.errors import ConfigError

SOURCE = "tune.ranges"

TUNABLE_TABLES = ("prepare", "tower", "candidates", "train", "similar")
"""Tables whose settings change a tower and therefore the value of a trial."""

NOT_TUNABLE = {
    "prepare.max_dead_letter_ratio": "it is a limit for bad input",
    "prepare.min_rating": "all trials must use the same interactions",
    "prepare.max_per_second": "all trials must use the same interactions",
    "train.validation_queries": "all trials must use the same validation queries",
    "train.seed": "differences between seeds are noise",
    "similar.enabled": "without it there is nothing to measure",
}
"""Settings of these tables that cannot be tuned -> reason."""

DIGITS = 4
"""Significant digits of suggested numbers, for readability."""


def ranges_of(config: Config, sense: Sense) -> dict[str, Range]:
    """Return the part of `tune.ranges` for a sense: the settings of `[similar]`, or all others for `next`."""
    own: Sense = "similar"
    return {name: values for name, values in config.tune.ranges.items() if (sense == own) == name.startswith(f"{own}.")}


@dataclass(frozen=True)
class NumberRange:
    """The numbers from `low` to `high`, inclusive."""

    low: float
    high: float
    log: bool
    is_integer: bool

    @property
    def size(self) -> float:
        """Number of different values."""
        return self.high - self.low + 1 if self.is_integer else math.inf

    def rounded(self, value: float) -> float:
        """Return `value` rounded to `DIGITS` significant digits, within the range; integers are not rounded."""
        return value if self.is_integer else min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)


@dataclass(frozen=True)
class Choices:
    """A list of values."""

    values: tuple[Any, ...]

    @property
    def size(self) -> float:
        """Number of different values."""
        return len(self.values)

    def rounded(self, value: Any) -> Any:
        """Return the value unchanged."""
        return value


@dataclass(frozen=True)
class SearchSpace:
    """The values to search and the values from which the search starts."""

    ranges: dict[str, NumberRange | Choices]
    """Setting -> values, in alphabetical order of the settings."""
    base: dict[str, Any]
    """Setting -> value in the config, which is in the range."""

    @classmethod
    def from_config(cls, config: Config, sense: Sense) -> SearchSpace:
        """Validate the ranges of a config, and extend each range to include the value in the config.

        Args:
            config: the base config.
            sense: the sense whose settings are searched; the ranges of the other sense are only validated.

        Raises:
            ConfigError: ranges are missing or invalid; the message names all invalid ranges.
        """
        ranges, base, errors = {}, {}, []
        for name, values in sorted(config.tune.ranges.items()):
            try:
                ranges[name], base[name] = _validate_range(config, name, values)
            except ConfigError as error:
                errors.append(str(error))
        if errors:
            raise ConfigError("\n".join(errors))
        own = sorted(ranges_of(config, sense))
        if not own:
            table = "of [similar]" if sense == "similar" else "outside of [similar]"
            raise ConfigError(
                f"{SOURCE} must name settings to search; for the sense {sense}, settings {table}. Received: "
                f"{', '.join(config.tune.ranges) or 'none'}."
            )
        return cls({name: ranges[name] for name in own}, {name: base[name] for name in own})

    @property
    def size(self) -> float:
        """Number of combinations."""
        return math.prod(values.size for values in self.ranges.values())

    def changed_settings(self, point: dict[str, Any]) -> dict[str, Any]:
        """Return the settings of a point that differ from the config, with rounded numbers."""
        changed = {name: self.ranges[name].rounded(value) for name, value in point.items() if value != self.base[name]}
        return {name: value for name, value in changed.items() if value != self.base[name]}


def _validate_range(config: Config, name: str, values: Range) -> tuple[NumberRange | Choices, Any]:
    """Return the range of a setting, and its value in the config."""
    table, dot, key = name.partition(".")
    if not (table and dot and key):
        raise ConfigError(f"{SOURCE}: a setting is named table.key. Received: {name!r}. For example: train.temperature")
    fields = Config.model_fields.get(table)
    if fields is None or key not in type(getattr(config, table)).model_fields:
        with_settings(config, {name: None}, SOURCE)  # raises an error that suggests the nearest name
    _require_tunable(name, table)
    current = _value(config, name)
    if isinstance(values, Span):
        return _number_range(config, name, values, current), current
    choices = [_value(with_settings(config, {name: value}, SOURCE), name) for value in values]
    duplicates = sorted({repr(value) for value in choices if choices.count(value) > 1})
    if duplicates:
        raise ConfigError(f"{SOURCE}: {name} must list each value once. Received twice: {', '.join(duplicates)}.")
    return Choices(tuple(choices if current in choices else [current, *choices])), current


def _require_tunable(name: str, table: str) -> None:
    if table not in TUNABLE_TABLES:
        raise ConfigError(
            f"{SOURCE}: only settings of {', '.join(TUNABLE_TABLES)} change the value of a trial. "
            f"Received: {name}. Set it in its own table."
        )
    if name in NOT_TUNABLE:
        raise ConfigError(f"{SOURCE}: {name} cannot be tuned: {NOT_TUNABLE[name]}. Set it in its own table.")


def _number_range(config: Config, name: str, span: Span, current: Any) -> NumberRange:
    table, _, key = name.partition(".")
    types = _types(type(getattr(config, table)).model_fields[key].annotation)
    is_integer = float not in types
    if is_integer and int not in types:
        raise ConfigError(
            f"{SOURCE}: {name} is not a number. Received: a range from low to high. Provide a list of values."
        )
    if is_integer and not (span.low.is_integer() and span.high.is_integer()):
        raise ConfigError(
            f"{SOURCE}: {name} must be an integer. Received: low {span.low}, high {span.high}. "
            "Provide integer bounds, or a list of values."
        )
    number = int if is_integer else float
    for bound in (span.low, span.high):
        with_settings(config, {name: number(bound)}, SOURCE)
    if current is None or (span.log and current <= 0):
        reason = "not set" if current is None else f"{current}, which has no logarithm,"
        raise ConfigError(
            f"{SOURCE}: {name} is {reason} in the config, so the search cannot start from it. "
            f"Received: a range from low to high. Set {name}, or provide a list of values."
        )
    return NumberRange(min(number(span.low), current), max(number(span.high), current), span.log, is_integer)


def _types(annotation: Any) -> set[Any]:
    """Return the types that an annotation allows."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _types(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return {part_type for part in get_args(annotation) for part_type in _types(part)}
    return {annotation}


def _value(config: Config, name: str) -> Any:
    table, _, key = name.partition(".")
    return getattr(getattr(config, table), key)
