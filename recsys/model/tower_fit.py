"""A fit: trains a tower phase by phase, as its plan says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.config.sections import Config
from recsys.data.labeled_pairs import LabeledPairs
from recsys.data.pairs import Pairs
from recsys.data.splits import Split
from recsys.evaluation.likeness import Evidence
from recsys.evaluation.metrics import VALIDATION_SCORE
from recsys.evaluation.protocol import PROTOCOL
from recsys.features.encoding import Features
from recsys.index.distances import DISTANCES
from recsys.index.embeddings import Vectors
from recsys.index.queries import default_recency
from recsys.model import tower
from recsys.model.batches import Batches, HistoryBatches, LabeledBatches, PairBatches
from recsys.model.checkpoint import Checkpoint
from recsys.model.fit_plan import FitPlan, HistoryPhase, NewItemPhase, PairPhase, Passes, Phase, PhaseName
from recsys.model.optimizer import FEATURE_LEAD, EncoderAdam, LearningRate, build_optimizer, feature_rate_factor
from recsys.model.siamese import NewItemSiamese, Siamese
from recsys.model.trainer import Trainer
from recsys.model.validation import LikenessValidation, PassValidation, Validation
from recsys.model.warm_start import Report, warm_start

OnPhasePass = Callable[[PhaseName, int, dict[str, float]], None]
"""Called after each pass with its phase, its number counted from the start of the fit, and its figures."""


class EarlierTower(NamedTuple):
    """A tower to start from."""

    tower: keras.Model
    features: Features


class FitData(NamedTuple):
    """What a fit is trained and validated on."""

    catalog: pl.DataFrame
    """Item ids and feature columns, one row per item."""
    split: Split
    """Users' sequences."""
    pairs: Pairs
    """Pairs of the training data for the target."""
    labeled_pairs: LabeledPairs | None = None
    """If given, these are trained on instead of the pairs and histories."""
    earlier: EarlierTower | None = None
    """Warm start from this tower, which has the dimension and distance of the config."""
    evidence: Evidence | None = None
    """If given, passes are validated by likeness instead of the held-out targets."""


class FittedTower(NamedTuple):
    """The result of a fit."""

    tower: keras.Model
    features: Features
    embeddings: Vectors
    """Embeddings of the catalog, float32 [num_items, d]."""
    passes: Passes
    """Passes that were kept."""
    recency: float | None
    """Recency of the history phase; None if there was none."""
    curve: list[dict[str, float]]
    """Figures of each pass over pairs and histories, in order."""
    feature_rate: float
    """Factor of the learning rate of features."""
    warm_start: Report
    """What was copied from an earlier tower."""


class TowerFit:
    """A fit in progress: the tower, and the results of the phases so far.

    Args:
        plan: the phases.
        data: what to train on.
        config: the whole config.
        checkpoints: folder in which each phase writes a checkpoint, and from which an interrupted fit resumes.
        on_pass: called after each pass.

    Raises:
        StageError: there is no pair to train on.
    """

    def __init__(
        self,
        plan: FitPlan,
        data: FitData,
        config: Config,
        *,
        checkpoints: Path | None = None,
        on_pass: OnPhasePass = lambda *_: None,
    ) -> None:
        self.plan, self.data, self.config = plan, data, config
        self.checkpoints, self.on_pass = checkpoints, on_pass
        self.batches = _batches(data, config)
        self.features = Features.fit(data.catalog, config.items, config.tower, _pairs_per_item(data))
        self.inputs = self.features.transform(data.catalog)
        self.feature_rate = self._feature_rate()
        self.tower = tower.build(self.features, config.tower, config.train.seed)
        self.warm_start: Report = {}
        if data.earlier is not None:
            self.warm_start = warm_start(self.tower, self.features, data.earlier.tower, data.earlier.features)
        self.embeddings: Vectors = np.empty((0, config.tower.dimension), np.float32)
        self.passes = Passes(0, 0)
        self.history_recency: float | None = None
        self.curve: list[dict[str, float]] = []

    def run(self) -> FittedTower:
        """Train all phases in order.

        Raises:
            StageError: the loss is not finite.
        """
        for phase in self.plan.phases:
            match phase:
                case PairPhase():
                    self._train_on_pairs(phase)
                case HistoryPhase():
                    self._train_on_histories(phase)
                case NewItemPhase():
                    self._train_for_new_items(phase)
        return FittedTower(
            self.tower,
            self.features,
            self.embeddings,
            self.passes,
            self.history_recency,
            self.curve,
            self.feature_rate,
            self.warm_start,
        )

    def _train_on_pairs(self, phase: PairPhase) -> None:
        model = Siamese(self.tower, self.inputs, self.config, anchor_power=phase.anchor_power)
        adam = self._adam(self.tower, self.config.train.learning_rate, self.feature_rate)
        trainer = self._trainer(phase, model, adam, self.batches, self._validation(phase))
        result = trainer.fit(phase.passes)
        self.passes = Passes(result.best_pass, 0)
        self.embeddings = result.embeddings
        self.curve += result.curve

    def _train_on_histories(self, phase: HistoryPhase) -> None:
        validation, score_to_beat = self._validation(phase), -np.inf
        recency = phase.recency or default_recency(PROTOCOL.recencies)
        if isinstance(validation, Validation):
            validation = validation.with_best_recency(self.embeddings)
            recency = validation.recency
            score_to_beat = (1 - phase.tolerance) * validation.evaluate(self.embeddings)[VALIDATION_SCORE]
        batches = HistoryBatches(self.data.split, self.plan.target, self.data.pairs, self.config, recency)
        learning_rate = keras.optimizers.schedules.PolynomialDecay(
            self.config.train.learning_rate / phase.rate_divisor, phase.passes * len(batches), end_learning_rate=0.0
        )
        adam = self._adam(self.tower, learning_rate, self.feature_rate)
        adam.thaw()
        model = Siamese(self.tower, self.inputs, self.config)
        trainer = self._trainer(phase, model, adam, batches, validation)
        result = replace(trainer, score_to_beat=score_to_beat).fit(phase.passes)
        self.passes = self.passes._replace(histories=phase.passes if result.best_pass else 0)
        self.history_recency = recency
        self.embeddings = result.embeddings
        self.curve += result.curve

    def _train_for_new_items(self, phase: NewItemPhase) -> None:
        new = tower.build_for_new_items(self.tower, self.features, self.config.tower, self.config.train.seed)
        model = NewItemSiamese(
            new, self.inputs, self.config, anchor_power=phase.anchor_power, embeddings=self.embeddings
        )
        adam = self._adam(new, self.config.train.learning_rate, phase.feature_rate)
        adam.thaw()
        trainer = self._trainer(phase, model, adam, self.batches, validation=None)
        result = trainer.fit(phase.passes_per_pair_pass * self.passes.pairs)
        self.tower = tower.combine(self.tower, new)
        self.embeddings = np.where(self._is_known[:, None], self.embeddings, result.embeddings)

    def _trainer(
        self, phase: Phase, model: Siamese, adam: EncoderAdam, batches: Batches, validation: PassValidation | None
    ) -> Trainer:
        checkpoint = None
        if self.checkpoints is not None:
            checkpoint = Checkpoint(self.checkpoints / f"{self.plan.target}-{phase.name}.npz")
        earlier_passes = len(self.curve)
        return Trainer(
            model,
            adam,
            batches,
            self.inputs,
            self.config.train,
            validation,
            checkpoint=checkpoint,
            on_pass=lambda number, figures: self.on_pass(phase.name, earlier_passes + number, figures),
        )

    def _adam(self, trained: keras.Model, learning_rate: LearningRate, feature_rate: float) -> EncoderAdam:
        return build_optimizer(self.config.train, trained, self.features, learning_rate, feature_rate=feature_rate)

    def _validation(self, phase: PairPhase | HistoryPhase) -> PassValidation | None:
        """Validation of a phase; None also if no interaction is held out."""
        if not phase.validate:
            return None
        if self.data.evidence is not None:
            return LikenessValidation(self.data.evidence, self._is_known, DISTANCES[self.config.tower.distance])
        train = self.config.train
        holdout = self.data.split.holdout(self.plan.target, train.validation_queries, train.seed)
        if not len(holdout):
            return None
        # new items are trained in the last phase; before, their embeddings would only take the places of other items
        retrievable = self._is_known if self.data.labeled_pairs is None else None
        return Validation(holdout, DISTANCES[self.config.tower.distance], retrievable)

    def _feature_rate(self) -> float:
        known_items = self.data.split.sequences.items[self.data.split.training_mask(self.plan.target)]
        interactions_per_item = max(len(known_items), 1) / max(len(np.unique(known_items)), 1)
        return feature_rate_factor(FEATURE_LEAD, interactions_per_item)

    @property
    def _is_known(self) -> NDArray[np.bool_]:
        """Items with an id that the tower knows, bool [num_items]; the others are new items."""
        return self.inputs["id"] > 0


def _batches(data: FitData, config: Config) -> Batches:
    if data.labeled_pairs is not None:
        return LabeledBatches(data.labeled_pairs, len(data.catalog), config)
    return PairBatches(data.pairs, config)


def _pairs_per_item(data: FitData) -> NDArray[np.int64]:
    """Number of pairs of each item, int64 [num_items]."""
    labeled = data.labeled_pairs
    if labeled is None:
        return data.pairs.counts
    return np.bincount(np.concatenate([labeled.first, labeled.second]), minlength=len(data.catalog))
