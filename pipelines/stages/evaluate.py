"""evaluate: the index and the baselines on the held-out interactions.

Two look-ups against the whole catalog: from the last item before the target, nothing but the query left out;
and from the user's history, all of which is left out. What a baseline can be tuned by is chosen on the
validation target; all test figures come from what is known before the test target.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines.context.run_context import Night, command, main
from pipelines.prepare import stage as prepare
from pipelines.stages import embed, train
from pipelines.stages import index as indexing
from recsys.config.sections import PrepareConfig
from recsys.data import pairs
from recsys.data.catalog import Catalog
from recsys.data.splits import Split, Target
from recsys.evaluation import baseline_search as comparison
from recsys.evaluation.baseline_families import families
from recsys.evaluation.baseline_search import LOOK_UPS, Families
from recsys.evaluation.baselines import touched_before
from recsys.evaluation.metrics import TARGET_METRIC, report
from recsys.features import tfidf as bags
from recsys.index import annoy_index as annoy
from recsys.index import embeddings
from recsys.index.distances import DISTANCES
from recsys.release.bundle import CATALOG, EMBEDDINGS

STAGE = "evaluate"


def evaluate(night: Night) -> dict[str, Any]:
    """Do the stage if it is not done, and return its manifest: the figures.

    `model` and `baselines` are of look-ups from the last item, the same below `history` of look-ups from a
    history; `settings` and `validation` tell what was chosen for each baseline, and its figures there.

    Raises:
        StageError: index was not run.
    """
    if night.run.done(STAGE):
        return night.run.manifest(STAGE)
    vectors = embeddings.load(night.run.path(embed.STAGE, EMBEDDINGS))
    search_k = night.run.manifest(indexing.STAGE)["search_k"]
    distance = DISTANCES[night.config.tower.distance]
    index = annoy.load(night.run.path(indexing.STAGE), indexing.shards(night), vectors, search_k, distance=distance)
    trained = night.run.manifest(train.STAGE)
    config = night.config.evaluate
    with night.report.stage(STAGE) as advance, night.run.stage(STAGE) as (_, manifest):
        split = train.load_split(night)
        catalog = Catalog.load(night.run.path(prepare.STAGE, CATALOG))
        step = 0

        def on_model(note: str) -> None:
            nonlocal step
            advance(step, 2 * len(rivals), note)
            step += 1

        rivals = fitted_before("validation", night, split, catalog)
        validation = split.holdout("validation", config.users)
        chosen = comparison.choose(rivals, validation, config, on_model)
        test = split.holdout("test", config.users)
        popularity = catalog.frame["interactions"].to_numpy()
        measured = comparison.measure(
            fitted_before("test", night, split, catalog), chosen, test, popularity, config, on_model=on_model
        )
        model = {}
        for look_up in LOOK_UPS:
            asked = comparison.queries(test, look_up, trained["recency"], config)
            model[look_up] = report(index, asked, test.targets, popularity, config.resamples)
        manifest |= {
            "target": "test",
            "split": config.split,
            "questions": len(test),
            "model": model["last_item"],
            "baselines": measured["last_item"],
            "history": {
                "recency": trained["recency"],
                "model": model["history"],
                "baselines": measured["history"],
            },
            "settings": {
                name: {look_up: choice.settings for look_up, choice in choices.items()}
                for name, choices in chosen.items()
            },
            "validation": {
                **trained["validation"],
                "baselines": {
                    name: {look_up: choice.validation for look_up, choice in choices.items()}
                    for name, choices in chosen.items()
                },
            },
        }
        if len(test):
            others = {name: value[TARGET_METRIC] for name, value in measured["last_item"].items()}
            best = max(others, key=lambda name: others[name])
            advance(1, 1, f"NDCG@20 {model['last_item'][TARGET_METRIC]:.4f}, best baseline {best} {others[best]:.4f}")
        else:
            advance(1, 1, "no user with enough interactions to evaluate")
    return night.run.manifest(STAGE)


def fitted_before(target: Target, night: Night, split: Split, catalog: Catalog) -> Families:
    """The baselines, to be fitted on what is known before a target."""
    config, weight, num_items = night.config, train.BEFORE[target], len(catalog)
    touched = touched_before(split, target, num_items)
    counted = {
        (config.prepare.window, config.prepare.decay): train.load_pairs(night, weight, num_items).matrix(),
    }
    if len(split.sequences.items) <= config.evaluate.windows_up_to:
        alike = np.ones(len(split.sequences.items), np.float32)
        for window, decay in config.evaluate.windows:
            counting = PrepareConfig(window=window, decay=decay)
            found = pairs.mirror(pairs.count(split, alike, num_items, counting, newest=0.0))
            counted.setdefault((window, decay), pairs.matrix(found, num_items, weight))
    attributes = bags.of(catalog.frame, config.items)
    return families(touched, counted, attributes, touched.sum(axis=0), config.evaluate)


def run(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The job by itself."""
    return command(STAGE, (__doc__ or "").splitlines()[0], evaluate, argv)


if __name__ == "__main__":
    main(run)
