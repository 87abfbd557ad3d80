"""train: pairs -> tower.

First a fit on everything before the validation targets, which says how many passes are best; then a fit of so
many passes on everything before the test targets. That one is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from pipelines import prepare
from pipelines.night import Night, command, main
from recsys import pairs
from recsys.catalogue import Catalogue
from recsys.evaluation import TARGET_METRIC
from recsys.features import Features
from recsys.release import CATALOGUE, FEATURES, TOWER
from recsys.sequences import Sequences
from recsys.splitting import leave_one_out

STAGE = "train"


def train(night: Night) -> dict[str, Any]:
    """Do the stage if it is not done, and return its manifest.

    Raises:
        StageError: prepare was not run, there is nothing to train on, or training diverged.
    """
    if night.run.done(STAGE):
        return night.run.manifest(STAGE)
    catalogue = Catalogue.load(night.run.path(prepare.STAGE, CATALOGUE))
    with night.report.stage(STAGE) as advance, night.run.stage(STAGE) as (folder, manifest):
        from recsys.training import Fit, fit  # noqa: PLC0415 - TensorFlow takes seconds

        config = night.config
        validation = leave_one_out(
            load_sequences(night), "validation", config.train.validation_users, config.train.seed
        )

        def fit_on(
            weight: pairs.Weight, passes: int, on_pass: Callable[..., None], **options: Any
        ) -> tuple[Features, Fit]:
            matrix = load_pairs(night, weight, len(catalogue))
            seen = np.asarray(matrix.sum(axis=1)).ravel() > 0
            features = Features.fit(catalogue.frame, config.items, seen)
            inputs = features.transform(catalogue.frame)
            return features, fit(
                features, inputs, matrix, config.tower, config.train, passes=passes, on_pass=on_pass, **options
            )

        def on_tuning_pass(number: int, figures: dict[str, float]) -> None:
            score = figures.get(f"validation_{TARGET_METRIC}")
            note = f"loss {figures['loss']:.3f}" + (f", validation NDCG@20 {score:.4f}" if score is not None else "")
            advance(number, config.train.passes, note)
            night.log_metrics({f"train_{name}": value for name, value in figures.items()}, number)

        def on_final_pass(number: int, figures: dict[str, float]) -> None:
            advance(number, best.passes, f"final fit, loss {figures['loss']:.3f}")
            night.log_metrics({"final_loss": figures["loss"]}, number)

        _, best = fit_on("weight_before_validation", config.train.passes, on_tuning_pass, validation=validation)
        features, final = fit_on("weight", best.passes, on_final_pass)
        final.tower.save(folder / TOWER)
        features.save(folder / FEATURES)
        manifest |= {"passes": best.passes, "curve": best.curve, "final_curve": final.curve}
        reached = best.curve[best.passes - 1].get(f"validation_{TARGET_METRIC}")
        advance(1, 1, f"{best.passes} passes" + (f", validation NDCG@20 {reached:.4f}" if reached else ""))
    return night.run.manifest(STAGE)


def load_sequences(night: Night) -> Sequences:
    """What prepare wrote."""
    names = night.run.manifest(prepare.STAGE)["sequences"]
    return Sequences.load(night.run.path(prepare.STAGE, prepare.SEQUENCES) / name for name in names)


def load_pairs(night: Night, weight: pairs.Weight, num_items: int) -> sparse.csr_array:
    """What prepare wrote."""
    names = night.run.manifest(prepare.STAGE)["pairs"]
    return pairs.load((night.run.path(prepare.STAGE, prepare.PAIRS) / name for name in names), num_items, weight)


def run(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The job by itself."""
    return command(STAGE, (__doc__ or "").splitlines()[0], train, argv)


if __name__ == "__main__":
    main(run)
