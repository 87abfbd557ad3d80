"""Log of the metrics of a run: sent to MLflow, or queued in a file while MLflow does not answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from pipelines.context.progress import Progress
from recsys.errors import TrackingError


class Send(Protocol):
    """Function that sends metrics to MLflow; raises `TrackingError` if MLflow does not answer."""

    def __call__(self, values: Mapping[str, float], step: int, stage: str | None) -> None:
        """Send the metrics of one step, or of one finished stage."""


class MetricsLog:
    """Logs metrics without failing a stage: a short outage of the server must not cost hours of work.

    After the first failure, all metrics are queued until `send_queued` is called.

    Args:
        queue: file of the queued metrics, one JSON object per line; it does not exist if none are queued.
        send: sends metrics to MLflow.
        progress: receives a warning if metrics are queued.
    """

    def __init__(self, queue: Path, send: Send, progress: Progress) -> None:
        self._queue = queue
        self._send = send
        self._progress = progress

    @property
    def queued(self) -> bool:
        """Whether metrics are queued."""
        return self._queue.exists()

    def log(self, values: Mapping[str, float], step: int = 0, stage: str | None = None) -> None:
        """Send metrics, or queue them if MLflow does not answer.

        Args:
            values: metrics by name.
            step: number of the training pass.
            stage: a finished stage, whose metrics are logged to its own child run.
        """
        if not self.queued:
            try:
                self._send(values, step, stage)
            except TrackingError as error:
                self._progress.write(f"  metrics are queued until MLflow answers again: {error}")
            else:
                return
        with self._queue.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"values": dict(values), "step": step, "stage": stage}) + "\n")

    def send_queued(self) -> None:
        """Send the queued metrics.

        Raises:
            TrackingError: MLflow still does not answer.
        """
        if self.queued:
            for line in self._queue.read_text(encoding="utf-8").splitlines():
                self._send(**json.loads(line))
            self._queue.unlink()
