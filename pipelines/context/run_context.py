"""What every stage of a night is given: the config, the run's folder, MLflow, and a way to report.

Also the one command line that all jobs share.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.context import readers as io
from pipelines.context.progress import Reporter
from recsys.config import sections as configuration
from recsys.config.sections import Config
from recsys.config.urls import Address
from recsys.errors import ConfigError, InputError, RecsysError, ReleaseError, TrackingError
from recsys.release import remote as depot
from recsys.release.bundle import MANIFEST, read_manifest
from recsys.release.runs import Inputs, Run

if TYPE_CHECKING:
    from recsys.release.mlflow_registry import Tracker


@dataclass(frozen=True)
class Night:
    """One run of the stages, or of one of them."""

    config: Config
    run: Run
    interactions: list[str]
    items: list[str]
    labeled: list[str] = field(default_factory=list)
    report: Reporter = field(default_factory=lambda: Reporter(quiet=True))

    @classmethod
    def of(
        cls, config: Config, report: Reporter | None = None, run_of: Callable[[Config, Inputs], Run] = Run.of
    ) -> Night:
        """Find the input files, and the run that belongs to them.

        Args:
            config: the whole of it.
            report: where to tell what is done.
            run_of: `Run.planned` writes nothing.

        Raises:
            ConfigError: the config names no interactions.
            InputError: input files are missing, or the workspace cannot be written.
        """
        if config.data.interactions is None:
            raise ConfigError(
                "data.interactions must be set: a path, a glob or a URL of the log. Received: nothing. "
                "Set it in the config, or by --set data.interactions=PATH."
            )
        interactions = io.find(config.data.interactions, "data.interactions")
        items = io.find(config.data.items, "data.items") if config.data.items else []
        labeled = io.find(config.data.labeled_pairs, "data.labeled_pairs") if config.data.labeled_pairs else []
        inputs: dict[str, list[str]] = {"interactions": interactions, "items": items, "labeled_pairs": labeled}
        if config.data.warm_start is not None:
            inputs["warm_start"] = [str(manifest_of(config.data.warm_start))]
        return cls(config, run_of(config, inputs), interactions, items, labeled, report or Reporter(quiet=True))

    @cached_property
    def tracker(self) -> Tracker:
        """MLflow, imported when it is first needed: that takes seconds."""
        from recsys.release.mlflow_registry import Tracker  # noqa: PLC0415

        return Tracker(self.config)

    @cached_property
    def mlflow_run(self) -> str:
        """Id of the MLflow run of this night."""
        mlflow_run = self.tracker.start(self.run.run_id, self.run.data_snapshot)
        # the others may differ when a run is gone on with, and a URI may hold a password
        self.tracker.log_params(mlflow_run, self.config.shaping())
        self.tracker.log_tags(mlflow_run, {"recsys.code_version": self.run.code_version})
        inputs = {"interactions": self.interactions, "items": self.items, "labeled_pairs": self.labeled}
        for name, sources in inputs.items():
            if sources:
                shown = [Address(source).shown for source in sources]
                self.tracker.log_data(mlflow_run, name, self.run.data_snapshot, shown)
        return mlflow_run

    def log_metrics(self, values: Mapping[str, float], step: int = 0, stage: str | None = None) -> None:
        """Figures into the MLflow run of this night; where MLflow is away, once it is back.

        Hours of work must not be lost to a server that is away for a minute, nor wait for it pass by pass.

        Args:
            values: the figures by name.
            step: the pass that they are of.
            stage: a stage that is done; its figures go into a run of its own, below that of the night.
        """
        if not self.mlflow_away:
            try:
                self._send(values, step, stage)
            except TrackingError as error:
                self.report.say(f"  figures wait until MLflow is back: {error}")
            else:
                return
        with self._unsent.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"values": dict(values), "step": step, "stage": stage}) + "\n")

    def send_metrics(self) -> None:
        """Figures that wait, into MLflow.

        Raises:
            TrackingError: MLflow is still away.
        """
        if self.mlflow_away:
            for line in self._unsent.read_text(encoding="utf-8").splitlines():
                self._send(**json.loads(line))
            self._unsent.unlink()

    def _send(self, values: Mapping[str, float], step: int = 0, stage: str | None = None) -> None:
        if stage is None:
            self.tracker.log_metrics(self.mlflow_run, values, step)
        else:
            child = self.tracker.start_child(self.mlflow_run, stage)
            self.tracker.log_metrics(child, values, step)
            self.tracker.finish(child, "FINISHED")

    @property
    def mlflow_away(self) -> bool:
        """Whether figures wait for it."""
        return self._unsent.exists()

    @property
    def _unsent(self) -> Path:
        return self.run.folder / "unsent.jsonl"

    @property
    def releases(self) -> Path:
        """Folder of all releases."""
        return self.config.workspace / "releases"


def manifest_of(release: str) -> Path:
    """The manifest of the release to go on from: it names every other file.

    Raises:
        InputError: there is none, or it is of no release.
    """
    try:
        folder = depot.local(release)
        read_manifest(folder)
    except ReleaseError as error:
        raise InputError(f"data.warm_start must be the folder of a release: {error}") from None
    return folder / MANIFEST


Stage = Callable[[Night], dict[str, Any]]
"""Does one stage if it is not done yet, and returns its manifest."""


def command(name: str, description: str, stage: Stage, argv: Sequence[str] | None) -> dict[str, Any]:
    """Parse the flags that all jobs share, and run one stage.

    Raises:
        RecsysError: see `recsys.errors`.
    """
    return execute(stage, parsed(name, description, argv), Reporter())


def parsed(name: str, description: str, argv: Sequence[str] | None) -> Config:
    """The config that the flags name.

    Raises:
        ConfigError: it cannot be used.
    """
    parser = argparse.ArgumentParser(prog=f"python -m pipelines.{name}", description=description)
    parser.add_argument("--config", required=True, metavar="FILE", help="the TOML config")
    parser.add_argument(
        "--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help="override a setting; repeatable"
    )
    flags = parser.parse_args(argv)
    return configuration.load(flags.config, flags.set)


def execute(stage: Stage, config: Config, report: Reporter) -> dict[str, Any]:
    """Run one stage under the lock of its run."""
    calm()
    night = Night.of(config, report)
    with night.run.locked():
        return stage(night)


def main(run: Callable[[], dict[str, Any]]) -> None:
    """A job as a program: its manifest on standard output, errors in one line, the exit code they ask for."""
    try:
        print(json.dumps(run()))
    except RecsysError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def calm() -> None:
    """Keep what TensorFlow, Beam and MLflow tell their own developers off the screen."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # no log level silences its notice
    for name in ("apache_beam", "mlflow.store.db.utils"):  # they log the traceback of what we report
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for name in ("alembic", "tensorflow", "absl"):
        logging.getLogger(name).setLevel(logging.ERROR)
