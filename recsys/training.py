"""Fit a tower on pairs.

Takes the catalogue's tower inputs and a matrix of pairs, hands on a trained tower and its curve. Knows no
MLflow and no files: who wants to watch passes `on_pass`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops
from scipy import sparse

from recsys import losses, tower
from recsys.config import TowerConfig, TrainConfig
from recsys.errors import StageError
from recsys.evaluation import TARGET_METRIC, evaluate
from recsys.exact import ExactIndex
from recsys.features import Features, Inputs
from recsys.sampling import Batch, Sampler
from recsys.splitting import Holdout

ENCODE_BATCH = 4_096

OnPass = Callable[[int, dict[str, float]], None]
"""Called after each pass with its number from 1 and its figures."""


class Fit(NamedTuple):
    """A trained tower."""

    tower: keras.Model
    passes: int
    """Passes whose weights the tower has."""
    curve: list[dict[str, float]]
    """Figures of each pass, the first pass first."""


class Siamese(keras.Model):
    """Both sides of the pairs through one tower, and the loss between them.

    Args:
        tower: inputs -> float32 [n, d].
        inputs: of the whole catalogue, [num_items, ...] each.
        temperature: of the softmax.
    """

    def __init__(self, tower: keras.Model, inputs: Inputs, temperature: float) -> None:
        super().__init__()
        self.tower = tower
        self.inputs_of_items = {name: ops.convert_to_tensor(array) for name, array in inputs.items()}
        self.temperature = temperature

    def call(self, batch: Batch, training: bool = False) -> Any:
        """Embeddings of the batch's candidates, float32 [C, d]."""
        inputs = {name: ops.take(table, batch.candidates, axis=0) for name, table in self.inputs_of_items.items()}
        return self.tower(inputs, training=training)

    def compute_loss(self, x: Any, y: Any, y_pred: Any, *_: Any) -> Any:  # noqa: ARG002 - Keras's signature; `x` has the targets
        """Mean over the anchors, weighted."""
        batch = Batch(*x)
        anchors = ops.take(y_pred, batch.anchors, axis=0)  # [B, d]
        loss = losses.cross_entropy(anchors, y_pred, batch.targets, batch.log_inclusion, self.temperature)
        return ops.mean(loss * batch.anchor_weights)


class PassOfBatches(keras.utils.PyDataset):
    """The batches of one pass; Keras makes the next ones while a step is computed."""

    def __init__(self, sampler: Sampler) -> None:
        super().__init__()
        self.sampler = sampler
        self.on_epoch_end()

    def __len__(self) -> int:
        return len(self.sampler)

    def __getitem__(self, index: int) -> tuple[Batch]:
        size = self.sampler.batch_size
        return (self.sampler.batch(self.order[index * size : (index + 1) * size]),)

    def on_epoch_end(self) -> None:
        """A new order for the next pass."""
        self.order = self.sampler.pass_order()


def fit(
    features: Features,
    inputs: Inputs,
    pairs: sparse.csr_array,
    tower_config: TowerConfig,
    config: TrainConfig,
    *,
    passes: int,
    validation: Holdout | None = None,
    on_pass: OnPass = lambda *_: None,
) -> Fit:
    """Train a tower from scratch.

    Args:
        features: vocabularies that `inputs` were made with.
        inputs: tower inputs of the whole catalogue.
        pairs: symmetric pair weights, float32 [num_items, num_items].
        tower_config: shape of the tower.
        config: how to train.
        passes: passes over the anchors at most.
        validation: look-ups that decide when to stop and which pass to keep (the best NDCG@20); without
            them all passes are made and the last is kept.
        on_pass: told of each pass.

    Raises:
        StageError: no pairs to train on, or the loss is no longer a finite number.
    """
    if pairs.nnz == 0:
        raise StageError(
            "training needs at least one pair of items that one user touched. "
            "Received: none. Give more interactions, or a wider prepare.window."
        )
    encoder_model = tower.build(features, tower_config, config.seed)
    siamese = Siamese(encoder_model, inputs, config.temperature)
    siamese.compile(optimizer=keras.optimizers.Adam(config.learning_rate), jit_compile=True)
    watch = _Watch(encoder_model, inputs, validation, config.patience, on_pass)
    sampler = Sampler(pairs, config, np.random.default_rng(config.seed))
    siamese.fit(PassOfBatches(sampler), epochs=passes, callbacks=[watch], verbose=0, shuffle=False)
    return Fit(encoder_model, watch.restore_best(), watch.curve)


class _Watch(keras.callbacks.Callback):
    """Measures, reports and stops after each pass."""

    def __init__(
        self,
        encoder_model: keras.Model,
        inputs: Inputs,
        validation: Holdout | None,
        patience: int,
        on_pass: OnPass,
    ) -> None:
        super().__init__()
        self.encoder_model = encoder_model
        self.inputs = inputs
        self.validation = validation if validation is not None and len(validation) else None
        self.patience = patience
        self.on_pass = on_pass
        self.encode = tower.encoder(encoder_model, ENCODE_BATCH)
        self.curve: list[dict[str, float]] = []
        self.best_pass = 0
        self.best_weights: list[Any] = []

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Keras calls this after each pass; `epoch` counts from 0."""
        figures = {"loss": float((logs or {})["loss"])}
        if not np.isfinite(figures["loss"]):
            raise StageError(
                f"the loss must stay a finite number. Received: {figures['loss']} in pass {epoch + 1}. "
                "Try a smaller train.learning_rate."
            )
        if self.validation is not None:
            index = ExactIndex(self.encode(self.inputs))
            scores = evaluate(index, self.validation)
            figures |= {f"validation_{name}": value for name, value in scores.items()}
            if not self.best_pass or scores[TARGET_METRIC] > self._best():
                self.best_pass, self.best_weights = epoch + 1, self.encoder_model.get_weights()
            elif epoch + 1 - self.best_pass >= self.patience:
                self.model.stop_training = True
        self.curve.append(figures)
        self.on_pass(epoch + 1, figures)

    def _best(self) -> float:
        return self.curve[self.best_pass - 1][f"validation_{TARGET_METRIC}"]

    def restore_best(self) -> int:
        """Give the tower the weights of the best pass, and say which one it was."""
        if not self.best_pass:
            return len(self.curve)
        self.encoder_model.set_weights(self.best_weights)
        return self.best_pass
