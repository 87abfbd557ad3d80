"""A fit between two passes, on the disk: one that was killed goes on from there and comes to the same tower."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.data.storage import atomic_write
from recsys.model.batches import Batches, PairBatches

Weights = list[NDArray[Any]]


@dataclass
class Progress:
    """How far a fit is."""

    best_score: float
    """Score of the weights to keep."""
    best_pass: int = 0
    """The pass that they are of, 0 before the first."""
    curve: list[dict[str, float]] = field(default_factory=list)
    """Figures of each pass."""


@dataclass(frozen=True)
class Checkpoint:
    """A file with all that the next pass depends on: weights, moments, and the state of what draws at random.

    An `.npz` of plain arrays, which is replaced after each pass: the tower and its moments, the best weights so
    far, and the rest as JSON. It takes four times the tower.
    """

    path: Path

    def save(self, progress: Progress, variables: Sequence[Any], best: Weights, batches: Batches) -> None:
        """Write it, in the place of the last one.

        Args:
            progress: up to here.
            variables: Keras variables of tower and optimizer.
            best: weights to keep.
            batches: of `recsys.model.batches`; their generator, and what they mined.
        """
        told = {**asdict(progress), "rng": batches.rng.bit_generator.state}
        arrays: dict[str, Any] = {f"variable_{place}": np.asarray(variable) for place, variable in enumerate(variables)}
        arrays |= {f"best_{place}": weight for place, weight in enumerate(best)}
        if isinstance(batches, PairBatches):
            arrays["hard"] = batches.sampler.hard
        with atomic_write(self.path) as draft, draft.open("wb") as file:
            np.savez(file, told=np.array(json.dumps(told)), **arrays)

    def restore(self, variables: Sequence[Any], best: Weights, batches: Batches) -> tuple[Progress, Weights] | None:
        """Put everything back, in place; the progress and the best weights, or None where nothing was saved."""
        if not self.path.exists():
            return None
        with np.load(self.path, allow_pickle=False) as saved:
            told = json.loads(str(saved["told"]))
            for place, variable in enumerate(variables):
                variable.assign(saved[f"variable_{place}"])
            kept = [saved[f"best_{place}"] for place in range(len(best))]
            if isinstance(batches, PairBatches):
                batches.sampler.hard = saved["hard"]
        batches.rng.bit_generator.state = told.pop("rng")
        return Progress(**told), kept
