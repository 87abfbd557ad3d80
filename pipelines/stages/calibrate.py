"""calibrate: fit probabilities and thresholds for similarities on held-out pairs."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipelines.context.progress import Progress
from pipelines.stages import embed, train
from recsys.config.sections import Config
from recsys.evaluation import calibration
from recsys.evaluation.calibration import Calibration
from recsys.evaluation.calibration_fit import MIN_PAIRS, CalibrationPairs, fit_calibration, sample_pairs
from recsys.index import embeddings
from recsys.index.distances import DISTANCES
from recsys.release.formats import CALIBRATION, EMBEDDINGS
from recsys.release.runs import Run

STAGE = "calibrate"
MAX_PAIRS = 20_000
"""Maximum number of held-out pairs that belong together, and of pairs that do not.

With this many, the standard error of a measured precision of .9 is .003.
"""


def calibrate(config: Config, run: Run, progress: Progress) -> dict[str, Any]:
    """Run the stage if it is not done, and return its manifest.

    If there are too few pairs, the release has no calibration, and the manifest contains the reason.

    Raises:
        StageError: the embed stage has not run.
    """
    if run.done(STAGE):
        return run.manifest(STAGE)
    vectors = embeddings.load(run.path(embed.STAGE, EMBEDDINGS))
    with progress.stage(run.name(STAGE)) as advance, run.stage(STAGE) as (folder, manifest):
        pairs = calibration_pairs(config, run)
        advance(0, 1, f"{len(pairs.same):,} pairs")
        similarities = calibration.similarities(
            DISTANCES[config.tower.distance], vectors[pairs.first], vectors[pairs.second]
        )
        fitted = fit_calibration(similarities, pairs.same, config.train.seed)
        same = int(pairs.same.sum())
        different = len(pairs.same) - same
        manifest |= {"same": same, "different": different}
        reason = ""
        if fitted is None:
            reason = (
                f"a calibration needs {MIN_PAIRS} held-out pairs that belong together, and as many that do not. "
                f"Received: {same} and {different}."
            )
            manifest["reason"] = reason
        else:
            manifest.update(fitted.model_dump(mode="json", exclude={"similarities", "probabilities"}))
        calibration.save(fitted, folder / CALIBRATION, reason)
        advance(1, 1, _summary(fitted) if fitted else f"none: {reason}")
    return run.manifest(STAGE)


def calibration_pairs(config: Config, run: Run) -> CalibrationPairs:
    """Return held-out labeled pairs or, without labeled pairs, pairs sampled from the test interactions."""
    if config.data.labeled_pairs:
        _, held_out = train.load_labeled(run, config.train.seed)
        rng = np.random.default_rng(config.train.seed)
        classes = [rng.permutation(np.flatnonzero(label)) for label in (held_out.same, ~held_out.same)]
        rows = np.concatenate([class_rows[:MAX_PAIRS] for class_rows in classes])
        return CalibrationPairs(held_out.first[rows], held_out.second[rows], held_out.same[rows])
    holdout = train.load_split(run).holdout("test", MAX_PAIRS, config.train.seed)
    return sample_pairs(holdout, config.train.seed)


def _summary(fitted: Calibration) -> str:
    """Return the main figures as one line of text."""
    measured = fitted.thresholds[0].measured  # at probability 0.5; None if the curve is constant
    accuracy = f", accuracy {measured.accuracy.value:.4f}" if measured else ""
    return (
        f"calibration error {fitted.expected_calibration_error.value:.4f} on {fitted.measured_pairs:,} pairs, "
        f"AUC {fitted.auc:.4f}{accuracy}"
    )
