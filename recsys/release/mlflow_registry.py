"""MLflow: the run of a night and of a tuning, the versions of the model, and the alias of the one in service.

The only file that imports MLflow. Everything that MLflow raises leaves here as a `TrackingError`.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from recsys.config.sections import Config
from recsys.config.urls import Address
from recsys.errors import RecsysError, ReleaseError, TrackingError
from recsys.release.bundle import Release, publish, read_manifest
from recsys.release.formats import MANIFEST
from recsys.release.history import Event

# a night must not hang for the hour that MLflow's own defaults allow
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # standard output is for results

import mlflow
from mlflow.entities import Dataset, DatasetInput, Metric, Param, RunTag
from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"
RUN_TAG, RELEASE_TAG, SNAPSHOT_TAG = "recsys.run_id", "recsys.release_id", "recsys.data_snapshot"
VERDICT_TAG, PIN_TAG = "recsys.gate", "recsys.pinned"
EVENT_TAG, CHECKS_TAG = "recsys.event", "recsys.event_checks"
MAX_TAG = 8_000
"""Characters of a run's tag that MLflow accepts."""
PARENT_TAG = "mlflow.parentRunId"
"""By which MLflow shows one run below another."""
ARTIFACT = "release"
MAX_DIGEST = 36
"""Characters of a data set's hash that MLflow accepts."""
MAX_PARAM = 6_000
"""Characters of a parameter that MLflow accepts."""


@dataclass(frozen=True)
class Version:
    """A version of the registered model."""

    number: str
    release_id: str
    source: str
    """Where MLflow keeps the release folder."""


class Tracker:
    """One config's view of a tracking server.

    Raises:
        TrackingError: from every method, where MLflow cannot be reached or refuses.
    """

    def __init__(self, config: Config) -> None:
        self.uri = config.tracking_uri
        self.model = config.tracking.model
        self.workspace = config.workspace
        with self._translated():
            if self.uri.startswith("sqlite:///"):
                _create(Path(self.uri.removeprefix("sqlite:///")))
            mlflow.set_tracking_uri(self.uri)  # for what resolves `runs:/` on its own
            self.client = mlflow.MlflowClient(self.uri)
        self.experiment = config.tracking.experiment

    @property
    def _history(self) -> str:
        """Name of the experiment whose runs are the champion's moves."""
        return f"{self.experiment}-history"

    def _experiment_id(self, experiment: str | None = None) -> str:
        name = experiment or self.experiment
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        # without a server MLflow would write artifacts into whatever folder we are started from
        local = self.uri.startswith("sqlite:")
        location = (self.workspace.resolve() / "mlartifacts").as_uri() if local else None
        return str(self.client.create_experiment(name, artifact_location=location))

    @property
    def shown_uri(self) -> str:
        """The tracking URI, its password left out."""
        return Address(self.uri).shown

    def start(self, run_id: str, snapshot: str, kind: str = "night") -> str:
        """The MLflow run of one of our runs, begun anew or gone on with; its MLflow id."""
        with self._translated():
            experiment_id = self._experiment_id()
            found = self.client.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{run_id}'", max_results=1)
            if found:
                mlflow_run = str(found[0].info.run_id)
                self.client.update_run(mlflow_run, status="RUNNING")
                return mlflow_run
            tags = {RUN_TAG: run_id, SNAPSHOT_TAG: snapshot}
            created = self.client.create_run(experiment_id, tags=tags, run_name=f"{kind} {run_id}")
            return str(created.info.run_id)

    def start_child(self, parent: str, name: str) -> str:
        """A new MLflow run below another; its MLflow id."""
        with self._translated():
            experiment_id = self.client.get_run(parent).info.experiment_id
            created = self.client.create_run(experiment_id, tags={PARENT_TAG: parent}, run_name=name)
            return str(created.info.run_id)

    def children(self, parent: str) -> set[str]:
        """Names of the MLflow runs below another."""
        with self._translated():
            experiment_id = self.client.get_run(parent).info.experiment_id
            below = self.client.search_runs([experiment_id], f"tags.`{PARENT_TAG}` = '{parent}'")
            return {str(run.info.run_name) for run in below}

    def log_data(self, mlflow_run: str, name: str, snapshot: str, sources: Sequence[str]) -> None:
        """Say what a run was made of: files, by the hash over all of its input."""
        dataset = Dataset(name, snapshot[:MAX_DIGEST], "files", json.dumps(sources))
        with self._translated():
            self.client.log_inputs(mlflow_run, [DatasetInput(dataset)])

    def finish(self, mlflow_run: str, status: str) -> None:
        """End a run as FINISHED or FAILED."""
        with self._translated():
            self.client.set_terminated(mlflow_run, status)

    @contextmanager
    def monitored(self, mlflow_run: str) -> Iterator[None]:
        """Keep figures of the machine with a run meanwhile, where MLflow's own variable asks for them.

        Raises:
            TrackingError: psutil, by which MLflow measures, is not installed.
        """
        asked: Any = MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING  # untyped, as all of it
        if not asked.get():
            yield
            return
        with self._translated():
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor  # noqa: PLC0415

            make: Any = SystemMetricsMonitor
            monitor = make(mlflow_run, resume_logging=True, tracking_uri=self.uri)
            monitor.start()
        try:
            yield
        finally:
            monitor.finish()

    def log_params(self, mlflow_run: str, tables: Mapping[str, Mapping[str, Any]]) -> None:
        """Log settings as `table.key`."""
        flat = {f"{table}.{key}": str(v)[:MAX_PARAM] for table, keys in tables.items() for key, v in keys.items()}
        with self._translated():
            self.client.log_batch(mlflow_run, params=[Param(key, value) for key, value in flat.items()])

    def log_metrics(self, mlflow_run: str, values: Mapping[str, float], step: int = 0) -> None:
        """Log figures at one step."""
        now = int(time.time() * 1000)
        metrics = [Metric(key, float(value), now, step) for key, value in values.items()]
        with self._translated():
            self.client.log_batch(mlflow_run, metrics=metrics)

    def log_tags(self, mlflow_run: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run."""
        with self._translated():
            self.client.log_batch(mlflow_run, tags=[RunTag(key, value) for key, value in tags.items()])

    def log_artifact(self, mlflow_run: str, path: Path, folder: str | None = None) -> None:
        """Keep a file with a run."""
        with self._translated():
            self.client.log_artifact(mlflow_run, os.fspath(path), folder)

    def log_text(self, mlflow_run: str, text: str, path: str) -> None:
        """Keep a text with a run, as a file."""
        with self._translated():
            self.client.log_text(mlflow_run, text, path)

    def holds(self, mlflow_run: str, path: str) -> bool:
        """Whether a file is kept with a run."""
        with self._translated():
            try:
                kept = self.client.list_artifacts(mlflow_run, path.rpartition("/")[0])
            except MlflowException as error:
                if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                    return False
                raise
            return path in {artifact.path for artifact in kept}

    def register(self, mlflow_run: str, release: Release) -> Version:
        """Keep a release as a version of the model; the version it has already, if it has one."""
        with self._translated():
            known = self._version_of(release.release_id)
            if known is not None:
                return known
            if not self.client.search_registered_models(f"name = '{self.model}'"):
                self.client.create_registered_model(self.model)
            self.client.log_artifacts(mlflow_run, os.fspath(release.path), ARTIFACT)
            with tempfile.TemporaryDirectory() as folder:
                _describe(release, Path(folder) / "model")
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
        """The version in service, None before the first one."""
        return self._by_alias(CHAMPION)

    def challenger(self) -> Version | None:
        """The version that is tried beside the one in service, None where there is none."""
        return self._by_alias(CHALLENGER)

    def previous(self) -> Version | None:
        """The version that was in service before, None where there was none."""
        return self._by_alias(PREVIOUS)

    def version_of(self, release_id: str) -> Version | None:
        """The version of a release, None where it has none."""
        with self._translated():
            return self._version_of(release_id)

    def promote(self, version: Version, champion: Version | None) -> None:
        """Put a version into service in place of `champion`, which becomes the previous one."""
        with self._translated():
            if champion is not None:
                self.client.set_registered_model_alias(self.model, PREVIOUS, champion.number)
            self.client.set_registered_model_alias(self.model, CHAMPION, version.number)

    def tag_version(self, version: Version, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        with self._translated():
            for key, value in tags.items():
                self.client.set_model_version_tag(self.model, version.number, key, value)

    def version_tags(self, version: Version) -> dict[str, str]:
        """Tags of a version."""
        with self._translated():
            return dict(self.client.get_model_version(self.model, version.number).tags)

    def pin(self, version: Version, why: str) -> None:
        """Keep a version from being pruned, here and on other machines."""
        self.tag_version(version, {PIN_TAG: why})

    def unpin(self, version: Version) -> None:
        """Let a version be pruned again."""
        with self._translated():
            if PIN_TAG in self.client.get_model_version(self.model, version.number).tags:
                self.client.delete_model_version_tag(self.model, version.number, PIN_TAG)

    def pins(self) -> dict[str, str]:
        """Releases that are pinned, and why."""
        with self._translated():
            found: dict[str, str] = {}
            page = None
            while page != "":
                versions = self.client.search_model_versions(f"name = '{self.model}'", page_token=page)
                page = versions.token or ""
                found |= {each.tags[RELEASE_TAG]: each.tags[PIN_TAG] for each in versions if PIN_TAG in each.tags}
            return found

    def record(self, event: Event) -> None:
        """Keep an event as a run of the experiment's history: it outlives versions, and other machines see it."""
        saved = event.to_dict()
        checks = json.dumps(saved.pop("checks"))
        if len(checks) > MAX_TAG:  # those that were passed are in the gate's own report
            checks = json.dumps([check for check in event.checks if check["verdict"] == "failed"])[:MAX_TAG]
        with self._translated():
            created = self.client.create_run(
                self._experiment_id(self._history),
                run_name=f"{event.action} {event.after}",
                tags={EVENT_TAG: json.dumps(saved), CHECKS_TAG: checks},
            )
            self.client.set_terminated(created.info.run_id)

    def events(self) -> list[Event]:
        """The events that MLflow keeps, oldest first."""
        with self._translated():
            experiment = self.client.get_experiment_by_name(self._history)
            if experiment is None:
                return []
            found: list[dict[str, str]] = []
            page = None
            while page != "":
                runs = self.client.search_runs(
                    [experiment.experiment_id], order_by=["attributes.start_time ASC"], page_token=page
                )
                page = runs.token or ""
                found += [run.data.tags for run in runs if EVENT_TAG in run.data.tags]
        return [
            Event.from_dict({**json.loads(tags[EVENT_TAG]), "checks": json.loads(tags[CHECKS_TAG])}) for tags in found
        ]

    def read_artifact(self, mlflow_run: str, path: str) -> str | None:
        """The text of a file that is kept with a run, None where there is none."""
        if not self.holds(mlflow_run, path):
            return None
        with self._translated(), tempfile.TemporaryDirectory() as folder:
            return Path(self.client.download_artifacts(mlflow_run, path, folder)).read_text(encoding="utf-8")

    def fetch(self, version: Version, releases: Path) -> Path:
        """The folder of a version's release below `releases`, downloaded if it is not there.

        Raises:
            ReleaseError: what MLflow keeps is not the release that the version names.
        """
        final = releases / version.release_id
        if final.exists():
            return final
        releases.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".tmp-{version.release_id}-", dir=releases))
        try:
            with self._translated():
                downloaded = mlflow.artifacts.download_artifacts(
                    artifact_uri=version.source, dst_path=os.fspath(temporary), tracking_uri=self.uri
                )
            manifest = read_manifest(Path(downloaded))
            if manifest.release_id != version.release_id:
                raise ReleaseError(
                    f"version {version.number} of {self.model} must hold release {version.release_id}. "
                    f"Received: {manifest.release_id}."
                )
            for path in Path(downloaded).iterdir():  # what makes it a model of MLflow's is no part of a release
                if path.name not in {MANIFEST, *manifest.files}:
                    path.unlink()
            return publish(Path(downloaded), final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _by_alias(self, alias: str) -> Version | None:
        with self._translated():
            models = self.client.search_registered_models(f"name = '{self.model}'")
            if not models or alias not in models[0].aliases:
                return None
            return self._version(self.client.get_model_version_by_alias(self.model, alias))

    def _version_of(self, release_id: str) -> Version | None:
        wanted = f"name = '{self.model}' and tags.`{RELEASE_TAG}` = '{release_id}'"
        found = self.client.search_model_versions(wanted, max_results=1)
        return self._version(found[0]) if found else None

    def _version(self, found: Any) -> Version:
        if RELEASE_TAG not in found.tags:
            raise TrackingError(
                f"version {found.version} of {self.model} must have the tag {RELEASE_TAG}. Received: "
                f"{sorted(found.tags)}. Set tracking.model to a name of its own."
            )
        return Version(str(found.version), found.tags[RELEASE_TAG], found.source)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except RecsysError:
            raise
        except Exception as error:  # noqa: BLE001 - databases and stores of artifacts raise what they like
            raise TrackingError(
                f"MLflow at {self.shown_uri} must answer. Received: {Address(self.uri).without_secret(str(error))}. "
                "Check tracking.uri, or start the server."
            ) from None  # its own text may hold the password


def _create(database: Path) -> None:
    """Make MLflow's tables elsewhere first: with half of them, of a process that was killed, it never goes on."""
    if database.exists():
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    folder = database.with_name(f".tmp-{database.name}")
    with FileLock(database.with_name(f".{database.name}.lock")):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if not database.exists():  # another process may have made it meanwhile
            made = folder / database.name
            mlflow.MlflowClient(f"sqlite:///{made}").search_experiments(max_results=1)
            made.rename(database)
        folder.rmdir()


def _describe(release: Release, folder: Path) -> None:
    """Write the files that make a release folder a model of MLflow's: what it is asked, and who answers."""
    with warnings.catch_warnings(action="ignore"):  # MLflow warns of its own type hints
        import mlflow.pyfunc  # noqa: PLC0415 - as slow as all the rest of MLflow
        from mlflow.models import ModelSignature  # noqa: PLC0415
        from mlflow.types.schema import Array, ColSpec, DataType, Object, Property, Schema  # noqa: PLC0415

    text, number, whole = DataType.string, DataType.double, DataType.long
    neighbor = Object(
        [
            Property("item_id", text),
            Property("title", text, required=False),
            Property("similarity", number),
            Property("rank", whole),
            Property("probability", number, required=False),
        ]
    )
    asked = Schema([ColSpec(text, "item_id"), ColSpec(whole, "k", required=False)])
    answered = Schema(
        [
            ColSpec(text, "release_id"),
            ColSpec(text, "item_id"),
            ColSpec(text, "title", required=False),
            ColSpec(Array(neighbor), "neighbors"),
        ]
    )
    mlflow.pyfunc.save_model(
        folder,
        loader_module="recsys.release.pyfunc",
        signature=ModelSignature(asked, answered),
        input_example={"item_id": release.catalog.item_ids[:2], "k": [5, 5]},
        pip_requirements=["recsys"],
    )
