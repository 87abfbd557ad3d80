"""Result of one gate check: a value, its limit and the verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

Verdict = Literal["passed", "failed", "skipped"]


class Check(NamedTuple):
    """A measured value and its limit. A check without a limit is skipped, and `reason` says why."""

    name: str
    """Lower-case words joined by `_`, also the name of the MLflow metric."""
    value: float | None
    limit: float | None
    bound: Literal["at least", "at most"] | None
    reason: str | None = None
    """Why the check was skipped, or details of the value."""

    @property
    def verdict(self) -> Verdict:
        """Whether the value keeps the limit. NaN and missing values fail."""
        if self.limit is None:
            return "skipped"
        if self.value is None:  # JSON has no NaN
            return "failed"
        within_limit = self.value >= self.limit if self.bound == "at least" else self.value <= self.limit
        return "passed" if within_limit else "failed"

    @property
    def passed(self) -> bool:
        """Whether the check passed or was skipped."""
        return self.verdict != "failed"

    def __str__(self) -> str:
        if self.verdict == "skipped":
            return f"{self.name}: skipped, {self.reason}"
        details = "" if self.reason is None else f" ({self.reason})"
        return f"{self.name} {_format(self.value)}, {self.bound} {_format(self.limit)}: {self.verdict}{details}"

    def to_dict(self) -> dict[str, Any]:
        """Return the check for JSON. NaN and infinity become null."""
        return {
            "name": self.name,
            "value": _finite_or_none(self.value),
            "limit": _finite_or_none(self.limit),
            "bound": self.bound,
            "verdict": self.verdict,
            **({} if self.reason is None else {"reason": self.reason}),
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Check:
        """Restore a check from the output of `to_dict`."""
        return cls(saved["name"], saved["value"], saved["limit"], saved["bound"], saved.get("reason"))


def at_least(name: str, value: float, limit: float, reason: str | None = None) -> Check:
    """Check that a value is not below its limit."""
    return Check(name, float(value), float(limit), "at least", reason)


def at_most(name: str, value: float, limit: float, reason: str | None = None) -> Check:
    """Check that a value is not above its limit."""
    return Check(name, float(value), float(limit), "at most", reason)


def skipped(name: str, reason: str) -> Check:
    """Return a check whose value cannot be measured in this run."""
    return Check(name, None, None, None, reason)


def _format(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}" if abs(value) < 1_000 else f"{value:,.0f}"  # noqa: PLR2004


def _finite_or_none(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
