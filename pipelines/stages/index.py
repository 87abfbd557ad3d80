"""index: embeddings -> Annoy index, its search_k tuned to the wanted recall.

A unit is a shard of the index: one file, over a range of items. An ordinary catalog is one unit.
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
from recsys.index.distances import DISTANCES
from recsys.index.recall import tune_search_k
from recsys.index.shards import Shard, plan_shards
from recsys.release.formats import EMBEDDINGS
from recsys.release.runs import Run

STAGE = "index"


@dataclass(frozen=True)
class Job:
    """What the units of one index job share; travels to the workers."""

    config: IndexConfig
    distance: str
    embeddings: Path
    shards: list[Shard]
    folder: Path

    def file(self, unit: int) -> Path:
        """The file of a shard: under its name it is complete."""
        return self.folder / self.shards[unit].file


def index(config: Config, run: Run, progress: Progress) -> dict[str, Any]:
    """Do the stage if it is not done, and return its manifest.

    Raises:
        StageError: embed was not run, or the recall stays below the floor.
    """
    if run.done(STAGE):
        return run.manifest(STAGE)
    origin = run.path(embed.STAGE, EMBEDDINGS)
    vectors, cut = embeddings.load(origin), shards(config, run)
    distance = config.tower.distance
    with progress.stage(STAGE) as advance, run.stage(STAGE, str(len(cut))) as (folder, manifest):
        advance(0, len(cut), f"{config.index.n_trees} trees")
        job = Job(config.index, distance, origin, cut, folder)
        units = list(range(len(cut)))
        runner.run([runner.Phase(STAGE, units, partial(build_shard, job), job.file)], config.beam, advance)
        built = annoy_index.load(folder, cut, vectors, config.index.recall_k, distance=DISTANCES[distance])
        tries = 0

        def on_try(search_k: int, recall: float) -> None:
            nonlocal tries
            tries += 1
            advance(tries, None, f"search_k {search_k}: recall {recall:.4f}")

        tuned = tune_search_k(built, vectors, config.index, on_try)
        manifest |= {"shards": len(cut), "search_k": tuned.search_k, "recall": tuned.recall, "curve": tuned.curve}
        files = "" if len(cut) == 1 else f" in each of {len(cut)} files"
        advance(1, 1, f"recall@{config.index.recall_k} {tuned.recall:.4f} at search_k {tuned.search_k}{files}")
    return run.manifest(STAGE)


def shards(config: Config, run: Run) -> list[Shard]:
    """The files of the index."""
    return plan_shards(run.manifest(prepare.STAGE)["num_items"], config.index.shard_items)


def build_shard(job: Job, unit: int) -> None:
    """One shard, of its own rows of the embeddings alone."""
    shard = job.shards[unit]
    vectors = embeddings.load(job.embeddings)[shard.start : shard.stop]
    with atomic_write(job.file(unit)) as draft:
        annoy_index.build(vectors, job.config, draft, distance=DISTANCES[job.distance])
