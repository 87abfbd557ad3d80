"""Checkpoints: the state of a training between two passes, from which an interrupted training resumes exactly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.data.storage import atomic_write
from recsys.model.batches import Batches

Weights = list[NDArray[Any]]


@dataclass
class Progress:
    """How far a training has come."""

    best_score: float
    """Score of the best weights."""
    best_pass: int = 0
    """Number of the pass that the best weights are from, 0 for the initial weights."""
    curve: list[dict[str, float]] = field(default_factory=list)
    """Figures of each pass."""


@dataclass(frozen=True)
class Checkpoint:
    """A file with everything that the next pass depends on: weights, moments, and the state of the random generator.

    An `.npz` of plain arrays, replaced after each pass: the variables of the model and the optimizer, the best weights,
    the hard negatives, and the remaining values as JSON. About four times the size of the tower.
    """

    path: Path

    def save(self, progress: Progress, variables: Sequence[Any], best_weights: Weights, batches: Batches) -> None:
        """Write the file, or replace it.

        Args:
            progress: figures and best pass so far.
            variables: Keras variables of model and optimizer.
            best_weights: weights of the tower after the best pass.
            batches: their random generator and hard negatives are saved.
        """
        state = {**asdict(progress), "rng": batches.rng.bit_generator.state}
        arrays: dict[str, Any] = {f"variable_{position}": np.asarray(value) for position, value in enumerate(variables)}
        arrays |= {f"best_{position}": weight for position, weight in enumerate(best_weights)}
        with atomic_write(self.path) as draft, draft.open("wb") as file:
            np.savez(file, state=np.array(json.dumps(state)), hard_negatives=batches.hard_negatives, **arrays)

    def restore(self, variables: Sequence[Any], batches: Batches, num_weights: int) -> tuple[Progress, Weights] | None:
        """Restore variables and batches in place.

        Args:
            variables: Keras variables of model and optimizer, in the order in which they were saved.
            batches: batches over the same data.
            num_weights: number of weights of the tower.

        Returns:
            The progress and the best weights, or None if there is no file.
        """
        if not self.path.exists():
            return None
        with np.load(self.path, allow_pickle=False) as saved:
            state = json.loads(str(saved["state"]))
            for position, variable in enumerate(variables):
                variable.assign(saved[f"variable_{position}"])
            best_weights = [saved[f"best_{position}"] for position in range(num_weights)]
            batches.hard_negatives = saved["hard_negatives"]
        batches.rng.bit_generator.state = state.pop("rng")
        return Progress(**state), best_weights
