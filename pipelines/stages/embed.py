"""embed: compute the embeddings of all items of the catalog with the tower.

The embeddings of new items are computed from their features alone. A unit is a range of items. Each unit writes its
rows of one `.npy` file that is allocated first, so units are independent and nothing is merged afterwards.
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
from recsys.config.sections import BeamConfig, Config
from recsys.data.storage import write_rows
from recsys.features.encoding import Features, Inputs
from recsys.index import embeddings
from recsys.index.distances import DISTANCES
from recsys.index.embeddings import Vectors
from recsys.release.formats import CATALOG, EMBEDDINGS, FEATURES, TOWER
from recsys.release.runs import Run

STAGE = "embed"
BATCH_SIZE = 4_096
"""Number of items per call of the tower. Larger batches are no faster; with smaller ones, the calls take longer."""


@dataclass(frozen=True)
class Job:
    """The parameters of all units of the stage, which are sent to the workers."""

    catalog: Path
    tower: Path
    features: Path
    work: Path
    out: Path
    items_per_unit: int

    def finished(self, unit: int) -> Path:
        """Return the file that marks a unit as complete."""
        return self.work / f"embed-{unit:05d}"


def embed(config: Config, run: Run, progress: Progress) -> dict[str, Any]:
    """Run the stage if it is not done, and return its manifest.

    Raises:
        StageError: the train stage has not run.
        InputError: the tower returned vectors that are not finite or not of length 1.
    """
    if run.done(STAGE):
        return run.manifest(STAGE)
    num_items = run.manifest(prepare.STAGE)["num_items"]
    catalog = run.path(prepare.STAGE, CATALOG)
    tower, features = run.path(train.STAGE, TOWER), run.path(train.STAGE, FEATURES)
    with (
        progress.stage(run.name(STAGE)) as advance,
        run.stage(STAGE, str(config.resources.embedded_items)) as (folder, manifest),
    ):
        work = folder / ".work"
        work.mkdir(exist_ok=True)
        job = Job(catalog, tower, features, work, folder / EMBEDDINGS, config.resources.embedded_items)
        embed_items(job, num_items, config.tower.dimension, config.beam, advance)
        shutil.rmtree(work)
        embeddings.validate(embeddings.load(job.out), num_items, distance=DISTANCES[config.tower.distance])
        new_items = pl.read_parquet(catalog, columns=["interactions"]).filter(pl.col("interactions") == 0).height
        manifest |= {
            "num_items": num_items,
            "dimension": config.tower.dimension,
            "items_without_interactions": new_items,
        }
        advance(1, 1, f"{num_items:,} items, {new_items:,} of them without interactions")
    return run.manifest(STAGE)


def embed_items(job: Job, num_items: int, dimension: int, config: BeamConfig, advance: Advance) -> None:
    """Embed all items in units on Beam."""
    if not any(job.work.iterdir()):  # no unit is complete
        np.lib.format.open_memmap(job.out, mode="w+", dtype=np.float32, shape=(num_items, dimension))
    units = list(range(math.ceil(num_items / job.items_per_unit)))
    runner.run([runner.Phase(STAGE, units, partial(embed_unit, job), job.finished)], config, advance)


def embed_unit(job: Job, unit: int) -> None:
    """Embed one range of items."""
    start, length = unit * job.items_per_unit, job.items_per_unit
    with _loading:
        features, encode = _encoder(job.tower, job.features)
    frame = pl.scan_parquet(job.catalog).slice(start, length).collect()
    write_rows(job.out, start, encode(features.transform(frame)))
    job.finished(unit).touch()


_loading = threading.Lock()
"""Lock for loading the tower, so that each process loads it once."""


@lru_cache(maxsize=1)
def _encoder(tower: Path, features: Path) -> tuple[Features, Callable[[Inputs], Vectors]]:
    """Return the encoder; cached per process, because loading and tracing take longer than a unit."""
    from recsys.model.tower import load, make_encoder  # noqa: PLC0415 - TensorFlow takes seconds

    return Features.load(features), make_encoder(load(tower), BATCH_SIZE)
