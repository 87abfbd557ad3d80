"""evaluate: the index and the baselines on the held-out interactions.

Two look-ups against the whole catalog: from the last item before the target, nothing but the query left out;
and from the user's history, all of which is left out. What a baseline can be tuned by is chosen on the
validation target; all test figures come from what is known before the test target.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipelines.context.progress import Progress
from pipelines.prepare import stage as prepare
from pipelines.stages import embed, train
from pipelines.stages import index as indexing
from recsys.config.sections import Config, PrepareConfig
from recsys.data import cooccurrence
from recsys.data.catalog import Catalog
from recsys.data.splits import Split, Target
from recsys.evaluation import baseline_search as comparison
from recsys.evaluation.baseline_families import families
from recsys.evaluation.baseline_search import LOOK_UPS, Families
from recsys.evaluation.baselines import touched_before
from recsys.evaluation.metrics import TARGET_METRIC, report
from recsys.evaluation.protocol import PROTOCOL
from recsys.features.tfidf import tfidf_matrix
from recsys.index import annoy_index, embeddings
from recsys.index.distances import DISTANCES
from recsys.release.formats import CATALOG, EMBEDDINGS
from recsys.release.runs import Run

STAGE = "evaluate"


def evaluate(config: Config, run: Run, progress: Progress) -> dict[str, Any]:
    """Do the stage if it is not done, and return its manifest: the figures.

    `model` and `baselines` are of look-ups from the last item, the same below `history` of look-ups from a
    history; `settings` and `validation` tell what was chosen for each baseline, and its figures there.

    Raises:
        StageError: index was not run.
    """
    if run.done(STAGE):
        return run.manifest(STAGE)
    vectors = embeddings.load(run.path(embed.STAGE, EMBEDDINGS))
    search_k = run.manifest(indexing.STAGE)["search_k"]
    distance = DISTANCES[config.tower.distance]
    index = annoy_index.load(
        run.path(indexing.STAGE), indexing.shards(config, run), vectors, search_k, distance=distance
    )
    trained = run.manifest(train.STAGE)
    with progress.stage(STAGE) as advance, run.stage(STAGE) as (_, manifest):
        split = train.load_split(run)
        catalog = Catalog.load(run.path(prepare.STAGE, CATALOG))
        step = 0

        def on_model(note: str) -> None:
            nonlocal step
            advance(step, 2 * len(rivals), note)
            step += 1

        rivals = fitted_before("validation", config, run, split, catalog)
        validation = split.holdout("validation", config.evaluate.users)
        chosen = comparison.choose(rivals, validation, PROTOCOL, on_model)
        test = split.holdout("test", config.evaluate.users)
        popularity = catalog.frame["interactions"].to_numpy()
        measured = comparison.measure(
            fitted_before("test", config, run, split, catalog),
            chosen,
            test,
            popularity,
            PROTOCOL,
            on_model=on_model,
        )
        model = {}
        for look_up in LOOK_UPS:
            asked = comparison.queries(test, look_up, trained["recency"], PROTOCOL)
            model[look_up] = report(index, asked, test.targets, popularity, PROTOCOL.resamples)
        manifest |= {
            "target": "test",
            "split": config.evaluate.split,
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
    return run.manifest(STAGE)


def fitted_before(target: Target, config: Config, run: Run, split: Split, catalog: Catalog) -> Families:
    """The baselines, to be fitted on what is known before a target."""
    weight, num_items = train.BEFORE[target], len(catalog)
    touched = touched_before(split, target, num_items)
    counted = {
        (config.prepare.window, config.prepare.decay): train.load_pairs(run, weight, num_items).to_matrix(),
    }
    if len(split.sequences.items) <= PROTOCOL.windows_max_interactions:
        alike = np.ones(len(split.sequences.items), np.float32)
        for window, decay in PROTOCOL.windows:
            counting = PrepareConfig(window=window, decay=decay)
            found = cooccurrence.mirror(cooccurrence.count_pairs(split, alike, num_items, counting, newest=0.0))
            counted.setdefault((window, decay), cooccurrence.to_matrix(found, num_items, weight))
    attributes = tfidf_matrix(catalog.frame, config.items)
    return families(touched, counted, attributes, touched.sum(axis=0), PROTOCOL)
