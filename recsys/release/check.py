"""One reason to promote a release or not: a figure, its limit and the verdict, for people and as data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

Verdict = Literal["passed", "failed", "skipped"]


class Check(NamedTuple):
    """A figure and what it has to keep. Without a limit it is skipped, and says why."""

    name: str
    """Lower-case words joined by `_`: also the name of a metric."""
    value: float | None
    limit: float | None
    bound: Literal["at least", "at most"] | None
    reason: str | None = None
    """Why nothing was measured, or more about what was."""

    @property
    def verdict(self) -> Verdict:
        """NaN never passes."""
        if self.limit is None:
            return "skipped"
        if self.value is None:  # data has no NaN
            return "failed"
        kept = self.value >= self.limit if self.bound == "at least" else self.value <= self.limit
        return "passed" if kept else "failed"

    @property
    def passed(self) -> bool:
        """Whether it does not stand in the way."""
        return self.verdict != "failed"

    def __str__(self) -> str:
        if self.verdict == "skipped":
            return f"{self.name}: skipped, {self.reason}"
        more = "" if self.reason is None else f" ({self.reason})"
        return f"{self.name} {_shown(self.value)}, {self.bound} {_shown(self.limit)}: {self.verdict}{more}"

    def as_data(self) -> dict[str, Any]:
        """For JSON, which has no NaN and no infinity."""
        return {
            "name": self.name,
            "value": _finite(self.value),
            "limit": _finite(self.limit),
            "bound": self.bound,
            "verdict": self.verdict,
            **({} if self.reason is None else {"reason": self.reason}),
        }


def at_least(name: str, value: float, limit: float, reason: str | None = None) -> Check:
    """A figure that must not be smaller than its limit."""
    return Check(name, float(value), float(limit), "at least", reason)


def at_most(name: str, value: float, limit: float, reason: str | None = None) -> Check:
    """A figure that must not be larger than its limit."""
    return Check(name, float(value), float(limit), "at most", reason)


def skipped(name: str, why: str) -> Check:
    """A figure that cannot be had tonight."""
    return Check(name, None, None, None, why)


def from_data(saved: Mapping[str, Any]) -> Check:
    """What `Check.as_data` gave."""
    return Check(saved["name"], saved["value"], saved["limit"], saved["bound"], saved.get("reason"))


def _shown(figure: float | None) -> str:
    return "unknown" if figure is None else f"{figure:.4f}" if abs(figure) < 1_000 else f"{figure:,.0f}"  # noqa: PLR2004


def _finite(figure: float | None) -> float | None:
    return figure if figure is not None and math.isfinite(figure) else None
