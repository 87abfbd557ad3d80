"""Calibration: the probability that two items of a given similarity belong together, and decision thresholds.

The probability assumes a base rate of one half: as many pairs that belong together as pairs that do not. Among all
pairs of a catalog far fewer belong together; there it ranks pairs, but is not a frequency. It is fitted by
`recsys.evaluation.calibration_fit`; this module alone is needed to apply it.
"""

from __future__ import annotations

import json
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from recsys.errors import InputError
from recsys.index.distances import Distance
from recsys.index.embeddings import Vectors

EVEN_ODDS = 0.5
"""Default threshold of the probability, which makes the fewest errors at a base rate of one half."""

Rule = Literal["probability", "precision", "false_positive_rate"]
Probability = Annotated[float, Field(ge=0, le=1)]


class _Saved(BaseModel):
    """Base class with strict validation, which rejects missing fields, NaN, and strings in place of numbers."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Estimate(_Saved):
    """An estimated share with its 95% interval."""

    value: Probability
    low: Probability
    high: Probability

    def __str__(self) -> str:
        return f"{self.value:.4f} ({self.low:.4f} to {self.high:.4f})"


class ThresholdMetrics(_Saved):
    """Error rates of a threshold on pairs that were not used to fit the curve or to choose the threshold."""

    precision: Estimate | None
    """Share of the predicted pairs that belong together; null if no pair was predicted."""
    recall: Estimate
    """Share of the pairs that belong together which were predicted."""
    false_positive_rate: Estimate
    """Share of the other pairs which were predicted."""
    accuracy: Estimate
    """Share of all pairs with a correct prediction."""


class Threshold(_Saved):
    """The smallest similarity at which two items are predicted to belong together."""

    rule: Rule
    """The figure that has the value `target`."""
    target: Probability
    similarity: float | None
    """The smallest similarity that reaches the target on the fitted pairs; null if none does."""
    measured: ThresholdMetrics | None

    @model_validator(mode="before")
    @classmethod
    def _rename_target(cls, fields: Any) -> Any:
        """Read releases up to format 3, which call the target `wanted`."""
        if isinstance(fields, dict) and "wanted" in fields:
            return {("target" if name == "wanted" else name): value for name, value in fields.items()}
        return fields

    @model_validator(mode="after")
    def _validate_measured(self) -> Threshold:
        if (self.similarity is None) != (self.measured is None):
            raise ValueError("similarity and measured must both be set, or both be null")
        return self

    @property
    def name(self) -> str:
        """Readable name of the threshold."""
        return f"{self.rule.replace('_', ' ').replace('false positive', 'false-positive')} {self.target:g}"


class Calibration(_Saved):
    """A monotone curve from similarity to probability, thresholds, and the quality of both."""

    similarities: Annotated[tuple[float, ...], Field(min_length=1)]
    """Knots of the curve, ascending. It is linear between them and constant outside."""
    probabilities: Annotated[tuple[Probability, ...], Field(min_length=1)]
    """Probabilities at the knots, not descending."""
    fitted_pairs: Annotated[int, Field(ge=1)]
    """Number of pairs for curve and thresholds; half of them belong together."""
    measured_pairs: Annotated[int, Field(ge=1)]
    """Number of pairs for the figures; half of them belong together."""
    expected_calibration_error: Estimate
    """Mean difference between probability and frequency; see
    `recsys.evaluation.calibration_fit.expected_calibration_error`."""
    auc: Probability
    """Probability that a pair that belongs together is more similar than one that does not; ties count one half."""
    thresholds: tuple[Threshold, ...]

    @model_validator(mode="after")
    def _validate_curve(self) -> Calibration:
        if len(self.similarities) != len(self.probabilities):
            raise ValueError("similarities and probabilities must have the same length")
        if any(a >= b for a, b in pairwise(self.similarities)):
            raise ValueError("similarities must ascend")
        if any(a > b for a, b in pairwise(self.probabilities)):
            raise ValueError("probabilities must not descend")
        if ("probability", EVEN_ODDS) not in {(threshold.rule, threshold.target) for threshold in self.thresholds}:
            raise ValueError(f"thresholds must include the one of probability {EVEN_ODDS}")
        return self

    @cached_property
    def _knots(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return np.array(self.similarities), np.array(self.probabilities)

    def to_probabilities(self, similarities: NDArray[np.floating] | list[float]) -> NDArray[np.float64]:
        """Return the probability in [0, 1] of each similarity, float64 of the same shape."""
        return np.asarray(np.interp(similarities, *self._knots), np.float64)

    def probability(self, similarity: float) -> float:
        """Return the probability in [0, 1] that two items of this similarity belong together."""
        return float(np.interp(similarity, *self._knots))

    def threshold(self, *, precision: float | None = None, false_positive_rate: float | None = None) -> Threshold:
        """Return the threshold for a target; without one, the threshold of probability one half.

        Raises:
            InputError: two targets, a target that was not calibrated, or one that no similarity reaches.
        """
        if precision is not None and false_positive_rate is not None:
            raise InputError(
                f"a threshold must have a target precision or a target false-positive rate. "
                f"Received: both, {precision:g} and {false_positive_rate:g}. Set one of them."
            )
        rule: Rule = "probability"
        target = EVEN_ODDS
        if precision is not None:
            rule, target = "precision", precision
        elif false_positive_rate is not None:
            rule, target = "false_positive_rate", false_positive_rate
        thresholds = {t.target: t for t in self.thresholds if t.rule == rule}
        available = [f"{t.target:g}" for t in thresholds.values() if t.similarity is not None]
        threshold = thresholds.get(target)
        if threshold is None or threshold.similarity is None:
            name = rule.replace("_", " ").replace("false positive", "false-positive")
            reason = "" if threshold is None else ", which no similarity reaches on the fitted pairs"
            raise InputError(
                f"{name} must be one that the release was calibrated for: {', '.join(available) or 'it has none'}. "
                f"Received: {target:g}{reason}. Choose one of these, or a similarity of your own."
            )
        return threshold


def similarities(distance: Distance, first: Vectors, second: Vectors) -> NDArray[np.float64]:
    """Return the similarity of each pair of vectors, [n, dimension] both; float64 [n].

    Computed in float64 from the difference of the vectors: where similarities saturate, only their last digits differ.
    """
    distances = distance.between(first.astype(np.float64), second.astype(np.float64))
    return np.asarray(distance.similarity(distances), np.float64)


def save(calibration: Calibration | None, path: Path, reason: str = "") -> None:
    """Write a JSON file with the calibration, or with the reason why there is none."""
    if calibration is None:
        content: dict[str, Any] = {"calibration": None, "reason": reason}
    else:
        content = {"calibration": calibration.model_dump(mode="json")}
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def load(path: Path) -> Calibration | None:
    """Read a file written by `save`; None if it has no calibration.

    Raises:
        InputError: another file, or one with a descending curve, a number out of range, or a missing field.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["calibration"] is None:
            return None
        # strict validation accepts a list for a tuple only from JSON text
        return Calibration.model_validate_json(json.dumps(content["calibration"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = _first_problem(error) if isinstance(error, ValidationError) else repr(error)
        raise InputError(f"calibration must be a calibration file of a release. Received {path}: {problem}.") from None


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    location = ".".join(str(part) for part in problem["loc"])
    return f"{location}: {problem['msg']}" if location else problem["msg"]
