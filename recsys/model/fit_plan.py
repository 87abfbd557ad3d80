"""The plan of a fit: the phases in which a tower is trained. Plain values, without Keras.

A fit uses the training data for one target (`recsys.data.splits`). A run has two fits:

- the validation fit (`validation_plan`) trains without the users held out. It selects the number of passes, and the
  recency of history queries, by items with interactions; with labeled pairs, also by other items.
- the final fit (`final_plan`) trains on the interactions of all users before the test targets with the selected values,
  without validation. Its tower is released.

Fits for the sense `similar` have passes over pairs only. They are validated by likeness (`similar_candidate_plan`), and
repeated without validation (`similar_plan`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from recsys.config.sections import Config
from recsys.data.splits import Target

PhaseName = Literal["pairs", "histories", "new_items"]


@dataclass(frozen=True)
class PairPhase:
    """Trains the tower from its initial weights in passes over pairs, at a constant learning rate."""

    name: ClassVar[PhaseName] = "pairs"

    passes: int
    """Maximum number of passes; without validation the exact number."""
    validate: bool
    """Whether to stop early and to keep the pass with the best score."""
    anchor_power: float
    """Exponent of an anchor's weight in the loss."""


@dataclass(frozen=True)
class HistoryPhase:
    """Refines the tower in passes over the histories of users.

    The learning rate decays linearly to 0 over the passes. Frozen encoders that will thaw are thawed at the start.
    """

    name: ClassVar[PhaseName] = "histories"

    passes: int
    """Maximum number of passes; without validation the exact number."""
    validate: bool
    """Whether to keep the pass with the best score, and to undo the phase if its score is clearly worse."""
    recency: float | None
    """Weight of one step back in a history; None stands for the best recency of the pair phase."""
    rate_divisor: int = 3
    """The initial learning rate is `train.learning_rate` divided by this."""
    tolerance: float = 0.02
    """The phase is undone if the score drops by more than this share of it, which is about the difference between two
    seeds: a tower without this phase answers differently, above all for rare items."""


@dataclass(frozen=True)
class NewItemPhase:
    """Trains a second tower for new items in passes over pairs, at a constant learning rate and without validation.

    It reads all features but the id, and learns to embed items near their positives. The embeddings of the earlier
    phases stay fixed. Frozen encoders that will thaw are thawed at the start.
    """

    name: ClassVar[PhaseName] = "new_items"

    anchor_power: float
    """Exponent of an anchor's weight in the loss; below 1, because new items do not resemble popular items most."""
    feature_rate: float = 1.0
    """Factor of the learning rate of features; 1, because there are no ids that learn beside them."""
    passes_per_pair_pass: int = 2
    """Passes for each pass over pairs that was kept."""


Phase = PairPhase | HistoryPhase | NewItemPhase


@dataclass(frozen=True)
class FitPlan:
    """The phases of a fit, in order."""

    target: Target
    """The fit uses the training data for this target."""
    phases: tuple[Phase, ...]


class Passes(NamedTuple):
    """Number of passes of the phases that train the tower."""

    pairs: int
    histories: int


def validation_plan(config: Config) -> FitPlan:
    """Return the plan of the validation fit, with the maximum number of passes."""
    passes = Passes(config.train.passes, config.train.history_passes)
    return FitPlan("validation", _phases(config, passes, validate=True))


def final_plan(config: Config, passes: Passes, recency: float | None = None) -> FitPlan:
    """Return the plan of the final fit.

    Args:
        config: `train`, `items`, and whether there are `data.labeled_pairs`.
        passes: exact number of passes of each phase.
        recency: of the history phase.
    """
    return FitPlan("test", _phases(config, passes, validate=False, recency=recency))


def similar_candidate_plan(config: Config) -> FitPlan:
    """Return the plan of a candidate for the sense `similar`, whose passes are selected by likeness."""
    phase = PairPhase(config.similar.passes, validate=True, anchor_power=config.train.anchor_power)
    return FitPlan("validation", (phase,))


def similar_plan(config: Config, passes: int) -> FitPlan:
    """Return the plan of the final fit for the sense `similar`, with the exact number of passes."""
    return FitPlan("test", _phases(config, Passes(passes, histories=0), validate=False))


def _phases(config: Config, passes: Passes, *, validate: bool, recency: float | None = None) -> tuple[Phase, ...]:
    power = config.train.anchor_power
    labeled = config.data.labeled_pairs is not None
    phases: list[Phase] = [PairPhase(passes.pairs, validate, anchor_power=power)]
    if passes.histories and not labeled:
        phases.append(HistoryPhase(passes.histories, validate, recency))
    if config.train.new_items and has_features(config) and (labeled or not validate):
        phases.append(NewItemPhase(anchor_power=power / 2))
    return tuple(phases)


def has_features(config: Config) -> bool:
    """Whether the items have any feature other than the id."""
    items = config.items
    return bool(items.categorical or items.multi_categorical or items.text or items.numeric)
