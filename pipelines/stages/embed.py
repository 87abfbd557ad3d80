"""embed: the catalog through the tower -> embeddings, those of new items from their features alone.

A unit is a range of items. Its vectors go to their place in one `.npy` file that is made in full size first,
so no unit waits for another and nothing is copied together afterwards.
"""

from __future__ import annotations

import math
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipelines.beam import runner
from pipelines.context.progress import Advance, Progress
from pipelines.prepare import stage as prepare
from pipelines.stages import train
from recsys.config.sections import BeamConfig, Config, EmbedConfig
from recsys.features.encoding import Features, Inputs
from recsys.index import embeddings
from recsys.index.distances import DISTANCES
from recsys.index.embeddings import Vectors
from recsys.release.formats import CATALOG, EMBEDDINGS, FEATURES, TOWER
from recsys.release.runs import Run

STAGE = "embed"


@dataclass(frozen=True)
class Job:
    """What the units of one embed job share; travels to the workers."""

    config: EmbedConfig
    catalog: Path
    tower: Path
    features: Path
    work: Path
    out: Path

    def finished(self, unit: int) -> Path:
        """The file that says that a unit's vectors are in place."""
        return self.work / f"embed-{unit:05d}"


def embed(config: Config, run: Run, progress: Progress) -> dict[str, Any]:
    """Do the stage if it is not done, and return its manifest.

    Raises:
        StageError: train was not run.
        InputError: the tower gives vectors that are not finite or not of length 1.
    """
    if run.done(STAGE):
        return run.manifest(STAGE)
    num_items = run.manifest(prepare.STAGE)["num_items"]
    catalog = run.path(prepare.STAGE, CATALOG)
    tower, features = run.path(train.STAGE, TOWER), run.path(train.STAGE, FEATURES)
    with (
        progress.stage(STAGE) as advance,
        run.stage(STAGE, str(config.embed.items_per_unit)) as (folder, manifest),
    ):
        work = folder / ".work"
        work.mkdir(exist_ok=True)
        job = Job(config.embed, catalog, tower, features, work, folder / EMBEDDINGS)
        embed_items(job, num_items, config.tower.dimension, config.beam, advance)
        shutil.rmtree(work)
        embeddings.validate(embeddings.load(job.out), num_items, distance=DISTANCES[config.tower.distance])
        new = pl.read_parquet(catalog, columns=["interactions"]).filter(pl.col("interactions") == 0).height
        manifest |= {
            "num_items": num_items,
            "dimension": config.tower.dimension,
            "items_without_interactions": new,
        }
        advance(1, 1, f"{num_items:,} items, {new:,} of them without interactions")
    return run.manifest(STAGE)


def embed_items(job: Job, num_items: int, dimension: int, config: BeamConfig, advance: Advance) -> None:
    """All items through the tower, unit by unit, over Beam."""
    if not any(job.work.iterdir()):  # nothing was finished before
        np.lib.format.open_memmap(job.out, mode="w+", dtype=np.float32, shape=(num_items, dimension))
    units = list(range(math.ceil(num_items / job.config.items_per_unit)))
    runner.run([runner.Phase(STAGE, units, partial(embed_unit, job), job.finished)], config, advance)


def embed_unit(job: Job, unit: int) -> None:
    """One range of items through the tower."""
    start, length = unit * job.config.items_per_unit, job.config.items_per_unit
    with _loading:
        features, encode = _encoder(job.tower, job.features, job.config.batch_size)
    frame = pl.scan_parquet(job.catalog).slice(start, length).collect()
    vectors = encode(features.transform(frame))
    mapped = np.load(job.out, mmap_mode="r")
    with job.out.open("r+b") as file:  # written, not mapped: a mapping faults in page after page
        file.seek(mapped.offset + start * mapped.strides[0])
        vectors.tofile(file)
    job.finished(unit).touch()


_loading = threading.Lock()
"""One thread loads, the others wait: the tower is in memory once a process."""


@lru_cache(maxsize=1)
def _encoder(tower: Path, features: Path, batch_size: int) -> tuple[Features, Callable[[Inputs], Vectors]]:
    """The tower of this process: loading and tracing take longer than a unit, and its file never changes."""
    from recsys.model.tower import load, make_encoder  # noqa: PLC0415 - TensorFlow takes seconds

    return Features.load(features), make_encoder(load(tower), batch_size)
