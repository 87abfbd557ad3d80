"""index: embeddings -> Annoy index, its search_k tuned to the wanted recall.

A unit is a shard of the index: one file, over a range of items. An ordinary catalog is one unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.beam import runner
from pipelines.context.run_context import Night, command, main
from pipelines.prepare import stage as prepare
from pipelines.stages import embed
from recsys.config.sections import IndexConfig
from recsys.data.storage import atomic_write
from recsys.index import annoy_index as annoy
from recsys.index import embeddings
from recsys.index.annoy_index import Shard
from recsys.index.distances import DISTANCES
from recsys.release.bundle import EMBEDDINGS

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


def index(night: Night) -> dict[str, Any]:
    """Do the stage if it is not done, and return its manifest.

    Raises:
        StageError: embed was not run, or the recall stays below the floor.
    """
    if night.run.done(STAGE):
        return night.run.manifest(STAGE)
    origin = night.run.path(embed.STAGE, EMBEDDINGS)
    vectors, cut = embeddings.load(origin), shards(night)
    config, distance = night.config.index, night.config.tower.distance
    with night.report.stage(STAGE) as advance, night.run.stage(STAGE, str(len(cut))) as (folder, manifest):
        advance(0, len(cut), f"{config.n_trees} trees")
        job = Job(config, distance, origin, cut, folder)
        units = list(range(len(cut)))
        runner.run([runner.Phase(STAGE, units, partial(build_shard, job), job.file)], night.config.beam, advance)
        built = annoy.load(folder, cut, vectors, config.recall_k, distance=DISTANCES[distance])
        tries = 0

        def on_try(search_k: int, recall: float) -> None:
            nonlocal tries
            tries += 1
            advance(tries, None, f"search_k {search_k}: recall {recall:.4f}")

        tuned = annoy.tune(built, vectors, config, on_try)
        manifest |= {"shards": len(cut), "search_k": tuned.search_k, "recall": tuned.recall, "curve": tuned.curve}
        files = "" if len(cut) == 1 else f" in each of {len(cut)} files"
        advance(1, 1, f"recall@{config.recall_k} {tuned.recall:.4f} at search_k {tuned.search_k}{files}")
    return night.run.manifest(STAGE)


def shards(night: Night) -> list[Shard]:
    """The files of this night's index."""
    return annoy.cut(night.run.manifest(prepare.STAGE)["num_items"], night.config.index.shard_items)


def build_shard(job: Job, unit: int) -> None:
    """One shard, of its own rows of the embeddings alone."""
    shard = job.shards[unit]
    vectors = embeddings.load(job.embeddings)[shard.start : shard.stop]
    with atomic_write(job.file(unit)) as draft:
        annoy.build(vectors, job.config, draft, distance=DISTANCES[job.distance])


def run(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The job by itself."""
    return command(STAGE, (__doc__ or "").splitlines()[0], index, argv)


if __name__ == "__main__":
    main(run)
