"""index: build the Annoy index of the embeddings, tune its `search_k`, and write the neighbor table.

The stage has two phases. A unit of the first is a shard of the index: one file with a range of items; a small catalog
has one shard. A unit of the second is a range of items whose rows of the table are computed, by exact search for small
catalogs, otherwise by the index, which is first tuned to the target recall of a whole row.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.beam import runner
from pipelines.context.progress import Progress
from pipelines.prepare import stage as prepare
from pipelines.stages import embed
from recsys.config.sections import Config, IndexConfig
from recsys.data.storage import atomic_write, write_rows
from recsys.index import annoy_index, embeddings, neighbors
from recsys.index.annoy_index import RECALL_K
from recsys.index.distances import DISTANCES, Distance
from recsys.index.recall import tune_search_k
from recsys.index.shards import Shard, plan_shards
from recsys.release.formats import EMBEDDINGS, NEIGHBORS
from recsys.release.runs import Run

STAGE = "index"


@dataclass(frozen=True)
class Job:
    """The parameters of all units of the stage, which are sent to the workers."""

    config: IndexConfig
    distance: Distance
    embeddings: Path
    shards: list[Shard]
    folder: Path
    items_per_unit: int
    search_k: int | None = None
    """Of the search for the rows of the table; None for exact search."""

    @property
    def table(self) -> Path:
        """The file of the neighbor table."""
        return self.folder / NEIGHBORS

    @property
    def num_items(self) -> int:
        """Size of the catalog."""
        return self.shards[-1].stop

    def file(self, unit: int) -> Path:
        """Return the path of the file of a shard, which exists only if it is complete."""
        return self.folder / self.shards[unit].file

    def finished(self, unit: int) -> Path:
        """Return the file that marks a range of the table as complete."""
        return self.folder / ".work" / f"neighbors-{unit:05d}"


def index(config: Config, run: Run, progress: Progress) -> dict[str, Any]:
    """Run the stage if it is not done, and return its manifest.

    Raises:
        StageError: the embed stage has not run, or a recall is below the floor.
    """
    if run.done(STAGE):
        return run.manifest(STAGE)
    vectors, shards = embeddings.load(run.path(embed.STAGE, EMBEDDINGS)), index_shards(config, run)
    plan = f"{len(shards)}-{config.resources.exported_items}"
    with progress.stage(run.name(STAGE)) as advance, run.stage(STAGE, plan) as (folder, manifest):
        advance(0, len(shards), f"{config.index.n_trees} trees")
        job = Job(
            config.index,
            DISTANCES[config.tower.distance],
            run.path(embed.STAGE, EMBEDDINGS),
            shards,
            folder,
            config.resources.exported_items,
        )
        phases = [runner.Phase(STAGE, list(range(len(shards))), partial(build_shard, job), job.file)]
        is_exact = neighbors.is_exact(job.num_items, job.distance)
        if is_exact:
            phases.append(_table_phase(job))
        runner.run(phases, config.beam, advance)
        loaded_index = annoy_index.load(folder, shards, vectors, RECALL_K, distance=job.distance)
        num_tries = 0

        def on_try(search_k: int, recall: float) -> None:
            nonlocal num_tries
            num_tries += 1
            advance(num_tries, None, f"search_k {search_k}: recall {recall:.4f}")

        neighbors_recall = 1.0
        if not is_exact:
            tuned = tune_search_k(loaded_index, vectors, config.index, on_try, k=neighbors.width(job.num_items))
            neighbors_recall = tuned.recall
            runner.run([_table_phase(replace(job, search_k=tuned.search_k))], config.beam, advance)
        shutil.rmtree(folder / ".work")
        tuned = tune_search_k(loaded_index, vectors, config.index, on_try)
        manifest |= {
            "shards": len(shards),
            "search_k": tuned.search_k,
            "recall": tuned.recall,
            "curve": tuned.curve,
            "neighbors_recall": neighbors_recall,
        }
        files = "" if len(shards) == 1 else f" in each of {len(shards)} files"
        advance(1, 1, f"recall@{RECALL_K} {tuned.recall:.4f} at search_k {tuned.search_k}{files}")
    return run.manifest(STAGE)


def index_shards(config: Config, run: Run) -> list[Shard]:
    """Return the shards of the index."""
    return plan_shards(run.manifest(prepare.STAGE)["num_items"], config.resources.shard_items)


def build_shard(job: Job, unit: int) -> None:
    """Build one shard from its rows of the embeddings."""
    shard = job.shards[unit]
    vectors = embeddings.load(job.embeddings)[shard.start : shard.stop]
    with atomic_write(job.file(unit)) as draft:
        annoy_index.build(vectors, job.config, draft, distance=job.distance)


def _table_phase(job: Job) -> runner.Phase:
    """Return the phase that computes the table, whose file is created unless a unit is complete."""
    work = job.finished(0).parent
    work.mkdir(exist_ok=True)
    if not any(work.iterdir()):
        shape = job.num_items, neighbors.width(job.num_items)
        np.lib.format.open_memmap(job.table, mode="w+", dtype=np.int32, shape=shape)
    units = list(range(math.ceil(job.num_items / job.items_per_unit)))
    return runner.Phase("neighbors", units, partial(search_neighbors, job), job.finished)


def search_neighbors(job: Job, unit: int) -> None:
    """Write the rows of the table of one range of items."""
    vectors = np.asarray(embeddings.load(job.embeddings))
    start = unit * job.items_per_unit
    items = np.arange(start, min(start + job.items_per_unit, job.num_items))
    k = neighbors.width(job.num_items)
    if job.search_k is None:
        rows = neighbors.exact_neighbors(vectors, items, k, job.distance)
    else:
        loaded_index = annoy_index.load(job.folder, job.shards, vectors, job.search_k, distance=job.distance)
        rows = neighbors.index_neighbors(loaded_index, vectors, items, k)
    write_rows(job.table, start, rows)
    job.finished(unit).touch()
