"""Likeness of neighbors: the towers of a run and the baselines, compared with evidence that none was trained on.

Agreement with other users is measured on fits without these users: the validation fits of the towers, and baselines
fitted to the same data. Item groups and columns are in no training data, so the released embeddings and baselines of
all users are compared with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.context.item_groups import read_groups
from pipelines.stages import train, train_similar
from recsys.config.sections import Config, ItemsConfig
from recsys.config.senses import Sense
from recsys.data.catalog import Catalog
from recsys.data.splits import Split
from recsys.evaluation.baseline_search import Variant, Variants
from recsys.evaluation.likeness import MAX_ITEMS, CatalogEvidence, agreement_report, group_item_numbers, likeness_report
from recsys.evaluation.metrics import Recommender
from recsys.evaluation.protocol import PROTOCOL
from recsys.features.tfidf import tfidf_matrix, unit_length_rows
from recsys.release.runs import Run

Report = dict[str, Any]


def catalog_evidence(config: Config, catalog: Catalog) -> CatalogEvidence | None:
    """Return the item groups and the columns that no model reads; None if the config names neither."""
    groups = group_item_numbers(read_groups(config.data.alike), catalog) if config.data.alike else []
    columns = None
    if config.items.evidence:
        matrix = tfidf_matrix(catalog.frame, ItemsConfig(text=config.items.evidence))
        columns = None if matrix is None else unit_length_rows(matrix)
    return CatalogEvidence(groups, columns) if groups or columns is not None else None


class LikenessMeasurement:
    """Measures the likeness of the models of a run.

    Args:
        config: the complete config.
        run: a run whose stages before `evaluate` are finished.
        split: its sequences.
        catalog: its catalog.
    """

    def __init__(self, config: Config, run: Run, split: Split, catalog: Catalog) -> None:
        self.trained = run.of("similar").manifest(train.STAGE)
        self.users_evidence, self.catalog_evidence = train.load_evidence(run), catalog_evidence(config, catalog)
        self.popularity = catalog.frame["interactions"].to_numpy()
        self.known_popularity = split.popularity("validation", len(catalog))

    def measure(
        self,
        released: Mapping[Sense, Recommender],
        settings: Mapping[str, Mapping[str, float]],
        validation: Variants,
        test: Variants,
    ) -> Report:
        """Return the space of `similar` with its reason, and the likeness of each model.

        Args:
            released: indexes of the released embeddings.
            settings: settings of each baseline.
            validation: variants of the baselines, fitted to the training data for validation.
            test: variants of the baselines, fitted to the training data for the test.

        Returns:
            `space`; `reason`; `model`, the reports of `similar` and `next`; `baselines`, the report of each baseline.
            A report has the figures of `recsys.evaluation.likeness.likeness_report` for which there is evidence.
        """
        models = {sense: self._report(None, index) for sense, index in released.items()}
        chosen = self.trained["space"]
        for sense, name in (("next", train_similar.NEXT), ("similar", self.trained["candidate"])):
            if sense in models and name in self.trained["candidates"]:
                _merge(models[sense], self.trained["candidates"][name]["likeness"])
        baselines = {
            name: self._report(
                _fit(validation[name], settings[name]) if self.users_evidence else None,
                _fit(variants, settings[name]) if self.catalog_evidence else None,
            )
            for name, variants in test.items()
        }
        return {"space": chosen, "reason": self.trained["reason"], "model": models, "baselines": baselines}

    def _report(self, validation: Recommender | None, test: Recommender | None) -> Report:
        report: Report = {}
        if self.users_evidence is not None and validation is not None:
            report = agreement_report(validation, self.known_popularity, PROTOCOL.resamples, self.users_evidence)
        if self.catalog_evidence is not None and test is not None:
            members = np.concatenate([np.empty(0, np.int32), *self.catalog_evidence.groups])
            items = np.unique(np.concatenate([members, self._sample()])).astype(np.int32)
            _merge(
                report,
                likeness_report(test, self.popularity, PROTOCOL.resamples, catalog=self.catalog_evidence, items=items),
            )
        return report

    def _sample(self) -> np.ndarray:
        items = np.flatnonzero(self.popularity > 0)
        return np.random.default_rng(0).choice(items, min(len(items), MAX_ITEMS), replace=False)


def _merge(report: Report, other: Report) -> None:
    """Add the figures of another report of the same model."""
    for name, value in other.items():
        if isinstance(value, dict):
            report[name] = {**report.get(name, {}), **value}
        else:
            report[name] = value


def _fit(variants: Sequence[Variant], settings: Mapping[str, float]) -> Recommender:
    return next(variant.fit() for variant in variants if variant.settings == settings)
