"""index: build the Annoy index of the embeddings, and tune its `search_k` to the target recall.

A unit is a shard of the index: one file with a range of items. A small catalog has one shard.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.beam import runner
from pipelines.context.progress import Progress
from pipelines.prepare import stage as prepare
from pipelines.stages import embed
from recsys.config.sections import Config, IndexConfig
from recsys.data.storage import atomic_write
from recsys.index import annoy_index, embeddings
from recsys.index.annoy_index import RECALL_K
from recsys.index.distances import DISTANCES
from recsys.index.recall import tune_search_k
from recsys.index.shards import Shard, plan_shards
from recsys.release.formats import EMBEDDINGS
from recsys.release.runs import Run

STAGE = "index"


@dataclass(frozen=True)
class Job:
    """The parameters of all units of the stage, which are sent to the workers."""

    config: IndexConfig
    distance: str
    embeddings: Path
    shards: list[Shard]
    folder: Path

    def file(self, unit: int) -> Path:
        """Return the path of the file of a shard, which exists only if it is complete."""
        return self.folder / self.shards[unit].file


def index(config: Config, run: Run, progress: Progress) -> dict[str, Any]:
    """Run the stage if it is not done, and return its manifest.

    Raises:
        StageError: the embed stage has not run, or the recall is below the floor.
    """
    if run.done(STAGE):
        return run.manifest(STAGE)
    embeddings_file = run.path(embed.STAGE, EMBEDDINGS)
    vectors, shards = embeddings.load(embeddings_file), index_shards(config, run)
    distance = config.tower.distance
    with progress.stage(run.name(STAGE)) as advance, run.stage(STAGE, str(len(shards))) as (folder, manifest):
        advance(0, len(shards), f"{config.index.n_trees} trees")
        job = Job(config.index, distance, embeddings_file, shards, folder)
        units = list(range(len(shards)))
        runner.run([runner.Phase(STAGE, units, partial(build_shard, job), job.file)], config.beam, advance)
        loaded_index = annoy_index.load(folder, shards, vectors, RECALL_K, distance=DISTANCES[distance])
        num_tries = 0

        def on_try(search_k: int, recall: float) -> None:
            nonlocal num_tries
            num_tries += 1
            advance(num_tries, None, f"search_k {search_k}: recall {recall:.4f}")

        tuned = tune_search_k(loaded_index, vectors, config.index, on_try)
        manifest |= {"shards": len(shards), "search_k": tuned.search_k, "recall": tuned.recall, "curve": tuned.curve}
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
        annoy_index.build(vectors, job.config, draft, distance=DISTANCES[job.distance])
