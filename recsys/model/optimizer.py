"""Adam with a learning rate of its own for each encoder.

Pre-trained or dense encoders want a smaller rate than the tables of ids, or none until the rest has found its
place. Without any such setting it is Keras's Adam, number by number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from recsys.config.sections import TrainConfig
from recsys.errors import ConfigError
from recsys.features.encoding import Features
from recsys.model.tower import ID_ENCODER, encoder_names

MOST = 10.0
"""Times that features learn faster than ids at most: beyond it, passes were lost and nothing gained."""


def feature_rate(lead: float, touched: float) -> float:
    """Factor of the learning rate of features; see `docs/decisions/0020-features-learn-faster.md`.

    Args:
        lead: `train.feature_lead`.
        touched: interactions of an item, their mean; above 0.
    """
    return min(max(lead / touched, 1.0), MOST)


class EncoderAdam(keras.optimizers.Adam):
    """Adam (Kingma & Ba, 2015), with decoupled weight decay (Loshchilov & Hutter, 2019) where it is wanted.

    A weight of factor 0 is frozen: neither gradient nor decay moves it, until `thaw`, and from then on it learns
    at the full rate. What may thaw keeps its moments up to date meanwhile, so that its first step is of the usual
    size; what never will costs nothing, not even its gradient.

    Args:
        learning_rate: a number or a Keras schedule.
        factors: weights (Keras variables) whose learning rate differs, each with what it is multiplied by.
        decay: share of a weight, times its learning rate, that a step takes away.
        not_decayed: weights without decay.
        thaws: whether `thaw` will be called.
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule,
        factors: Sequence[tuple[Any, float]] = (),
        decay: float = 0.0,
        not_decayed: Sequence[Any] = (),
        *,
        thaws: bool = False,
    ) -> None:
        super().__init__(learning_rate)
        self.factors = {self._var_key(weight): factor for weight, factor in factors}
        self.decay = decay
        self.not_decayed = {self._var_key(weight) for weight in not_decayed}
        self.thaws = thaws
        self.thawed = self.add_variable((), name="thawed")  # a variable: it changes within a compiled step

    def thaw(self) -> None:
        """Let frozen weights learn, without compiling anew."""
        self.thawed.assign(1.0)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Keras calls this for each weight."""
        key = self._var_key(variable)
        factor = self.factors.get(key, 1.0)
        if factor == 0 and not self.thaws:
            return
        rate = learning_rate if factor == 1 else learning_rate * (factor or self.thawed)
        if self.decay and key not in self.not_decayed:
            self.assign_sub(variable, variable * ops.cast(rate * self.decay, variable.dtype))
        super().update_step(gradient, variable, rate)


def build(
    config: TrainConfig,
    tower: keras.Model,
    features: Features,
    learning_rate: float | keras.optimizers.schedules.LearningRateSchedule | None = None,
    *,
    feature_rate: float = 1.0,
) -> EncoderAdam:
    """The optimizer that a config asks for.

    Args:
        config: how to train.
        tower: from `recsys.model.tower.build`, with these features.
        features: says which column an encoder reads.
        learning_rate: instead of the config's.
        feature_rate: factor of it for features that are looked up in tables, and numbers.

    Raises:
        ConfigError: `train.learning_rates` names what is no encoder.
    """
    names = encoder_names(features)
    unknown = sorted(set(config.learning_rates) - set(names.values()))
    if unknown:
        raise ConfigError(
            f"train.learning_rates must name encoders of the tower: {', '.join(dict.fromkeys(names.values()))}. "
            f"Received: {', '.join(unknown)}. Name those, or give items.* the columns."
        )
    read = {feature.column for feature in features.tokens if feature.shape == "sequence"}
    factors = {
        layer: config.learning_rates.get(name, 1.0 if layer == ID_ENCODER or name in read else feature_rate)
        for layer, name in names.items()
    }
    return EncoderAdam(
        config.learning_rate if learning_rate is None else learning_rate,
        [
            (weight, factors[layer.name])
            for layer in tower.layers
            if layer.name in factors
            for weight in layer.trainable_weights
        ],
        config.weight_decay,
        [weight for weight in tower.trainable_weights if weight.name == "bias"],
        thaws=config.thaw_after > 0,
    )
