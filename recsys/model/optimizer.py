"""Adam with a separate learning rate for each encoder, which changes only the rows of a table that a batch reads.

Pre-trained or dense encoders need a smaller learning rate than embedding tables, or should stay frozen at first. With
the default settings every update of a weight that is not a table equals that of `keras.optimizers.Adam`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import keras
import tensorflow as tf
from keras import ops

from recsys.config.sections import TrainConfig
from recsys.errors import ConfigError
from recsys.features.encoding import Features
from recsys.model.tables import RowGradient
from recsys.model.tower import ID_ENCODER, encoder_names

LearningRate: TypeAlias = float | keras.optimizers.schedules.LearningRateSchedule

FEATURE_LEAD = 150.0
"""Features learn this many times faster than ids, divided by the mean number of interactions per item: the less is
known of each item, the more its features explain. Chosen on four data sets."""
MAX_FEATURE_RATE = 10.0
"""Largest factor of the learning rate of features: with larger ones training took more passes for the same result."""


def feature_rate_factor(lead: float, interactions_per_item: float) -> float:
    """Return the factor of the learning rate of features; see `docs/decisions/0020-features-learn-faster.md`.

    Args:
        lead: factor for items with one interaction, before it is limited; `FEATURE_LEAD`.
        interactions_per_item: mean number of interactions of the items that have any; positive.
    """
    return min(max(lead / interactions_per_item, 1.0), MAX_FEATURE_RATE)


class EncoderAdam(keras.optimizers.Adam):
    """Adam (Kingma and Ba, 2015) with decoupled weight decay (Loshchilov and Hutter, 2019).

    Of a table only the rows that a batch reads are changed, with their moments and their decay ("lazy" Adam): a step
    takes the same time for any number of rows. The moments of the other rows do not fade.

    A weight with factor 0 is frozen: neither gradient nor decay changes it until `thaw` is called. From then on it
    learns at the full rate. If `can_thaw` is set, the moments of frozen weights are updated in the meantime, so that
    their first step has the usual size; otherwise frozen weights cost nothing, not even a gradient.

    Args:
        learning_rate: a number or a Keras schedule.
        factors: Keras variables, each with the factor of its learning rate; 1 for all others.
        decay: share of a weight that a step removes, times its learning rate.
        not_decayed: Keras variables without decay.
        can_thaw: whether `thaw` may be called.
    """

    def __init__(
        self,
        learning_rate: LearningRate,
        factors: Sequence[tuple[Any, float]] = (),
        decay: float = 0.0,
        not_decayed: Sequence[Any] = (),
        *,
        can_thaw: bool = False,
    ) -> None:
        super().__init__(learning_rate)
        self.factors = {self._var_key(weight): factor for weight, factor in factors}
        self.decay = decay
        self.not_decayed = {self._var_key(weight) for weight in not_decayed}
        self.can_thaw = can_thaw
        # a variable, because it changes between calls of a compiled step
        self.thawed = self.add_variable((), name="thawed")

    def thaw(self) -> None:
        """Let frozen weights learn; the training step is not compiled again."""
        self.thawed.assign(1.0)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one weight; called by Keras."""
        key = self._var_key(variable)
        factor = self.factors.get(key, 1.0)
        if factor == 0 and not self.can_thaw:
            return
        rate = learning_rate if factor == 1 else learning_rate * (factor or self.thawed)
        decay = self.decay if key not in self.not_decayed else 0.0
        if isinstance(gradient, tf.IndexedSlices):
            self._update_rows(RowGradient.of(gradient), variable, rate, decay)
            return
        if decay:
            self.assign_sub(variable, variable * ops.cast(rate * decay, variable.dtype))
        super().update_step(gradient, variable, rate)

    def _update_rows(self, gradient: RowGradient, table: Any, rate: Any, decay: float) -> None:
        """Update the rows of a table that have a gradient, as `keras.optimizers.Adam` updates a whole variable."""
        index = self._get_variable_index(table)
        momentum, velocity = self._momentums[index], self._velocities[index]
        step = ops.cast(self.iterations + 1, "float32")
        scale = rate * ops.sqrt(1 - self.beta_2**step) / (1 - self.beta_1**step)
        m, v = gradient.read(momentum), gradient.read(velocity)
        m += (gradient.values - m) * (1 - self.beta_1)
        v += (ops.square(gradient.values) - v) * (1 - self.beta_2)
        change = m * scale / (ops.sqrt(v) + self.epsilon)
        values = gradient.read(table)
        if decay:
            change += values * (rate * decay)
        self.assign(momentum, gradient.slices(m))
        self.assign(velocity, gradient.slices(v))
        self.assign(table, gradient.slices(values - change))  # half the time of `assign_sub`


def build_optimizer(
    config: TrainConfig,
    tower: keras.Model,
    features: Features,
    learning_rate: LearningRate,
    *,
    feature_rate: float = 1.0,
) -> EncoderAdam:
    """Return the optimizer of a tower.

    Args:
        config: `learning_rates`, `weight_decay` and `thaw_after`.
        tower: from `recsys.model.tower`, built for these features.
        features: which column each encoder reads.
        learning_rate: of encoders with factor 1.
        feature_rate: factor of embedding tables of features, and of numeric columns, unless `learning_rates` has one.

    Raises:
        ConfigError: `train.learning_rates` has a name that is not an encoder.
    """
    factors = _rate_factors(config, features, feature_rate)
    return EncoderAdam(
        learning_rate,
        [
            (weight, factors[layer.name])
            for layer in tower.layers
            if layer.name in factors
            for weight in layer.trainable_weights
        ],
        config.weight_decay,
        [weight for weight in tower.trainable_weights if weight.name == "bias"],
        can_thaw=config.thaw_after > 0,
    )


def _rate_factors(config: TrainConfig, features: Features, feature_rate: float) -> dict[str, float]:
    """Layer name of each encoder -> factor of its learning rate."""
    names = encoder_names(features)
    unknown = sorted(set(config.learning_rates) - set(names.values()))
    if unknown:
        raise ConfigError(
            f"train.learning_rates must name encoders of the tower: {', '.join(dict.fromkeys(names.values()))}. "
            f"Received: {', '.join(unknown)}. Name those, or add the columns to [items]."
        )
    sequences = {feature.column for feature in features.tokens if feature.shape == "sequence"}
    defaults = {
        layer: 1.0 if layer == ID_ENCODER or name in sequences else feature_rate for layer, name in names.items()
    }
    return {layer: config.learning_rates.get(name, defaults[layer]) for layer, name in names.items()}
