"""nightly: all stages in order, from the files to the champion."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from pipelines.calibrate import calibrate
from pipelines.embed import embed
from pipelines.evaluate import evaluate
from pipelines.index import index
from pipelines.night import Night, Stage, command, main
from pipelines.prepare import prepare
from pipelines.promote import promote
from pipelines.publish import publish
from pipelines.train import train
from recsys.errors import TrackingError

STAGES: dict[str, Stage] = {
    "prepare": prepare,
    "train": train,
    "embed": embed,
    "index": index,
    "evaluate": evaluate,
    "calibrate": calibrate,
    "publish": publish,
    "promote": promote,
}


def nightly(night: Night) -> dict[str, Any]:
    """Run what is not done yet of every stage; the summary of the night.

    Raises:
        RecsysError: from the stage that could not do its work; the ones before stay done.
    """
    night.report.say(f"Run {night.run.run_id}")
    with night.report.stage("mlflow") as advance:  # before hours of work, not after them
        mlflow_run = night.mlflow_run
        advance(1, 1, f"run {mlflow_run}")
    seconds, manifests = {}, {}
    try:
        for name, stage in STAGES.items():
            started = time.monotonic()
            manifests[name] = stage(night)
            seconds[name] = round(time.monotonic() - started, 3)
    except BaseException:
        with suppress(TrackingError):  # it may be what failed
            night.tracker.finish(mlflow_run, "FAILED")
        raise
    night.tracker.finish(mlflow_run, "FINISHED")
    return {
        "run_id": night.run.run_id,
        **manifests["publish"],
        "tracking_uri": night.tracker.shown_uri,
        "promoted": manifests["promote"]["promoted"],
        "checks": manifests["promote"]["checks"],
        "account": manifests["prepare"]["account"],
        "evaluation": manifests["evaluate"],
        "seconds": seconds,
    }


def run(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The job by itself."""
    return command("nightly", (__doc__ or "").splitlines()[0], nightly, argv)


if __name__ == "__main__":
    main(run)
