"""The training loop: passes over batches, early stopping, and a checkpoint after each pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from recsys.config.sections import TrainConfig
from recsys.errors import StageError
from recsys.evaluation.metrics import VALIDATION_SCORE, VALIDATION_TOLERANCE
from recsys.features.encoding import Inputs
from recsys.index.embeddings import Vectors
from recsys.model.batches import Batches
from recsys.model.checkpoint import Checkpoint, Progress
from recsys.model.negatives import Batch
from recsys.model.optimizer import EncoderAdam
from recsys.model.siamese import Siamese
from recsys.model.tower import make_encoder
from recsys.model.validation import PassValidation

ENCODE_BATCH = 4_096
"""Items per call of the tower when the catalog is embedded after a pass."""

OnPass = Callable[[int, dict[str, float]], None]
"""Called after each pass with its number, from 1, and its figures."""


class TrainingResult(NamedTuple):
    """Result of a training; the tower has the weights of the best pass."""

    embeddings: Vectors
    """Embeddings of the catalog, float32 [num_items, d]."""
    best_pass: int
    """Number of the pass whose weights the tower has, from 1; 0 if no pass was better than the initial weights. Of
    passes within the tolerance of the best score it is the last."""
    score: float
    """Best `validation_score`, -inf without validation."""
    curve: list[dict[str, float]]
    """Figures of all passes in order."""


@dataclass(frozen=True)
class Trainer:
    """Trains a model in passes over the same batches.

    The figures of a pass are `loss`, the mean over its steps; with validation those of `Validation.evaluate`; and after
    hard negatives were mined, `hard_considered`, `hard_known_positive`, `hard_too_similar` and `hard_kept`, in numbers
    of neighbors.
    """

    siamese: Siamese
    """The model; its tower is trained in place."""
    optimizer: EncoderAdam
    batches: Batches
    inputs: Inputs
    """Inputs of the whole catalog."""
    config: TrainConfig
    """`patience` and `thaw_after`."""
    validation: PassValidation | None = None
    """Selects the pass to keep. Without validation all passes are done, and the last one is kept."""
    score_to_beat: float = -np.inf
    """If no pass has a larger score, the tower gets its initial weights back."""
    checkpoint: Checkpoint | None = None
    """Written after each pass; if it exists, the training resumes from it."""
    on_pass: OnPass = lambda *_: None
    """Called after each pass, but not for the passes that a checkpoint already has."""

    def fit(self, max_passes: int) -> TrainingResult:
        """Train the tower.

        Raises:
            StageError: the loss is not finite.
        """
        tower = self.siamese.tower
        # XLA would copy whole tables in each step, and compiles for seconds
        self.siamese.compile(optimizer=self.optimizer, jit_compile=False)
        self.optimizer.build(self.siamese.trainable_variables)
        encode = make_encoder(tower, ENCODE_BATCH)
        variables = [*self.siamese.variables, *self.optimizer.variables]
        progress, best_weights = Progress(self.score_to_beat), tower.get_weights()
        if self.checkpoint is not None:
            saved = self.checkpoint.restore(variables, self.batches, len(best_weights))
            progress, best_weights = saved or (progress, best_weights)
        while len(progress.curve) < max_passes and not self._is_patience_exhausted(progress):
            number = len(progress.curve) + 1
            figures = {"loss": self._train_pass(number)}
            if self.validation is not None or self.batches.mines_after(number):
                figures |= self._evaluate(encode(self.inputs), number)
            if number == self.config.thaw_after:
                self.optimizer.thaw()
            progress.curve.append(figures)
            score = figures.get(VALIDATION_SCORE, self.score_to_beat)
            if self.validation is None or score > progress.best_score - figures.get(VALIDATION_TOLERANCE, 0.0):
                progress.best_pass = number
                progress.best_score = max(score, progress.best_score)
                best_weights = tower.get_weights()
            if self.checkpoint is not None:
                self.checkpoint.save(progress, variables, best_weights, self.batches)
            self.on_pass(number, figures)
        tower.set_weights(best_weights)
        return TrainingResult(encode(self.inputs), progress.best_pass, progress.best_score, progress.curve)

    def _is_patience_exhausted(self, progress: Progress) -> bool:
        """Whether the last `patience` passes were not better than the best pass."""
        return self.validation is not None and len(progress.curve) - progress.best_pass >= self.config.patience

    def _train_pass(self, number: int) -> float:
        """Train one pass over the anchors, and return the mean loss of its steps."""
        losses = [
            float(self.siamese.train_on_batch(batch, return_dict=True)["loss"])
            for batch in _prefetched(self.batches.one_pass())
        ]
        loss = float(np.mean(losses))
        if not np.isfinite(loss):
            raise StageError(
                f"the loss must be finite. Received: {loss} in pass {number}. Try a smaller train.learning_rate."
            )
        return loss

    def _evaluate(self, embeddings: Vectors, number: int) -> dict[str, float]:
        """Validate the embeddings after a pass, and mine hard negatives for the next pass."""
        figures = self.validation.evaluate(embeddings) if self.validation is not None else {}
        if self.batches.mines_after(number):
            report = self.batches.mine_hard_negatives(embeddings)
            figures |= {f"hard_{name}": float(count) for name, count in report.items()}
        return figures


def _prefetched(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yield the same batches; the next batch is drawn while the current step is computed."""
    with ThreadPoolExecutor(1) as executor:
        following = executor.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = executor.submit(next, batches, None)
            yield batch
