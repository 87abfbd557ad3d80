"""evaluate: the index and the baselines on the held-out interactions.

Look-up from the last item before the target, against the whole catalogue, nothing but the query left out.
ItemKNN's shrinkage is chosen on the validation target; all test figures come from what is known before the
test target.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines import embed, prepare
from pipelines import index as indexing
from pipelines.night import Night, command, main
from pipelines.train import load_sequences
from recsys import embeddings
from recsys import index as annoy
from recsys.baselines import ItemKNN, Popularity, touched_before
from recsys.evaluation import TARGET_METRIC, Neighbours
from recsys.evaluation import evaluate as measure
from recsys.release import EMBEDDINGS, INDEX
from recsys.splitting import leave_one_out

STAGE = "evaluate"


def evaluate(night: Night) -> dict[str, Any]:
    """Do the stage if it is not done, and return its manifest: the figures.

    Raises:
        StageError: index was not run.
    """
    if night.run.done(STAGE):
        return night.run.manifest(STAGE)
    vectors = embeddings.load(night.run.path(embed.STAGE, EMBEDDINGS))
    search_k = night.run.manifest(indexing.STAGE)["search_k"]
    index = annoy.load(night.run.path(indexing.STAGE, INDEX), vectors, search_k)
    sequences, num_items = load_sequences(night), night.run.manifest(prepare.STAGE)["num_items"]
    config = night.config.evaluate
    with night.report.stage(STAGE) as advance, night.run.stage(STAGE) as (_, manifest):
        test = leave_one_out(sequences, "test", config.users)
        validation = leave_one_out(sequences, "validation", config.users)
        steps = len(config.shrinkage) + 4
        before_validation = touched_before(sequences, "validation", num_items)
        tried = []
        for step, shrinkage in enumerate(config.shrinkage):
            advance(step, steps, f"ItemKNN, shrinkage {shrinkage:g}")
            knn = ItemKNN(before_validation, cosine=True, shrinkage=shrinkage)
            tried.append(measure(knn, validation).get(TARGET_METRIC, 0.0))
        best = config.shrinkage[int(np.argmax(tried))]

        before_test = touched_before(sequences, "test", num_items)
        models: dict[str, Neighbours] = {
            "popularity": Popularity(np.asarray(before_test.sum(axis=0)).ravel()),
            "co_occurrence": ItemKNN(before_test, cosine=False),
            "item_knn": ItemKNN(before_test, cosine=True, shrinkage=best),
            "model": index,
        }
        figures = {}
        for step, (name, model) in enumerate(models.items(), len(config.shrinkage)):
            advance(step, steps, name)
            figures[name] = measure(model, test)
        manifest |= {
            "target": "test",
            "questions": len(test),
            "model": figures.pop("model"),
            "baselines": figures,
            "settings": {"item_knn": {"shrinkage": best}},
        }
        if len(test):
            advance(
                steps,
                steps,
                f"NDCG@20 {manifest['model'][TARGET_METRIC]:.4f}, "
                + ", ".join(f"{name} {value[TARGET_METRIC]:.4f}" for name, value in figures.items()),
            )
        else:
            advance(steps, steps, "no user with 3 interactions to evaluate")
    return night.run.manifest(STAGE)


def run(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The job by itself."""
    return command(STAGE, (__doc__ or "").splitlines()[0], evaluate, argv)


if __name__ == "__main__":
    main(run)
