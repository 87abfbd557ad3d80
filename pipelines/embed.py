"""embed: the catalogue through the tower -> embeddings, those of new items from their features alone.

A unit is a range of items. Its vectors go to their place in one `.npy` file that is made in full size first,
so no unit waits for another and nothing is copied together afterwards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipelines import prepare, runner, train
from pipelines.night import Night, command, main
from recsys import embeddings
from recsys.config import EmbedConfig
from recsys.embeddings import Vectors
from recsys.features import Features, Inputs

STAGE = "embed"
EMBEDDINGS = "embeddings.npy"


@dataclass(frozen=True)
class Job:
    """What the units of one embed job share; travels to the workers."""

    config: EmbedConfig
    catalogue: Path
    tower: Path
    features: Path
    work: Path
    out: Path

    def finished(self, unit: int) -> Path:
        """The file that says that a unit's vectors are in place."""
        return self.work / f"embed-{unit:05d}"


def embed(night: Night) -> dict[str, Any]:
    """Do the stage if it is not done, and return its manifest.

    Raises:
        StageError: train was not run.
        InputError: the tower gives vectors that are not finite or not of length 1.
    """
    if night.run.done(STAGE):
        return night.run.manifest(STAGE)
    num_items = night.run.manifest(prepare.STAGE)["num_items"]
    catalogue = night.run.path(prepare.STAGE, prepare.CATALOGUE)
    tower, features = night.run.path(train.STAGE, train.TOWER), night.run.path(train.STAGE, train.FEATURES)
    with night.report.stage(STAGE) as advance, night.run.stage(STAGE) as (folder, manifest):
        work = folder / ".work"
        work.mkdir()
        job = Job(night.config.embed, catalogue, tower, features, work, folder / EMBEDDINGS)
        dimension = night.config.tower.dimension
        allocate(job.out, num_items, dimension)
        units = list(range(-(-num_items // job.config.items_per_unit)))
        runner.run([runner.Phase(STAGE, units, partial(embed_unit, job), job.finished)], night.config.beam, advance)
        embeddings.check(embeddings.load(job.out), num_items)
        for path in work.iterdir():
            path.unlink()
        work.rmdir()
        new = pl.read_parquet(catalogue, columns=["interactions"]).filter(pl.col("interactions") == 0).height
        manifest |= {"num_items": num_items, "dimension": dimension, "items_without_interactions": new}
        advance(1, 1, f"{num_items:,} items, {new:,} of them without interactions")
    return night.run.manifest(STAGE)


def embed_unit(job: Job, unit: int) -> None:
    """One range of items through the tower."""
    start, length = unit * job.config.items_per_unit, job.config.items_per_unit
    features, encode = _encoder(job.tower, job.features, job.config.batch_size)
    frame = pl.scan_parquet(job.catalogue).slice(start, length).collect()
    vectors = encode(features.transform(frame))
    target = np.load(job.out, mmap_mode="r+")
    target[start : start + len(vectors)] = vectors
    target.flush()
    job.finished(unit).touch()


def allocate(path: Path, num_items: int, dimension: int) -> None:
    """A `.npy` file of the full size, to be filled in by the units."""
    np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(num_items, dimension)).flush()


_loaded: dict[str, tuple[Features, Callable[[Inputs], Vectors]]] = {}
"""The tower of this process: loading and tracing take longer than a unit."""


def _encoder(tower: Path, features: Path, batch_size: int) -> tuple[Features, Callable[[Inputs], Vectors]]:
    digest = hashlib.sha256(tower.read_bytes() + features.read_bytes()).hexdigest()
    if digest not in _loaded:
        from recsys import tower as towers  # noqa: PLC0415 - TensorFlow takes seconds

        _loaded.clear()
        _loaded[digest] = Features.load(features), towers.encoder(towers.load(tower), batch_size)
    return _loaded[digest]


def run(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The job by itself."""
    return command(STAGE, (__doc__ or "").splitlines()[0], embed, argv)


if __name__ == "__main__":
    main(run)
