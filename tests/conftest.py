"""Fixtures of several packages: the command line in this process, releases, an S3 bucket, and MovieLens 100k."""

import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from filelock import FileLock

from pipelines.beam import runner
from recsys.testing.releases import WriteRelease, release_writer

pytest.register_assert_rewrite(*(f"recsys.testing.{kind}_contract" for kind in ("loss", "neighbors", "sink")))


class Outcome(NamedTuple):
    """The result of a command."""

    exit_code: int
    out: str
    err: str


Program = Callable[..., Outcome]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    """Return a function that runs `recsys ARGUMENTS…` in this process, which saves the imports of a new process."""
    from recsys import command_line

    monkeypatch.setenv("COLUMNS", "300")  # no message is wrapped
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.delenv("RECSYS_CONFIG", raising=False)

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["recsys", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            command_line.main()
        code = exit_info.value.code
        return Outcome(0 if code is None else int(code), *capsys.readouterr())

    return run


@pytest.fixture(autouse=True)
def mlflow_template(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copy MLflow databases from a template in this process, because MLflow needs seconds to create its tables."""
    connection = sys.modules.get("recsys.release.mlflow_connection")
    if connection is None or request.node.get_closest_marker("creates_mlflow_tables"):
        return
    shared = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        shared = shared.parent  # shared by all workers
    template, create = shared / "mlflow-template.db", connection.create_database

    def copy(database: Path) -> None:
        if database.exists():
            return
        with FileLock(template.with_suffix(".lock")):
            create(template)
        database.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(template, database)

    monkeypatch.setattr(connection, "create_database", copy)


@pytest.fixture(autouse=True)
def jobs_without_beam(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Call the units of local Beam jobs one by one in quick tests, because planning a pipeline takes a second."""
    if any(request.node.get_closest_marker(name) for name in ("beam", "slow", "e2e")):
        return
    run_pipeline = runner._run_pipeline

    def run(phases: list[Any], options: dict[str, Any], advance: Any) -> None:
        if options.get("direct_running_mode") != "in_memory":
            run_pipeline(phases, options, advance)
            return
        for phase in phases:
            for unit in phase.units:
                runner._UnitWork(phase)((unit, []))

    monkeypatch.setattr(runner, "_run_pipeline", run)


@pytest.fixture
def write_release(tmp_path: Path) -> WriteRelease:
    """Return a `release_writer` that writes to the temporary folder of the test."""
    return release_writer(tmp_path)


@pytest.fixture
def register_releases(write_release: WriteRelease) -> Callable[..., Any]:
    """Return a function that writes `count` releases to the workspace of a tracker and registers them.

    Their ids are release-0, release-1, and so on. None is the champion.
    """
    import json

    from recsys import Release

    def register(tracker: Any, count: int) -> list[Any]:
        versions = []
        (tracker.workspace / "releases").mkdir(parents=True, exist_ok=True)
        for number in range(count):
            folder = write_release([f"item {number}-{n}" for n in range(12)])
            manifest = json.loads((folder / "manifest.json").read_text())
            manifest |= {"release_id": f"release-{number}", "created_at": f"2024-01-0{number + 1}T02:00:00+00:00"}
            (folder / "manifest.json").write_text(json.dumps(manifest))
            path = tracker.workspace / "releases" / f"release-{number}"
            folder.rename(path)
            versions.append(tracker.register(tracker.start_run(f"run-{number}", "snapshot"), Release.load(path)))
        return versions

    return register


@dataclass(frozen=True)
class Bucket:
    """A bucket on an S3 server, accessed with boto3, which the project itself does not use."""

    client: Any
    name: str

    @property
    def url(self) -> str:
        return f"s3://{self.name}"

    def put(self, name: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=name, Body=content)

    def get(self, name: str) -> bytes:
        content: bytes = self.client.get_object(Bucket=self.name, Key=name)["Body"].read()
        return content

    def remove(self, name: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=name)

    def names(self) -> list[str]:
        return [entry["Key"] for entry in self.client.list_objects_v2(Bucket=self.name).get("Contents", [])]


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """URL of an S3 server on this machine."""
    from tests.pipelines import servers

    with servers.s3() as url:
        yield url


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """An empty bucket. The environment variables give access to it and contain nothing else about AWS."""
    import boto3
    from s3fs import S3FileSystem

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "dummy")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "dummy")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    S3FileSystem.clear_instance_cache()  # an instance of another environment would be reused
    bucket = Bucket(boto3.client("s3"), f"bucket-{uuid.uuid4()}")
    bucket.client.create_bucket(Bucket=bucket.name)
    return bucket


@pytest.fixture(scope="session")
def movielens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with MovieLens 100k and its config. The test is skipped if the data cannot be downloaded."""
    from recsys.data import datasets
    from recsys.errors import InputError

    try:
        return datasets.movielens_100k(tmp_path_factory.mktemp("movielens")).parent
    except InputError as error:
        pytest.skip(str(error))
