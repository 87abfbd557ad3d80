"""evaluate: measure the tower and the baselines on held-out interactions.

The tower is measured by exact search in catalogs whose neighbor table is exact, where the index takes ten times as long
and misses at most a fiftieth of the neighbors, otherwise by the index.

Two kinds of queries are evaluated on the whole catalog: the last item before the target, which excludes only that item
from the results, and the user's history, which excludes all of its items. The settings of the baselines are chosen on
the validation targets; all test figures are computed from the interactions before the test targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from pipelines.context.progress import Progress
from pipelines.prepare import stage as prepare
from pipelines.stages import embed, train
from pipelines.stages import index as indexing
from pipelines.stages.likeness import LikenessMeasurement
from pipelines.stages.train_similar import has_own_space
from recsys.config.sections import Config, PrepareConfig
from recsys.config.senses import Sense
from recsys.data import cooccurrence
from recsys.data.catalog import Catalog
from recsys.data.splits import WEIGHTS, Split, Target
from recsys.evaluation.baseline_search import (
    QUERY_KINDS,
    Variants,
    baseline_variants,
    choose_settings,
    evaluate_baselines,
    make_queries,
)
from recsys.evaluation.baselines import interaction_matrix
from recsys.evaluation.metrics import TARGET_METRIC, Recommender, evaluation_report
from recsys.evaluation.protocol import PROTOCOL
from recsys.features.tfidf import tfidf_matrix
from recsys.index import annoy_index, embeddings, neighbors
from recsys.index.distances import DISTANCES
from recsys.index.exact import ExactIndex
from recsys.release.formats import CATALOG, EMBEDDINGS
from recsys.release.runs import Run

STAGE = "evaluate"


def evaluate(config: Config, run: Run, progress: Progress) -> dict[str, Any]:
    """Run the stage if it is not done, and return its manifest with the figures.

    Returns:
        The manifest. `model` and `baselines` contain the figures for last-item queries, `history` those for history
        queries; `likeness` those of `pipelines.stages.likeness`; `settings` and `validation` contain the chosen
        settings of each baseline and their metrics on the validation targets.

    Raises:
        StageError: the index stage has not run.
    """
    if run.done(STAGE):
        return run.manifest(STAGE)
    senses: list[Sense] = ["next", "similar"] if has_own_space(run) else ["next"]
    towers = {sense: _load_tower(config, run.of(sense)) for sense in senses}
    trained = run.manifest(train.STAGE)
    with progress.stage(STAGE) as advance, run.stage(STAGE) as (_, manifest):
        split = train.load_split(run)
        catalog = Catalog.load(run.path(prepare.STAGE, CATALOG))
        step = 0

        def on_model(note: str) -> None:
            nonlocal step
            advance(step, 2 * len(variants), note)
            step += 1

        baselines = BaselineData(config, run, split, catalog)
        variants = baselines.variants("validation")
        validation = split.holdout("validation", config.evaluate.users)
        chosen = choose_settings(variants, validation, PROTOCOL, on_model)
        test = split.holdout("test", config.evaluate.users)
        popularity = catalog.frame["interactions"].to_numpy()
        test_variants = baselines.variants("test")
        reports = evaluate_baselines(
            test_variants,
            chosen,
            test,
            popularity,
            PROTOCOL,
            on_model=on_model,
        )
        model = {}
        for kind in QUERY_KINDS:
            queries = make_queries(test, kind, trained["recency"], PROTOCOL)
            model[kind] = evaluation_report(towers["next"], queries, test.targets, popularity, PROTOCOL.resamples)
        likeness = LikenessMeasurement(config, run, split, catalog).measure(
            towers,
            {name: choices["last_item"].settings for name, choices in chosen.items()},
            variants,
            test_variants,
        )
        manifest |= {
            "target": "test",
            "split": config.evaluate.split,
            "queries": len(test),
            "model": model["last_item"],
            "baselines": reports["last_item"],
            "history": {
                "recency": trained["recency"],
                "model": model["history"],
                "baselines": reports["history"],
            },
            "likeness": likeness,
            "settings": {
                name: {kind: choice.settings for kind, choice in choices.items()} for name, choices in chosen.items()
            },
            "validation": {
                **trained["validation"],
                "baselines": {
                    name: {kind: choice.validation for kind, choice in choices.items()}
                    for name, choices in chosen.items()
                },
            },
        }
        if len(test):
            scores = {name: figures[TARGET_METRIC] for name, figures in reports["last_item"].items()}
            best = max(scores, key=lambda name: scores[name])
            advance(1, 1, f"NDCG@20 {model['last_item'][TARGET_METRIC]:.4f}, best baseline {best} {scores[best]:.4f}")
        else:
            advance(1, 1, "no user with enough interactions to evaluate")
    return run.manifest(STAGE)


def _load_tower(config: Config, run: Run) -> Recommender:
    """Return what searches the embeddings of the sense of a run."""
    vectors, distance = embeddings.load(run.path(embed.STAGE, EMBEDDINGS)), DISTANCES[config.tower.distance]
    search_k = run.manifest(indexing.STAGE)["search_k"]
    if neighbors.is_exact(len(vectors), distance):
        return ExactIndex(np.asarray(vectors), distance)
    shards = indexing.index_shards(config, run)
    return annoy_index.load(run.path(indexing.STAGE), shards, vectors, search_k, distance=distance)


class BaselineData:
    """Data of the baselines. The counts of pairs have all weights, so they are computed once for all fits.

    Args:
        config: the complete config.
        run: a run whose prepare stage is finished.
        split: its sequences.
        catalog: its catalog.
    """

    def __init__(self, config: Config, run: Run, split: Split, catalog: Catalog) -> None:
        self.config, self.run, self.split, self.num_items = config, run, split, len(catalog)
        self.attributes = tfidf_matrix(catalog.frame, config.items)

    @cached_property
    def windows(self) -> Mapping[tuple[int, float], pl.DataFrame]:
        """Counts of pairs by window and decay of the protocol, if the log is small; without those of `prepare`."""
        interactions, prepared = self.split.sequences.items, self.config.prepare
        if len(interactions) > PROTOCOL.windows_max_interactions:
            return {}
        equal_weights = np.ones(len(interactions), np.float32)
        return {
            (window, decay): cooccurrence.mirror(
                cooccurrence.count_pairs(
                    self.split, equal_weights, PrepareConfig(window=window, decay=decay), newest=0.0
                )
            )
            for window, decay in PROTOCOL.windows
            if (window, decay) != (prepared.window, prepared.decay)
        }

    def variants(self, target: Target) -> Variants:
        """Return the variants of the baselines, fitted to the training data for a target."""
        interactions = interaction_matrix(self.split, target, self.num_items)
        prepared = self.config.prepare
        pairs = {(prepared.window, prepared.decay): train.load_pairs(self.run, target, self.num_items).to_matrix()}
        for window, counts in self.windows.items():
            pairs[window] = cooccurrence.to_matrix(counts, self.num_items, WEIGHTS[target])
        return baseline_variants(interactions, pairs, self.attributes, interactions.sum(axis=0), PROTOCOL)
