"""A prepare job: its input units, its folders, and the files that its phases exchange."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import polars as pl

from pipelines.beam import runner
from pipelines.context.input_units import Unit
from pipelines.context.raw_rows import RawRows
from pipelines.context.readers import read_unit
from pipelines.prepare.row_account import DEAD_LETTER_SCHEMA
from recsys.config.sections import Config
from recsys.data.storage import atomic_write


@dataclass(frozen=True)
class Job:
    """The parameters of all units of a prepare job, which are pickled and sent to the workers."""

    config: Config
    interactions: list[Unit]
    items: list[Unit]
    labeled: list[Unit]
    work: Path
    """Folder of the files that the phases exchange."""
    sequences: Path
    """Output folder."""
    pairs: Path
    """Output folder."""
    similar_pairs: Path
    """Output folder."""
    labeled_pairs: Path
    """Output file."""
    shards: int
    """Number of shards of users, which is also the number of ranges of items."""

    def entry(self, phase: str, unit: int) -> Path:
        """Return the path of the file that marks a unit as finished and contains its counts."""
        return self.work / f"{phase}-{unit:05d}.json"

    def phase(self, name: str, units: list[int], work: Callable[[Job, int], None]) -> runner.Phase:
        """Return a phase of this job for the Beam runner."""
        return runner.Phase(name, units, partial(work, self), partial(self.entry, name))

    def entries(self, phase: str) -> list[dict[str, Any]]:
        """Read the counts of all units of a phase, in order."""
        return [json.loads(path.read_text()) for path in sorted(self.work.glob(f"{phase}-*.json"))]

    def finish(self, phase: str, unit: int, **counts: Any) -> None:
        """Write the entry of a unit, after all its other files."""
        with atomic_write(self.entry(phase, unit)) as draft:
            draft.write_text(json.dumps(counts))

    def exchange_file(self, name: str, unit: int) -> Path:
        """Return the path of a file that a unit writes for the units of a later phase."""
        return self.work / f"{name}-{unit:05d}.arrow"

    def chunks(self, units: list[Unit], number: int) -> Iterator[RawRows]:
        """Read the rows of a unit, in chunks of at most `rows_per_unit` rows."""
        return read_unit(units[number], self.config.resources.rows_per_unit)

    def write_dead_letters(self, letters: pl.DataFrame, phase: str, unit: int, chunk: int = 0) -> None:
        """Write the dead letters of a unit, or of one of its chunks."""
        letters.write_parquet(self.work / f"dead-{phase}-{unit:05d}-{chunk:05d}.parquet")

    def dead_letters(self, *phases: str) -> pl.LazyFrame:
        """Read the dead letters of some phases, in the order of their units."""
        paths = [path for phase in phases for path in sorted(self.work.glob(f"dead-{phase}-*.parquet"))]
        return pl.scan_parquet(paths) if paths else pl.LazyFrame(schema=DEAD_LETTER_SCHEMA)

    @property
    def ranges(self) -> Path:
        """Path of the ranges of item ids, written by the phase `ranges`."""
        return self.work / "ranges.json"

    @property
    def first_item_numbers(self) -> list[int]:
        """First item number of each range, then the number of items; available after the phase `catalog`."""
        return list(accumulate((entry["used"] for entry in self.entries("catalog")), initial=0))

    @property
    def newest(self) -> float:
        """Time of the newest interaction in seconds; available after the phase `interactions`."""
        return float(max(entry["newest"] for entry in self.entries("interactions")))
