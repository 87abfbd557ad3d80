"""Beam jobs on Flink and Spark write the same rows as with the profile `local`."""

import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pipelines.context.progress import Progress
from pipelines.orchestration.nightly import run_nightly
from recsys.config.loading import load_config
from recsys.testing import program, synthetic
from tests.pipelines import outputs
from tests.pipelines.beam import flink_cluster

JOB_SERVERS = Path(os.environ.get("RECSYS_JOB_SERVERS", "no-job-servers"))
"""Folder of Beam's job servers, which `make flink` and `make spark` create."""

TIMEOUT_S = 900

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(shutil.which("java") is None, reason="needs Java 17")]


def needs_job_server(profile: str) -> pytest.MarkDecorator:
    reason = f"needs Beam's job server for {profile}: run `make {profile}`, which gets it with Maven"
    return pytest.mark.skipif(not (JOB_SERVERS / profile).is_dir(), reason=reason)


SMALL_RUN = """
[data]
interactions = "interactions.parquet"

[prepare]
window = 2

[tower]
dimension = 16

[train]
passes = 1
history_passes = 0
validation_queries = 500

[similar]
enabled = false

[resources]
memory_mb = 800

[evaluate]
users = 500

[index]
n_trees = 10
recall_target = 0.9
recall_floor = 0.1
"""
"""Settings for random interactions, from which only popularity can be learned; the gate would reject the release."""

SMALL_UNITS = {"movielens": ["resources.memory_mb=160"], "million": []}
"""Overrides that split a data set into several units."""


class LocalRun(NamedTuple):
    """A data set, and the outputs of the profile `local`."""

    config: Path
    overrides: list[str]
    run: Path
    release: Path
    neighbors: Path


@pytest.fixture(scope="module")
def million(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("million")
    synthetic.interactions(folder / "interactions.parquet", 1_000_000, 50_000, 20_000)
    (folder / "recsys.toml").write_text(SMALL_RUN)
    return folder


@pytest.fixture(scope="module")
def local(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LocalRun:
    """Run the stages up to `publish`. The gate is skipped, because the tests compare runners and not models."""
    config = request.getfixturevalue(request.param) / "recsys.toml"
    folder = tmp_path_factory.mktemp("local")
    overrides = [*SMALL_UNITS[request.param], f"data.workspace={folder / 'workspace'}"]
    run_nightly(load_config(config, overrides), Progress(quiet=True), promotes=False)
    (run,) = (folder / "workspace" / "runs").iterdir()
    (release,) = (folder / "workspace" / "releases").iterdir()
    export_neighbors(config, overrides, release, folder / "neighbors")
    return LocalRun(config, SMALL_UNITS[request.param], run, release, folder / "neighbors")


def case(data: str, profile: str, mode: str) -> Any:
    return pytest.param(data, (profile, mode), marks=needs_job_server(profile), id=f"{data}, {profile}, {mode}")


CASES = [
    case("movielens", "flink", "embedded"),
    case("million", "flink", "session"),
    case("movielens", "spark", "embedded"),
    case("million", "spark", "embedded"),
]
"""Cover both data sets, runners and kinds of Flink cluster (embedded; two task managers). Each takes minutes."""


@pytest.fixture
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[str]]:
    """Overrides that run the jobs on a cluster."""
    profile, mode = request.param
    folder = JOB_SERVERS / profile
    jar = f'{profile}_job_server_jar="{folder / "job-server.jar"}"'
    if mode == "embedded":
        yield [f"beam.profile={profile}", f"beam.options={{{jar}}}"]
        return
    with flink_cluster.session_cluster(folder / "lib", tmp_path) as address:
        yield [f"beam.profile={profile}", f'beam.options={{{jar}, flink_master="{address}"}}']
        assert flink_cluster.finished_jobs(address) == 3


def run_command(command: str, config: Path, overrides: list[str], *arguments: object) -> float:
    """Run a command in another process and return its duration in seconds."""
    started = time.monotonic()
    flags = [flag for override in overrides for flag in ("--set", override)]
    process = program.run(command, "--config", config, *flags, *arguments, timeout_s=TIMEOUT_S)
    assert process.returncode == 0, process.stderr
    return time.monotonic() - started


def export_neighbors(config: Path, overrides: list[str], release: Path, to: Path) -> float:
    overrides = [*overrides, "resources.memory_mb=800"]
    return run_command("export", config, overrides, "--release", release, "--to", to)


@pytest.mark.parametrize(("local", "cluster"), CASES, indirect=True)
def test_cluster_writes_the_rows_of_the_local_profile(local: LocalRun, cluster: list[str], tmp_path: Path) -> None:
    overrides = [*local.overrides, *cluster, f"data.workspace={tmp_path / 'workspace'}"]
    seconds = {"prepare": run_command("prepare", local.config, overrides)}
    (run,) = (tmp_path / "workspace" / "runs").iterdir()
    shutil.copytree(local.run / "train", run / "train")
    seconds["embed"] = run_command("embed", local.config, overrides)
    seconds["neighbors"] = export_neighbors(local.config, overrides, local.release, tmp_path / "neighbors")
    logging.getLogger(__name__).info("seconds: %s", {name: round(value, 1) for name, value in seconds.items()})

    for stage in ("prepare", "embed"):
        assert outputs.rows(run / stage) == outputs.rows(local.run / stage)
    assert outputs.rows(tmp_path / "neighbors") == outputs.rows(local.neighbors)
