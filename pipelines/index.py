"""index: embeddings -> Annoy index, its search_k tuned to the wanted recall."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines import embed
from pipelines.night import Night, command, main
from recsys import embeddings
from recsys import index as annoy
from recsys.release import EMBEDDINGS, INDEX
from recsys.similarity import DISTANCES

STAGE = "index"


def index(night: Night) -> dict[str, Any]:
    """Do the stage if it is not done, and return its manifest.

    Raises:
        StageError: embed was not run, or the recall stays below the floor.
    """
    if night.run.done(STAGE):
        return night.run.manifest(STAGE)
    vectors = embeddings.load(night.run.path(embed.STAGE, EMBEDDINGS))
    config = night.config.index
    with night.report.stage(STAGE) as advance, night.run.stage(STAGE) as (folder, manifest):
        advance(0, None, f"{config.n_trees} trees")
        built = annoy.build(vectors, config, folder / INDEX, distance=DISTANCES[night.config.tower.distance])
        tries = 0

        def on_try(search_k: int, recall: float) -> None:
            nonlocal tries
            tries += 1
            advance(tries, None, f"search_k {search_k}: recall {recall:.4f}")

        tuned = annoy.tune(built, vectors, config, on_try)
        manifest |= {"search_k": tuned.search_k, "recall": tuned.recall, "curve": tuned.curve}
        advance(1, 1, f"recall@{config.recall_k} {tuned.recall:.4f} at search_k {tuned.search_k}")
    return night.run.manifest(STAGE)


def run(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The job by itself."""
    return command(STAGE, (__doc__ or "").splitlines()[0], index, argv)


if __name__ == "__main__":
    main(run)
