"""What a similarity means: the probability that two items belong together, and from where on they are "the same".

The probability is that of a pair drawn from as many pairs that belong together as others (a base rate of one
half). Among all pairs of a catalog far fewer belong together: there it orders pairs, and does not count them.
`recsys.evaluation.metrics.calibration_fit` fits it; whoever only answers needs no more than this file.
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

EVEN = 0.5
"""Probability from which on two items are called the same, unless another target is named: with as many true
pairs as others, the choice that errs least."""

Rule = Literal["probability", "precision", "false_positive_rate"]
Probability = Annotated[float, Field(ge=0, le=1)]


class _Saved(BaseModel):
    """Strict, so that a file with a gap, a NaN or a text where a number belongs is not taken."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Estimate(_Saved):
    """A measured share, and its 95% interval."""

    value: Probability
    low: Probability
    high: Probability

    def __str__(self) -> str:
        return f"{self.value:.4f} ({self.low:.4f} to {self.high:.4f})"


class Measured(_Saved):
    """What a threshold did on pairs that neither the curve nor the threshold was chosen on."""

    precision: Estimate | None
    """Of the pairs called the same, those that are; null where none was called so."""
    recall: Estimate
    """Of the pairs that are the same, those called so."""
    false_positive_rate: Estimate
    """Of the others, those called the same."""
    accuracy: Estimate
    """Of all pairs, those called right."""


class Threshold(_Saved):
    """The similarity from which on two items are called the same."""

    rule: Rule
    """What `wanted` is."""
    wanted: Probability
    similarity: float | None
    """The smallest similarity that reaches it on the pairs of the fit; null where none does."""
    measured: Measured | None

    @model_validator(mode="after")
    def _measured_where_reached(self) -> Threshold:
        if (self.similarity is None) != (self.measured is None):
            raise ValueError("similarity and measured must both be there, or both be null")
        return self

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.rule.replace('_', ' ').replace('false positive', 'false-positive')} {self.wanted:g}"


class Calibration(_Saved):
    """A monotone curve from similarity to probability, thresholds, and how good both are."""

    similarities: Annotated[tuple[float, ...], Field(min_length=1)]
    """Where the curve has its knots, ascending. Between them it is straight, beyond them level."""
    probabilities: Annotated[tuple[Probability, ...], Field(min_length=1)]
    """Of the knots, none below the one before."""
    fitted_pairs: Annotated[int, Field(ge=1)]
    """Pairs behind curve and thresholds, half of which belong together."""
    measured_pairs: Annotated[int, Field(ge=1)]
    """The other pairs, behind all figures here, half of which belong together."""
    expected_calibration_error: Estimate
    """How far probabilities are from shares, on average; see
    `recsys.evaluation.calibration_fit.expected_calibration_error`."""
    auc: Probability
    """How often a pair that belongs together is more similar than another; equals count half."""
    thresholds: tuple[Threshold, ...]

    @model_validator(mode="after")
    def _monotone(self) -> Calibration:
        if len(self.similarities) != len(self.probabilities):
            raise ValueError("similarities and probabilities must be of one length")
        if any(a >= b for a, b in pairwise(self.similarities)):
            raise ValueError("similarities must ascend")
        if any(a > b for a, b in pairwise(self.probabilities)):
            raise ValueError("probabilities must not descend")
        if ("probability", EVEN) not in {(threshold.rule, threshold.wanted) for threshold in self.thresholds}:
            raise ValueError(f"thresholds must hold the one of probability {EVEN}")
        return self

    @cached_property
    def _knots(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return np.array(self.similarities), np.array(self.probabilities)

    def probabilities_of(self, similarities: NDArray[np.floating] | list[float]) -> NDArray[np.float64]:
        """Probability in [0, 1] of each similarity, float64 of the same shape."""
        return np.asarray(np.interp(similarities, *self._knots), np.float64)

    def probability(self, similarity: float) -> float:
        """Probability in [0, 1] that two items of this similarity belong together."""
        return float(np.interp(similarity, *self._knots))

    def threshold(self, *, precision: float | None = None, false_positive_rate: float | None = None) -> Threshold:
        """The threshold for a target; without one, the threshold of probability one half.

        Raises:
            InputError: two targets, one that was not calibrated, or one that no similarity reaches.
        """
        if precision is not None and false_positive_rate is not None:
            raise InputError(
                f"a threshold must be for a precision or for a false-positive rate. "
                f"Received: both, {precision:g} and {false_positive_rate:g}. Name one of them."
            )
        rule: Rule = "probability"
        wanted = EVEN
        if precision is not None:
            rule, wanted = "precision", precision
        elif false_positive_rate is not None:
            rule, wanted = "false_positive_rate", false_positive_rate
        known = {t.wanted: t for t in self.thresholds if t.rule == rule}
        reached = [f"{t.wanted:g}" for t in known.values() if t.similarity is not None]
        found = known.get(wanted)
        if found is None or found.similarity is None:
            word = rule.replace("_", " ").replace("false positive", "false-positive")
            why = "" if found is None else ", which no similarity reaches on the pairs of the fit"
            raise InputError(
                f"{word} must be one that the release was calibrated for: {', '.join(reached) or 'it has none'}. "
                f"Received: {wanted:g}{why}. Others are set in [calibrate] of the config, for the next release."
            )
        return found


def similarities(distance: Distance, first: Vectors, second: Vectors) -> NDArray[np.float64]:
    """Similarity of each pair of vectors, [n, dimension] both; float64 [n].

    In float64, by the difference of the vectors: where similarities saturate, their last digits are the order.
    """
    between = distance.between(first.astype(np.float64), second.astype(np.float64))
    return np.asarray(distance.similarity(between), np.float64)


def save(calibration: Calibration | None, path: Path, reason: str = "") -> None:
    """Write one JSON file, numbers to the last digit; without a calibration, the reason why there is none."""
    if calibration is None:
        content: dict[str, Any] = {"calibration": None, "reason": reason}
    else:
        content = {"calibration": calibration.model_dump(mode="json")}
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def load(path: Path) -> Calibration | None:
    """Read what `save` wrote; None where it was no calibration.

    Raises:
        InputError: it is no such file, or one with a curve that falls, a number out of its range, or a gap.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["calibration"] is None:
            return None
        # through text: lists are tuples in JSON, but not in Python
        return Calibration.model_validate_json(json.dumps(content["calibration"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        told = _first(error) if isinstance(error, ValidationError) else repr(error)
        raise InputError(f"calibration must be what recsys calibrate writes. Received {path}: {told}.") from None


def _first(error: ValidationError) -> str:
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"])
    return f"{place}: {problem['msg']}" if place else problem["msg"]
