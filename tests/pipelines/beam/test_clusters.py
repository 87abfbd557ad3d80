"""Flink and Spark for real: what the jobs write there is, row for row, what they write by the profile `local`."""

import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import synthetic
from tests.e2e import program
from tests.pipelines import outputs
from tests.pipelines.beam import flink

SERVERS = Path(os.environ.get("RECSYS_JOB_SERVERS", "nowhere"))
"""A folder with what `make flink` and `make spark` fetch."""

pytestmark = pytest.mark.skipif(shutil.which("java") is None, reason="needs Java 17")


def where_fetched(profile: str) -> pytest.MarkDecorator:
    reason = f"needs Beam's job server for {profile}: make {profile} fetches it and runs this"
    return pytest.mark.skipif(not (SERVERS / profile).is_dir(), reason=reason)


SMALL_NIGHT = """
[data]
interactions = "interactions.parquet"

[prepare]
window = 2
rows_per_unit = 100000

[tower]
dimension = 16

[train]
passes = 1
history_passes = 0
validation_users = 500

[embed]
items_per_unit = 4000

[evaluate]
users = 500
windows = []
windows_up_to = 0
shrinkage = [10.0]
resamples = 10

[index]
n_trees = 10
sample = 200
recall_target = 0.9
recall_floor = 0.1
"""
"""A night whose model is worth nothing: what is compared is who ran the jobs."""


@pytest.fixture(scope="module")
def million(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("million")
    synthetic.interactions(folder / "interactions.parquet", 1_000_000, 50_000, 20_000)
    (folder / "recsys.toml").write_text(SMALL_NIGHT)
    return folder


@pytest.fixture(scope="module", params=["movielens", "million"])
def local(request: pytest.FixtureRequest) -> Path:
    """A folder with data, a config, and the whole night in its workspace, run by the profile `local`."""
    folder: Path = request.getfixturevalue(request.param)
    recsys("nightly", folder, folder / "workspace")
    return folder


CLUSTERS = [
    pytest.param(("flink", "embedded"), marks=where_fetched("flink"), id="flink, embedded"),
    pytest.param(("flink", "session"), marks=where_fetched("flink"), id="flink, two task managers"),
    pytest.param(("spark", "embedded"), marks=where_fetched("spark"), id="spark, embedded"),
]


@pytest.fixture(params=CLUSTERS)
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[str]]:
    """Flags for a profile whose jobs another runner does."""
    profile, where = request.param
    server = SERVERS / profile
    flags = ["--set", f"beam.profile={profile}"]
    options = f'{profile}_job_server_jar="{server / "job-server.jar"}"'
    if where == "embedded":
        yield [*flags, "--set", f"beam.options={{{options}}}"]
        return
    with flink.session_cluster(server / "lib", tmp_path) as address:
        yield [*flags, "--set", f'beam.options={{{options}, flink_master="{address}"}}']
        assert flink.finished_jobs(address) == 3


def recsys(command: str, folder: Path, workspace: Path, *more: object) -> float:
    """Run a command of the program on the world of a folder; its seconds."""
    started = time.monotonic()
    smaller = ["--set", "prepare.rows_per_unit=20000", "--set", "embed.items_per_unit=500"]
    done = program.run(
        command,
        *("--config", folder / "recsys.toml", "--set", f"data.workspace={workspace}"),
        *(smaller if "movielens" in str(folder) else []),
        *more,
    )
    assert done.returncode == 0, done.stderr
    return time.monotonic() - started


def test_prepare_embed_and_neighbors_write_the_same_rows(local: Path, cluster: list[str], tmp_path: Path) -> None:
    (run,) = (local / "workspace" / "runs").iterdir()
    (release,) = (local / "workspace" / "releases").iterdir()
    workspace = tmp_path / "workspace"
    seconds = {"prepare": recsys("prepare", local, workspace, *cluster)}
    (again,) = (workspace / "runs").iterdir()
    shutil.copytree(run / "train", again / "train")
    seconds["embed"] = recsys("embed", local, workspace, *cluster)
    for name, flags in {"local": [], "cluster": cluster}.items():
        to = ["--release", release, "--to", tmp_path / name, "--set", "neighbors.items_per_unit=1000"]
        seconds[f"neighbors, {name}"] = recsys("neighbors", local, tmp_path / f"of {name}", *to, *flags)
    logging.getLogger(__name__).info("seconds: %s", {name: round(value, 1) for name, value in seconds.items()})

    for stage in ("prepare", "embed"):
        assert outputs.rows(again / stage) == outputs.rows(run / stage)
    assert outputs.rows(tmp_path / "cluster") == outputs.rows(tmp_path / "local")
