"""Beam options of each profile, their validation, and the servers that a profile starts."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipelines.beam import job_servers, loopback, runner
from pipelines.beam.options import pipeline_options
from pipelines.context.progress import Progress
from pipelines.context.run_context import RunContext
from pipelines.export.job import export_neighbors
from pipelines.prepare import stage as prepare
from pipelines.stages import embed
from recsys.config.loading import load_config
from recsys.config.sections import BeamConfig, Config
from recsys.errors import ConfigError, StageError
from recsys.features.encoding import Features
from recsys.release.bundle import Release
from recsys.release.formats import FEATURES, TOWER
from recsys.testing import world
from tests.pipelines import outputs

DEADLINE_S = 60


def beam(profile: str, **options: Any) -> BeamConfig:
    return BeamConfig.model_validate({"profile": profile, "workers": 3, "options": options})


DATAFLOW = {"project": "p", "region": "r", "temp_location": "gs://bucket/temp", "sdk_container_image": "image"}


@pytest.fixture
def jar(tmp_path: Path) -> str:
    (tmp_path / "server.jar").touch()
    return str(tmp_path / "server.jar")


# --- options


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        ("local", {"runner": "FnApiRunner", "direct_running_mode": "in_memory", "direct_num_workers": 1}),
        ("local-threads", {"runner": "FnApiRunner", "direct_running_mode": "multi_threading", "direct_num_workers": 3}),
        ("portable", {"runner": "PortableRunner"}),
    ],
)
def test_local_profiles_need_no_options(profile: str, expected: dict[str, Any]) -> None:
    assert pipeline_options(beam(profile)) == expected


@pytest.mark.parametrize(("profile", "master"), [("flink", "flink_master"), ("spark", "spark_master_url")])
def test_java_runner_is_embedded_unless_a_cluster_is_set(profile: str, master: str, jar: str) -> None:
    options = {f"{profile}_job_server_jar": jar}
    embedded = pipeline_options(beam(profile, **options))
    assert "local" in embedded[master]
    assert embedded["sdk_worker_parallelism"] == "3"
    cluster = {master: "cluster:8081", "environment_type": "EXTERNAL", "environment_config": "localhost:50000"}
    assert pipeline_options(beam(profile, **options, **cluster)).items() >= {**options, **cluster}.items()


def test_dataflow_sets_runner_and_number_of_workers() -> None:
    options = pipeline_options(beam("dataflow", **DATAFLOW, experiments=["one", "two"]))
    assert options.items() >= DATAFLOW.items()
    assert (options["runner"], options["max_num_workers"], options["experiments"]) == (
        "DataflowRunner",
        3,
        ["one", "two"],
    )
    assert options["save_main_session"] is False


def test_options_of_the_config_override_the_profile() -> None:
    assert pipeline_options(beam("dataflow", **DATAFLOW, max_num_workers=50))["max_num_workers"] == 50


@pytest.mark.parametrize(
    ("name", "message"), [("flink_mastre", "Did you mean flink_master?"), ("zzzzzz", "PipelineOptions")]
)
def test_rejects_unknown_option(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"Received: {name}\..*{message}"):
        pipeline_options(beam("portable", **{name: "secret"}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("parallelism", "many"),
        ("parallelism", False),
        ("flink_version", "9"),
        ("project", ["one", "two"]),
        ("project", True),
        ("project", {"one": "two"}),
        ("auto_unique_labels", "yes"),
        ("experiments", "one, two"),
    ],
)
def test_rejects_value_that_beam_does_not_accept(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        pipeline_options(beam("portable", **{name: value}))


def test_error_does_not_show_the_rejected_value() -> None:
    with pytest.raises(ConfigError, match="s3_secret_access_key") as caught:
        pipeline_options(beam("portable", s3_secret_access_key=["confidential", "confidential"]))
    assert "confidential" not in str(caught.value)


def test_rejects_runner_option() -> None:
    with pytest.raises(ConfigError, match=r"must not contain runner: beam\.profile"):
        pipeline_options(beam("local", runner="PrismRunner"))


@pytest.mark.parametrize("missing", ["project", "region", "temp_location", "sdk_container_image"])
def test_dataflow_names_the_missing_option(missing: str) -> None:
    options = {name: value for name, value in DATAFLOW.items() if name != missing}
    with pytest.raises(ConfigError, match=rf"must contain {missing}.*with the profile dataflow"):
        pipeline_options(beam("dataflow", **options))


@pytest.mark.parametrize("profile", ["flink", "spark"])
def test_java_runner_needs_its_job_server(profile: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"must contain {profile}_job_server_jar or job_endpoint"):
        pipeline_options(beam(profile))
    with pytest.raises(ConfigError, match=rf"{profile}_job_server_jar must be a file\. Received: .*gone\.jar"):
        pipeline_options(beam(profile, **{f"{profile}_job_server_jar": str(tmp_path / "gone.jar")}))


@pytest.mark.parametrize("address", ["cluster:8081", "http://10.0.0.1:8081", "localhost.evil:1", "[auto]"])
def test_remote_cluster_needs_environment_type(address: str, jar: str) -> None:
    with pytest.raises(ConfigError, match="environment_type if flink_master is not on this machine"):
        pipeline_options(beam("flink", flink_job_server_jar=jar, flink_master=address))
    with pytest.raises(ConfigError, match="environment_type if job_endpoint is not on this machine"):
        pipeline_options(beam("portable", job_endpoint=address))


@pytest.mark.parametrize("address", ["localhost:8081", "http://127.0.0.1:8081", "[::1]:8081"])
def test_cluster_on_this_machine_needs_no_environment_type(address: str, jar: str) -> None:
    assert "environment_type" not in pipeline_options(beam("flink", flink_job_server_jar=jar, flink_master=address))


def ignore_progress(*_: object, **__: object) -> None:
    """Ignore progress."""


@pytest.mark.skipif(find_spec("apitools") is not None, reason="Google's libraries are installed")
def test_dataflow_without_google_libraries_names_the_package() -> None:
    with pytest.raises(ConfigError, match=r"pip install \"apache-beam\[gcp\]\""):
        runner.run([], beam("dataflow", **DATAFLOW), ignore_progress)


@pytest.mark.beam
def test_reports_errors_of_beams_validation() -> None:
    with pytest.raises(ConfigError, match=r"(?s)must pass Beam's own checks.*process_command"):
        runner.run([], beam("local", environment_type="PROCESS", environment_options=["zzz=1"]), ignore_progress)


# --- servers


def is_listening(address: str, host: str = "127.0.0.1") -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, int(address.rpartition(":")[2]))) == 0


def wait_until_closed(addresses: list[str]) -> bool:
    """Return whether the ports are closed before the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while any(map(is_listening, addresses)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(is_listening, addresses))


def addresses_of(options: dict[str, Any]) -> list[str]:
    return [options["job_endpoint"], options["environment_config"]]


def test_servers_bind_to_loopback_and_end_with_the_run() -> None:
    with job_servers.started({"runner": "PortableRunner"}) as options:
        addresses = addresses_of(options)
        assert all(map(is_listening, addresses))
        # a server that is bound to all interfaces also listens on other loopback addresses
        assert not any(is_listening(address, "127.0.0.2") for address in addresses)
    assert wait_until_closed(addresses)


PARENT_PROGRAM = """
import json, sys
from pipelines.beam import job_servers
with job_servers.started({}) as options:
    print(json.dumps(options), flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(
    "signal_number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name
)
@pytest.mark.slow
def test_servers_end_when_the_parent_process_is_killed(signal_number: signal.Signals) -> None:
    command = [sys.executable, "-c", PARENT_PROGRAM]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        assert parent.stdout is not None
        addresses = addresses_of(json.loads(parent.stdout.readline()))
        assert all(map(is_listening, addresses))
        os.kill(parent.pid, signal_number)
    assert wait_until_closed(addresses)


def test_does_not_start_servers_if_addresses_are_configured() -> None:
    configured = {"job_endpoint": "127.0.0.1:1", "environment_type": "DOCKER"}
    with job_servers.started(configured) as options:
        assert options == configured


@pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
def test_error_contains_the_output_of_a_server_that_does_not_start(jar: str) -> None:
    options = pipeline_options(beam("flink", flink_job_server_jar=jar))
    with pytest.raises(StageError, match=r"(?s)job server must start.*server\.jar"), job_servers.started(options):
        pass


def test_reports_missing_java(jar: str) -> None:
    options = pipeline_options(beam("flink", flink_job_server_jar=jar, job_server_java_launcher="no-such-java"))
    with pytest.raises(StageError, match=r"needs Java 17\. Received: no no-such-java"), job_servers.started(options):
        pass


def test_grpc_servers_of_this_process_bind_to_loopback() -> None:
    import grpc

    original = grpc.server
    with loopback.bind_loopback_only():
        server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("[::]:0")
    server.start()
    try:
        assert is_listening(f":{port}")
        assert not is_listening(f":{port}", "127.0.0.2")
    finally:
        server.stop(0)
    assert grpc.server is original


# --- workers in other processes


def config_of(path: Path, *settings: str) -> Config:
    return load_config(path, settings)


def write_tower(folder: Path, context: RunContext) -> None:
    """Write an untrained tower as the output of the stage `train`."""
    from recsys.model import tower

    folder.mkdir()
    catalog = pl.read_parquet(context.run.path(prepare.STAGE, "catalog.parquet"))
    features = Features.fit(catalog, context.config.items, context.config.tower, np.ones(catalog.height, np.int64))
    features.save(folder / FEATURES)
    tower.build(features, context.config.tower, seed=1).save(folder / TOWER)
    (folder / "_MANIFEST.json").write_text("{}")


@pytest.mark.slow
def test_prepare_and_embed_write_the_same_rows_with_workers_in_other_processes(tmp_path: Path) -> None:
    path = world.write(tmp_path / "world")
    small = ["resources.memory_mb=1.6"]
    rows = {}
    for profile in ("local", "portable"):
        workspace = tmp_path / profile
        settings = [*small, f"data.workspace={workspace}", f"beam.profile={profile}"]
        context = RunContext.from_config(config_of(path, *settings))
        prepare.prepare(context.config, context.run, context.inputs, context.progress)
        trained = tmp_path / "trained"
        if not trained.exists():
            write_tower(trained, context)
        shutil.copytree(trained, context.run.folder / "train")
        embed.embed(context.config, context.run, context.progress)
        rows[profile] = outputs.rows(context.run.folder)
    assert len([name for name in rows["local"] if name.startswith("prepare/pairs/")]) > 1
    assert rows["portable"] == rows["local"]


@pytest.mark.slow
def test_export_writes_the_same_rows_with_workers_in_other_processes(
    tmp_path: Path, write_release: Callable[..., Path]
) -> None:
    release = Release.load(write_release([f"item-{number}" for number in range(40)]))
    path = world.write(tmp_path / "world")
    rows = {}
    for profile in ("local", "portable"):
        to = tmp_path / f"{profile}-neighbors"
        settings = [f"data.workspace={tmp_path / profile}", f"beam.profile={profile}", f"export.to={to}"]
        config = config_of(path, *settings, "resources.memory_mb=12", "export.k=5")
        export_neighbors(release, config, Progress(quiet=True))
        rows[profile] = outputs.rows(to)
    assert len([name for name in rows["local"] if name.endswith(".parquet")]) > 1
    assert rows["portable"] == rows["local"]


# --- remote workers


def fail_if_started(unit: int) -> None:
    """Raise: a worker must not start work if it cannot access the folder."""
    raise AssertionError(unit)


@pytest.mark.slow
def test_reports_workers_without_access_to_the_run_folder(tmp_path: Path) -> None:
    folder = tmp_path / "not shared"
    phase = runner.Phase("first", [0, 1], fail_if_started, lambda unit: folder / f"{unit}.json")
    with pytest.raises(StageError, match=r"must have access to the folder of the run, .*not shared.*without 0\.json"):
        runner.run([phase], BeamConfig(), ignore_progress)
