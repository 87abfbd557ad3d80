"""The Keras models that are trained: two inputs of a pair through one tower, and the loss between the embeddings."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from recsys.config.sections import Config
from recsys.features.encoding import Inputs
from recsys.index.distances import DISTANCES
from recsys.index.embeddings import Vectors
from recsys.model import losses
from recsys.model.negatives import Batch


class Siamese(keras.Model):
    """Anchors and candidates through the same tower.

    Args:
        tower: inputs -> float32 [n, d].
        inputs: inputs of the whole catalog, [num_items, ...] each; those that the tower does not read are ignored.
        config: `train` and `tower`.
        anchor_power: exponent of an anchor's weight in the loss. 0 weighs all anchors equally, 1 in proportion to the
            weight of their pairs.
    """

    def __init__(self, tower: keras.Model, inputs: Inputs, config: Config, *, anchor_power: float = 1.0) -> None:
        super().__init__()
        self.tower = tower
        self.anchor_power = anchor_power
        self.normalize = DISTANCES[config.tower.distance].unit_norm
        self.batch_loss = losses.from_config(config.train, config.tower)
        self.catalog_inputs = {name: ops.convert_to_tensor(inputs[name]) for name in tower.input}

    def call(self, batch: Batch, training: bool = False) -> tuple[Any, Any]:
        """Return the embeddings of the batch's anchors, float32 [B, d], and of its candidates, float32 [C, d]."""
        candidates = self.embed(batch.candidates, training=training)
        anchors = ops.einsum("bl,bld->bd", batch.shares, ops.take(candidates, batch.anchors, axis=0))
        if self.normalize:
            return ops.normalize(anchors, axis=1), candidates
        return anchors / ops.sum(batch.shares, axis=1, keepdims=True), candidates

    def embed(self, item_numbers: Any, *, training: bool) -> Any:
        """Return embeddings of items, int32 [n] -> float32 [n, d]."""
        inputs = {name: ops.take(table, item_numbers, axis=0) for name, table in self.catalog_inputs.items()}
        return self.tower(inputs, training=training)

    def compute_loss(self, x: Any, y: Any, y_pred: Any, *_: Any) -> Any:  # noqa: ARG002 - Keras's signature; `x` has the targets
        """Return the weighted mean of the losses of the anchors."""
        batch = Batch(*x)
        anchors, candidates = y_pred
        loss = self.batch_loss(anchors, candidates, batch.targets, batch.log_inclusion, batch.log_popularity)  # [B]
        return ops.mean(loss * batch.anchor_weights**self.anchor_power)


class NewItemSiamese(Siamese):
    """Anchors through a tower that reads their features only, candidates from a fixed matrix of embeddings.

    Known items stand in for new ones: their pairs say which embedding their features should lead to. The embeddings of
    known items do not change. See `docs/decisions/0022-encoders-for-new-items.md`.

    Args:
        tower: inputs without the id -> float32 [n, d].
        inputs: inputs of the whole catalog, [num_items, ...] each.
        config: `train` and `tower`.
        anchor_power: see `Siamese`.
        embeddings: of the catalog, float32 [num_items, d].
    """

    def __init__(
        self, tower: keras.Model, inputs: Inputs, config: Config, *, anchor_power: float = 1.0, embeddings: Vectors
    ) -> None:
        super().__init__(tower, inputs, config, anchor_power=anchor_power)
        self.embeddings = ops.convert_to_tensor(embeddings)

    def call(self, batch: Batch, training: bool = False) -> tuple[Any, Any]:
        """Return the embeddings of the newest item of each anchor, [B, d], and of the candidates, [C, d]."""
        newest = ops.take(batch.candidates, batch.anchors[:, 0])
        return self.embed(newest, training=training), ops.take(self.embeddings, batch.candidates, axis=0)
