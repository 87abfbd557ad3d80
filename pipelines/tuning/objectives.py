"""Objective of a tuning, by sense: what the data must have, and how the value of a trial is measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from pipelines.prepare import similar_pairs
from pipelines.prepare import stage as prepare
from pipelines.stages.train import fit_tower, load_split, measure_validation
from pipelines.stages.train_similar import candidate_name, measure_candidate
from recsys.config.sections import Config
from recsys.config.senses import Sense
from recsys.errors import ConfigError, StageError
from recsys.evaluation.baseline_search import QUERY_KINDS
from recsys.evaluation.likeness import AGREEMENT, MIN_ITEMS, Evidence
from recsys.evaluation.metrics import validation_score
from recsys.model.fit_plan import validation_plan
from recsys.release.runs import Run

if TYPE_CHECKING:
    from recsys.model.tower_fit import OnPhasePass


class Objective(Protocol):
    """What the settings of a trial are judged by."""

    metric: str
    """Name of the value, for people."""
    explanation: str
    """What the value is measured on."""

    def check_config(self, config: Config) -> None:
        """Raise a `ConfigError` if the config does not allow a measurement."""
        ...

    def check_data(self, config: Config, run: Run) -> None:
        """Raise a `StageError` if the prepared data do not allow a measurement."""
        ...

    def max_passes(self, config: Config) -> int:
        """Return the maximum number of passes of a trial."""
        ...

    def measure(self, config: Config, run: Run, on_pass: OnPhasePass) -> dict[str, float]:
        """Fit a tower to prepared data; return the value of the trial, `value`, which is maximized, and its figures."""
        ...


class NextObjective:
    """The mean of the NDCG@20 of last-item and of history queries on the validation targets."""

    metric = "validation NDCG@20"
    explanation = "mean of last-item and history queries"

    def check_config(self, config: Config) -> None:
        """Accept every config."""

    def check_data(self, config: Config, run: Run) -> None:
        """Require validation queries."""
        if not len(load_split(run).holdout("validation", config.evaluate.users)):
            raise StageError(
                "tuning needs validation targets, which are interactions of the users held out. Received: none. "
                "Provide more interactions, or another evaluate.split."
            )

    def max_passes(self, config: Config) -> int:
        """Return the number of passes over pairs and histories."""
        return config.train.passes + config.train.history_passes

    def measure(self, config: Config, run: Run, on_pass: OnPhasePass) -> dict[str, float]:
        """Return the figures of the validation fit."""
        fitted = fit_tower(config, run, validation_plan(config), on_pass)
        measured = measure_validation(config, load_split(run), fitted.embeddings)["validation"]
        figures = {
            f"validation_{kind}_{name}": value
            for kind in QUERY_KINDS
            for name, value in measured[kind].items()
            if isinstance(value, float)
        }
        return {"value": validation_score(measured.values()), **figures}


class SimilarObjective:
    """The agreement of the candidate of `pipelines.stages.train_similar` with the users held out."""

    metric = "agreement"
    explanation = "NDCG@10, with users held out of the training"

    def __init__(self) -> None:
        self._evidence: Evidence | None = None

    def check_config(self, config: Config) -> None:
        """Require that `similar` is trained from the associations of items."""
        if not config.similar.enabled:
            raise ConfigError(
                "tuning of the sense similar needs similar.enabled = true. Received: false. Turn it on, or tune the "
                "sense next."
            )
        if config.data.labeled_pairs:
            raise ConfigError(
                "tuning of the sense similar needs pairs from interactions. Received: data.labeled_pairs, on which one "
                "tower is trained for both senses. Remove it, or tune the sense next."
            )

    def check_data(self, config: Config, run: Run) -> None:
        """Require pairs of `similar`, and enough items that the users held out associate."""
        prepared = run.manifest(prepare.STAGE)
        if not prepared["similar_pairs"]:
            raise StageError(
                "tuning of the sense similar needs histories longer than the window: at most "
                f"{similar_pairs.MAX_SHARE_IN_WINDOW:.0%} of the pairs of a history within prepare.window = "
                f"{config.prepare.window}. Received: {prepared['share_in_window']:.0%}. Tune the sense next, which "
                "serves both senses in such data."
            )
        evidence = self._evidence_of(run)
        if not evidence.is_enough:
            raise StageError(
                f"tuning of the sense similar needs at least {MIN_ITEMS} items that the users held out "
                f"associate. Received: {len(evidence.items)}. Provide more interactions, or tune the sense next."
            )

    def max_passes(self, config: Config) -> int:
        """Return the number of passes over pairs."""
        return config.similar.passes

    def measure(self, config: Config, run: Run, on_pass: OnPhasePass) -> dict[str, float]:
        """Return the likeness of the candidate, which is fitted without the users held out."""
        candidate = candidate_name(load_split(run))
        measured = measure_candidate(config, run, candidate, self._evidence_of(run), on_pass)
        likeness: Mapping[str, object] = measured["likeness"]
        figures = {
            f"validation_{name}": value
            for name, value in likeness.items()
            if isinstance(value, float) and math.isfinite(value)
        }
        return {"value": figures[f"validation_{AGREEMENT}"], **figures}

    def _evidence_of(self, run: Run) -> Evidence:
        """Return the evidence; it is the same for all trials, because no setting of `[similar]` changes it."""
        if self._evidence is None:
            num_items = run.manifest(prepare.STAGE)["num_items"]
            self._evidence = Evidence.of_held_out_users(load_split(run), num_items)
        return self._evidence


OBJECTIVES: dict[Sense, type[Objective]] = {"next": NextObjective, "similar": SimilarObjective}
