"""calibrate: embeddings, held-out pairs -> what a similarity means: probabilities, and thresholds of "the same"."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipelines.context.progress import Progress
from pipelines.stages import embed, train
from recsys.config.sections import Config
from recsys.evaluation import calibration
from recsys.evaluation import calibration_fit as calibrating
from recsys.evaluation.calibration import Calibration
from recsys.evaluation.calibration_fit import MIN_PAIRS, Judged
from recsys.index import embeddings
from recsys.index.distances import DISTANCES
from recsys.release.formats import CALIBRATION, EMBEDDINGS
from recsys.release.runs import Run

STAGE = "calibrate"


def calibrate(config: Config, run: Run, progress: Progress) -> dict[str, Any]:
    """Do the stage if it is not done, and return its manifest.

    Too few pairs stop no night: then the release has no calibration, and the manifest says why.

    Raises:
        StageError: embed was not run.
    """
    if run.done(STAGE):
        return run.manifest(STAGE)
    vectors = embeddings.load(run.path(embed.STAGE, EMBEDDINGS))
    with progress.stage(STAGE) as advance, run.stage(STAGE) as (folder, manifest):
        judged = judged_pairs(config, run)
        advance(0, 1, f"{len(judged.same):,} pairs")
        similarities = calibration.similarities(
            DISTANCES[config.tower.distance], vectors[judged.first], vectors[judged.second]
        )
        fitted = calibrating.fit(similarities, judged.same, config.calibrate, config.train.seed)
        same = int(judged.same.sum())
        manifest |= {"same": same, "others": len(judged.same) - same}
        reason = ""
        if fitted is None:
            reason = (
                f"a calibration needs {MIN_PAIRS} held-out pairs, and as many others. "
                f"Received: {same} and {len(judged.same) - same}."
            )
            manifest["reason"] = reason
        else:
            manifest.update(fitted.model_dump(mode="json", exclude={"similarities", "probabilities"}))
        calibration.save(fitted, folder / CALIBRATION, reason)
        advance(1, 1, _summary(fitted) if fitted else f"none: {reason}")
    return run.manifest(STAGE)


def judged_pairs(config: Config, run: Run) -> Judged:
    """The pairs to fit and measure on: here alone a stage decides where judgments come from.

    Where people judged, it is the part of their pairs that no fit saw; else it is what users did last.
    """
    if config.data.labeled_pairs:
        _, held_out = train.load_labeled(run, config.train.seed)
        rng = np.random.default_rng(config.train.seed)
        heaps = [rng.permutation(np.flatnonzero(heap)) for heap in (held_out.same, ~held_out.same)]
        rows = np.concatenate([heap[: config.calibrate.pairs] for heap in heaps])
        return Judged(held_out.first[rows], held_out.second[rows], held_out.same[rows])
    holdout = train.load_split(run).holdout("test", config.calibrate.pairs, config.train.seed)
    return calibrating.sample(holdout, config.train.seed)


def _summary(fitted: Calibration) -> str:
    """The figures that a person looks at first."""
    even = fitted.thresholds[0].measured  # of an even chance, and there unless the curve tells nothing
    accuracy = f", accuracy {even.accuracy.value:.4f}" if even else ""
    return (
        f"calibration error {fitted.expected_calibration_error.value:.4f} on {fitted.measured_pairs:,} pairs, "
        f"AUC {fitted.auc:.4f}{accuracy}"
    )
