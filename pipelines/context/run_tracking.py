"""Tracking of a run of the pipeline in MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from pipelines.context.input_files import InputFiles
from pipelines.context.metrics_log import MetricsLog
from pipelines.context.progress import Progress
from recsys.config.sections import Config
from recsys.config.urls import Address
from recsys.release.runs import Run

if TYPE_CHECKING:
    from recsys.release.mlflow_registry import Tracker

QUEUE = "unsent.jsonl"


class RunTracking:
    """MLflow client, MLflow run and metrics of a run of the pipeline.

    MLflow is imported and the MLflow run is started on first use, because the import takes seconds.
    """

    def __init__(self, config: Config, run: Run, inputs: InputFiles, progress: Progress) -> None:
        self._config = config
        self._run = run
        self._inputs = inputs
        self.metrics = MetricsLog(run.folder / QUEUE, self._send, progress)

    @cached_property
    def tracker(self) -> Tracker:
        """Client of the MLflow server."""
        from recsys.release.mlflow_registry import Tracker  # noqa: PLC0415

        return Tracker(self._config)

    @cached_property
    def mlflow_run(self) -> str:
        """Id of the MLflow run. The run is started, or resumed if it exists."""
        snapshot = self._run.data_snapshot
        mlflow_run = self.tracker.start_run(self._run.run_id, snapshot)
        # only settings that shape the release: others may change when a run resumes, and a URI may contain a password
        self.tracker.log_params(mlflow_run, self._config.shaping())
        self.tracker.log_tags(mlflow_run, {"recsys.code_version": self._run.code_version})
        inputs = self._inputs
        roles = {"interactions": inputs.interactions, "items": inputs.items, "labeled_pairs": inputs.labeled_pairs}
        for role, files in roles.items():
            if files:
                self.tracker.log_data(mlflow_run, role, snapshot, [Address(file).shown for file in files])
        return mlflow_run

    def _send(self, values: Mapping[str, float], step: int, stage: str | None) -> None:
        if stage is None:
            self.tracker.log_metrics(self.mlflow_run, values, step)
        else:
            child = self.tracker.start_child_run(self.mlflow_run, stage)
            self.tracker.log_metrics(child, values, step)
            self.tracker.finish_run(child, "FINISHED")
