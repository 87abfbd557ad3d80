"""MLflow: runs with their metrics and artifacts, versions of the registered model, and their aliases."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from recsys.config.sections import Config
from recsys.config.urls import Address
from recsys.errors import ReleaseError, TrackingError
from recsys.release.bundle import Release
from recsys.release.formats import MANIFEST
from recsys.release.history import Event
from recsys.release.manifest import read_manifest
from recsys.release.mlflow_connection import connect, tracking_errors
from recsys.release.mlflow_model import write_model_files
from recsys.release.versions import (
    CHAMPION,
    CHECKS_TAG,
    EVENT_TAG,
    PIN_TAG,
    PREVIOUS,
    RELEASE_TAG,
    RUN_TAG,
    SNAPSHOT_TAG,
    Version,
)
from recsys.release.writer import rename_release

# `mlflow_connection` sets environment variables that MLflow reads when it is imported
# isort: split

import mlflow
from mlflow.entities import Dataset, DatasetInput, Metric, Param, RunTag
from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

PARENT_TAG = "mlflow.parentRunId"
"""Tag by which MLflow nests a run below another."""
ARTIFACT = "release"
"""Artifact folder of the release in its MLflow run."""
MAX_TAG_LENGTH, MAX_DIGEST_LENGTH, MAX_PARAM_LENGTH = 8_000, 36, 6_000
"""Characters that MLflow accepts in a tag of a run, the digest of a data set, and a parameter."""


class Tracker:
    """Client of the tracking server and the registered model of a config.

    Raises:
        TrackingError: by every method, if MLflow cannot be reached or rejects the request.
    """

    def __init__(self, config: Config) -> None:
        self.uri = config.tracking_uri
        self.model = config.tracking.model
        self.workspace = config.workspace
        self.client = connect(self.uri)
        self.experiment = config.tracking.experiment

    @property
    def _history_experiment(self) -> str:
        """Name of the experiment whose runs are the changes of the champion."""
        return f"{self.experiment}-history"

    def _experiment_id(self, experiment: str | None = None) -> str:
        name = experiment or self.experiment
        existing = self.client.get_experiment_by_name(name)
        if existing is not None:
            return str(existing.experiment_id)
        # without a server MLflow would write artifacts to the current folder
        local = self.uri.startswith("sqlite:")
        location = (self.workspace.resolve() / "mlartifacts").as_uri() if local else None
        return str(self.client.create_experiment(name, artifact_location=location))

    @property
    def display_uri(self) -> str:
        """The tracking URI without its password."""
        return Address(self.uri).shown

    def start_run(self, run_id: str, snapshot: str, kind: str = "nightly") -> str:
        """Start the MLflow run of a pipeline run, or resume it if it exists, and return its MLflow id."""
        with self._errors():
            experiment_id = self._experiment_id()
            existing = self.client.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{run_id}'", max_results=1)
            if existing:
                mlflow_run = str(existing[0].info.run_id)
                self.client.update_run(mlflow_run, status="RUNNING")
                return mlflow_run
            tags = {RUN_TAG: run_id, SNAPSHOT_TAG: snapshot}
            created = self.client.create_run(experiment_id, tags=tags, run_name=f"{kind} {run_id}")
            return str(created.info.run_id)

    def start_child_run(self, parent: str, name: str) -> str:
        """Start an MLflow run nested below another, and return its MLflow id."""
        with self._errors():
            experiment_id = self.client.get_run(parent).info.experiment_id
            created = self.client.create_run(experiment_id, tags={PARENT_TAG: parent}, run_name=name)
            return str(created.info.run_id)

    def child_run_names(self, parent: str) -> set[str]:
        """Return the names of the MLflow runs nested below another."""
        with self._errors():
            experiment_id = self.client.get_run(parent).info.experiment_id
            children = self.client.search_runs([experiment_id], f"tags.`{PARENT_TAG}` = '{parent}'")
            return {str(run.info.run_name) for run in children}

    def log_data(self, mlflow_run: str, name: str, snapshot: str, sources: Sequence[str]) -> None:
        """Log the input files of a run as a data set, with the hash over all input."""
        dataset = Dataset(name, snapshot[:MAX_DIGEST_LENGTH], "files", json.dumps(sources))
        with self._errors():
            self.client.log_inputs(mlflow_run, [DatasetInput(dataset)])

    def finish_run(self, mlflow_run: str, status: str) -> None:
        """End a run as FINISHED or FAILED."""
        with self._errors():
            self.client.set_terminated(mlflow_run, status)

    @contextmanager
    def log_system_metrics(self, mlflow_run: str) -> Iterator[None]:
        """Log system metrics inside the context if MLflow's environment variable enables them.

        Raises:
            TrackingError: psutil, which MLflow requires for it, is not installed.
        """
        enabled: Any = MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING  # MLflow is untyped
        if not enabled.get():
            yield
            return
        with self._errors():
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor  # noqa: PLC0415

            monitor_class: Any = SystemMetricsMonitor
            monitor = monitor_class(mlflow_run, resume_logging=True, tracking_uri=self.uri)
            monitor.start()
        try:
            yield
        finally:
            monitor.finish()

    def log_params(self, mlflow_run: str, tables: Mapping[str, Mapping[str, Any]]) -> None:
        """Log settings as parameters `table.key`."""
        flat = {
            f"{table}.{key}": str(v)[:MAX_PARAM_LENGTH] for table, keys in tables.items() for key, v in keys.items()
        }
        with self._errors():
            self.client.log_batch(mlflow_run, params=[Param(key, value) for key, value in flat.items()])

    def log_metrics(self, mlflow_run: str, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics at one step."""
        now = int(time.time() * 1000)
        metrics = [Metric(key, float(value), now, step) for key, value in values.items()]
        with self._errors():
            self.client.log_batch(mlflow_run, metrics=metrics)

    def log_tags(self, mlflow_run: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run."""
        with self._errors():
            self.client.log_batch(mlflow_run, tags=[RunTag(key, value) for key, value in tags.items()])

    def log_artifact(self, mlflow_run: str, path: Path, folder: str | None = None) -> None:
        """Log a file as an artifact of a run."""
        with self._errors():
            self.client.log_artifact(mlflow_run, os.fspath(path), folder)

    def log_text(self, mlflow_run: str, text: str, path: str) -> None:
        """Log a text as an artifact of a run."""
        with self._errors():
            self.client.log_text(mlflow_run, text, path)

    def has_artifact(self, mlflow_run: str, path: str) -> bool:
        """Return whether a run has an artifact."""
        with self._errors():
            try:
                artifacts = self.client.list_artifacts(mlflow_run, path.rpartition("/")[0])
            except MlflowException as error:
                if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                    return False
                raise
            return path in {artifact.path for artifact in artifacts}

    def register(self, mlflow_run: str, release: Release) -> Version:
        """Register a release as a version of the model, or return its existing version."""
        with self._errors():
            existing = self._version_of(release.release_id)
            if existing is not None:
                return existing
            if not self.client.search_registered_models(f"name = '{self.model}'"):
                self.client.create_registered_model(self.model)
            self.client.log_artifacts(mlflow_run, os.fspath(release.path), ARTIFACT)
            with tempfile.TemporaryDirectory() as folder:
                write_model_files(release, Path(folder) / "model")
                self.client.log_artifacts(mlflow_run, f"{folder}/model", ARTIFACT)
            run = self.client.get_run(mlflow_run)
            created = self.client.create_model_version(
                self.model,
                source=f"{run.info.artifact_uri}/{ARTIFACT}",
                run_id=mlflow_run,
                tags={RELEASE_TAG: release.release_id, SNAPSHOT_TAG: release.manifest.data_snapshot},
            )
            return self._version(created)

    def champion(self) -> Version | None:
        """Return the version with the alias `champion`, None before the first promotion."""
        return self.version_with(CHAMPION)

    def previous(self) -> Version | None:
        """Return the version that was the champion before, if any."""
        return self.version_with(PREVIOUS)

    def version_with(self, alias: str) -> Version | None:
        """Return the version with an alias, if any."""
        with self._errors():
            models = self.client.search_registered_models(f"name = '{self.model}'")
            if not models or alias not in models[0].aliases:
                return None
            return self._version(self.client.get_model_version_by_alias(self.model, alias))

    def version_of(self, release_id: str) -> Version | None:
        """Return the version of a release, None if it is not registered."""
        with self._errors():
            return self._version_of(release_id)

    def promote(self, version: Version, champion: Version | None) -> None:
        """Move the alias `champion` to a version, and the alias `previous` to the replaced `champion`."""
        with self._errors():
            if champion is not None:
                self.client.set_registered_model_alias(self.model, PREVIOUS, champion.number)
            self.client.set_registered_model_alias(self.model, CHAMPION, version.number)

    def tag_version(self, version: Version, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        with self._errors():
            for key, value in tags.items():
                self.client.set_model_version_tag(self.model, version.number, key, value)

    def version_tags(self, version: Version) -> dict[str, str]:
        """Return the tags of a version."""
        with self._errors():
            return dict(self.client.get_model_version(self.model, version.number).tags)

    def pin(self, version: Version, reason: str) -> None:
        """Protect a release from being pruned, on all machines."""
        self.tag_version(version, {PIN_TAG: reason})

    def unpin(self, version: Version) -> None:
        """Allow a release to be pruned again."""
        with self._errors():
            if PIN_TAG in self.client.get_model_version(self.model, version.number).tags:
                self.client.delete_model_version_tag(self.model, version.number, PIN_TAG)

    def pins(self) -> dict[str, str]:
        """Return release id -> reason of all pinned releases."""
        with self._errors():
            pins: dict[str, str] = {}
            page = None
            while page != "":
                versions = self.client.search_model_versions(f"name = '{self.model}'", page_token=page)
                page = versions.token or ""
                pins |= {each.tags[RELEASE_TAG]: each.tags[PIN_TAG] for each in versions if PIN_TAG in each.tags}
            return pins

    def record(self, event: Event) -> None:
        """Record an event as a run of the history experiment, which is shared by all machines."""
        saved = event.to_dict()
        checks = json.dumps(saved.pop("checks"))
        if len(checks) > MAX_TAG_LENGTH:  # passed checks are in the report of the gate
            checks = json.dumps([check for check in event.checks if check["verdict"] == "failed"])[:MAX_TAG_LENGTH]
        with self._errors():
            created = self.client.create_run(
                self._experiment_id(self._history_experiment),
                run_name=f"{event.action} {event.after}",
                tags={EVENT_TAG: json.dumps(saved), CHECKS_TAG: checks},
            )
            self.client.set_terminated(created.info.run_id)

    def events(self) -> list[Event]:
        """Return the recorded events, oldest first."""
        with self._errors():
            experiment = self.client.get_experiment_by_name(self._history_experiment)
            if experiment is None:
                return []
            events: list[dict[str, str]] = []
            page = None
            while page != "":
                runs = self.client.search_runs(
                    [experiment.experiment_id], order_by=["attributes.start_time ASC"], page_token=page
                )
                page = runs.token or ""
                events += [run.data.tags for run in runs if EVENT_TAG in run.data.tags]
        return [
            Event.from_dict({**json.loads(tags[EVENT_TAG]), "checks": json.loads(tags[CHECKS_TAG])}) for tags in events
        ]

    def read_artifact(self, mlflow_run: str, path: str) -> str | None:
        """Return the text of an artifact of a run, None if it does not exist."""
        if not self.has_artifact(mlflow_run, path):
            return None
        with self._errors(), tempfile.TemporaryDirectory() as folder:
            return Path(self.client.download_artifacts(mlflow_run, path, folder)).read_text(encoding="utf-8")

    def fetch(self, version: Version, releases: Path) -> Path:
        """Return the folder of a version's release below `releases`, after downloading it if necessary.

        Raises:
            ReleaseError: the artifact is not the release that the version names.
        """
        final = releases / version.release_id
        if final.exists():
            return final
        releases.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".tmp-{version.release_id}-", dir=releases))
        try:
            with self._errors():
                downloaded = mlflow.artifacts.download_artifacts(
                    artifact_uri=version.source, dst_path=os.fspath(temporary), tracking_uri=self.uri
                )
            manifest = read_manifest(Path(downloaded))
            if manifest.release_id != version.release_id:
                raise ReleaseError(
                    f"version {version.number} of {self.model} must hold release {version.release_id}. "
                    f"Received: {manifest.release_id}."
                )
            names = {MANIFEST, *manifest.files}
            for path in Path(downloaded).rglob("*"):  # files of the MLflow model are not part of the release
                if path.is_file() and str(path.relative_to(downloaded)) not in names:
                    path.unlink()
            return rename_release(Path(downloaded), final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _version_of(self, release_id: str) -> Version | None:
        query = f"name = '{self.model}' and tags.`{RELEASE_TAG}` = '{release_id}'"
        versions = self.client.search_model_versions(query, max_results=1)
        return self._version(versions[0]) if versions else None

    def _version(self, saved: Any) -> Version:
        if RELEASE_TAG not in saved.tags:
            raise TrackingError(
                f"version {saved.version} of {self.model} must have the tag {RELEASE_TAG}. Received: "
                f"{sorted(saved.tags)}. Set tracking.model to a name that is used by recsys only."
            )
        return Version(str(saved.version), saved.tags[RELEASE_TAG], saved.source)

    def _errors(self) -> AbstractContextManager[None]:
        return tracking_errors(self.uri)
