"""Profiles: what Beam is asked for, what is refused, and that servers of ours end and stay on this machine."""

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

from pipelines.beam import job_servers as servers
from pipelines.beam import loopback, runner
from pipelines.beam import options as profiles
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
    ("profile", "wanted"),
    [
        ("local", {"runner": "FnApiRunner", "direct_running_mode": "in_memory", "direct_num_workers": 1}),
        ("local-threads", {"runner": "FnApiRunner", "direct_running_mode": "multi_threading", "direct_num_workers": 3}),
        ("portable", {"runner": "PortableRunner"}),
    ],
)
def test_a_profile_on_this_machine_needs_no_options(profile: str, wanted: dict[str, Any]) -> None:
    assert profiles.options(beam(profile)) == wanted


@pytest.mark.parametrize(("profile", "master"), [("flink", "flink_master"), ("spark", "spark_master_url")])
def test_a_java_runner_is_embedded_unless_a_cluster_is_named(profile: str, master: str, jar: str) -> None:
    given = {f"{profile}_job_server_jar": jar}
    embedded = profiles.options(beam(profile, **given))
    assert "local" in embedded[master]
    assert embedded["sdk_worker_parallelism"] == "3"
    cluster = {master: "cluster:8081", "environment_type": "EXTERNAL", "environment_config": "localhost:50000"}
    assert profiles.options(beam(profile, **given, **cluster)).items() >= {**given, **cluster}.items()


def test_dataflow_gets_what_the_config_says() -> None:
    chosen = profiles.options(beam("dataflow", **DATAFLOW, experiments=["one", "two"]))
    assert chosen.items() >= DATAFLOW.items()
    assert (chosen["runner"], chosen["max_num_workers"], chosen["experiments"]) == ("DataflowRunner", 3, ["one", "two"])
    assert chosen["save_main_session"] is False


def test_what_the_config_says_goes_over_the_preset() -> None:
    assert profiles.options(beam("dataflow", **DATAFLOW, max_num_workers=50))["max_num_workers"] == 50


@pytest.mark.parametrize(
    ("name", "told"), [("flink_mastre", "Did you mean flink_master?"), ("zzzzzz", "PipelineOptions")]
)
def test_an_unknown_option_is_refused(name: str, told: str) -> None:
    with pytest.raises(ConfigError, match=rf"Received: {name}\..*{told}"):
        profiles.options(beam("portable", **{name: "secret"}))


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
def test_a_value_that_beam_does_not_take_is_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        profiles.options(beam("portable", **{name: value}))


def test_a_refused_value_is_not_told_since_it_may_be_a_secret() -> None:
    with pytest.raises(ConfigError, match="s3_secret_access_key") as caught:
        profiles.options(beam("portable", s3_secret_access_key=["hush", "hush"]))
    assert "hush" not in str(caught.value)


def test_the_runner_is_the_profiles_to_choose() -> None:
    with pytest.raises(ConfigError, match=r"must not hold runner: beam\.profile"):
        profiles.options(beam("local", runner="PrismRunner"))


@pytest.mark.parametrize("missing", ["project", "region", "temp_location", "sdk_container_image"])
def test_dataflow_says_what_it_misses(missing: str) -> None:
    given = {name: value for name, value in DATAFLOW.items() if name != missing}
    with pytest.raises(ConfigError, match=rf"must hold {missing}.*with the profile dataflow"):
        profiles.options(beam("dataflow", **given))


@pytest.mark.parametrize("profile", ["flink", "spark"])
def test_a_java_runner_needs_its_job_server(profile: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"must hold {profile}_job_server_jar or job_endpoint"):
        profiles.options(beam(profile))
    with pytest.raises(ConfigError, match=rf"{profile}_job_server_jar must be a file\. Received: .*gone\.jar"):
        profiles.options(beam(profile, **{f"{profile}_job_server_jar": str(tmp_path / "gone.jar")}))


@pytest.mark.parametrize("address", ["cluster:8081", "http://10.0.0.1:8081", "localhost.evil:1", "[auto]"])
def test_a_cluster_elsewhere_does_not_get_the_workers_that_we_start(address: str, jar: str) -> None:
    with pytest.raises(ConfigError, match="environment_type where flink_master is not on this machine"):
        profiles.options(beam("flink", flink_job_server_jar=jar, flink_master=address))
    with pytest.raises(ConfigError, match="environment_type where job_endpoint is not on this machine"):
        profiles.options(beam("portable", job_endpoint=address))


@pytest.mark.parametrize("address", ["localhost:8081", "http://127.0.0.1:8081", "[::1]:8081"])
def test_a_cluster_on_this_machine_does(address: str, jar: str) -> None:
    assert "environment_type" not in profiles.options(beam("flink", flink_job_server_jar=jar, flink_master=address))


def silent(*_: object, **__: object) -> None:
    """Progress that nobody sees."""


@pytest.mark.skipif(find_spec("apitools") is not None, reason="Google's libraries are installed")
def test_dataflow_without_googles_libraries_says_what_to_install() -> None:
    with pytest.raises(ConfigError, match=r"pip install \"apache-beam\[gcp\]\""):
        runner.run([], beam("dataflow", **DATAFLOW), silent)


def test_what_beam_finds_wrong_with_its_options_is_told() -> None:
    with pytest.raises(ConfigError, match=r"(?s)must pass Beam's own checks.*process_command"):
        runner.run([], beam("local", environment_type="PROCESS", environment_options=["zzz=1"]), silent)


# --- servers


def listening(address: str, host: str = "127.0.0.1") -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, int(address.rpartition(":")[2]))) == 0


def gone(addresses: list[str]) -> bool:
    """Whether nobody listens any more, after a while."""
    deadline = time.monotonic() + DEADLINE_S
    while any(map(listening, addresses)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(listening, addresses))


def both(options: dict[str, Any]) -> list[str]:
    return [options["job_endpoint"], options["environment_config"]]


def test_servers_listen_to_this_machine_alone_and_end_with_the_run() -> None:
    with servers.beside({"runner": "PortableRunner"}) as options:
        addresses = both(options)
        assert all(map(listening, addresses))
        # what is bound to every interface also answers at the other addresses of loopback
        assert not any(listening(address, "127.0.0.2") for address in addresses)
    assert gone(addresses)


STARTER = """
import json, sys
from pipelines.beam import job_servers as servers
with servers.beside({}) as options:
    print(json.dumps(options), flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
@pytest.mark.slow
def test_servers_end_with_who_started_them_however_that_ends(number: signal.Signals) -> None:
    command = [sys.executable, "-c", STARTER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as starter:
        assert starter.stdout is not None
        addresses = both(json.loads(starter.stdout.readline()))
        assert all(map(listening, addresses))
        os.kill(starter.pid, number)
    assert gone(addresses)


def test_what_is_named_is_not_started() -> None:
    named = {"job_endpoint": "127.0.0.1:1", "environment_type": "DOCKER"}
    with servers.beside(named) as options:
        assert options == named


@pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
def test_a_server_that_does_not_start_is_told_with_its_own_words(jar: str) -> None:
    options = profiles.options(beam("flink", flink_job_server_jar=jar))
    with pytest.raises(StageError, match=r"(?s)job server must start.*server\.jar"), servers.beside(options):
        pass


def test_java_that_is_missing_is_named(jar: str) -> None:
    options = profiles.options(beam("flink", flink_job_server_jar=jar, job_server_java_launcher="no-such-java"))
    with pytest.raises(StageError, match=r"must find Java 17\. Received: no no-such-java"), servers.beside(options):
        pass


def test_servers_of_this_process_are_kept_to_this_machine_too() -> None:
    import grpc

    unconfined = grpc.server
    with loopback.confined():
        server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("[::]:0")
    server.start()
    try:
        assert listening(f":{port}")
        assert not listening(f":{port}", "127.0.0.2")
    finally:
        server.stop(0)
    assert grpc.server is unconfined


# --- the same rows


def config_of(path: Path, *settings: str) -> Config:
    return load_config(path, settings)


def write_tower(folder: Path, context: RunContext) -> None:
    """A tower that learned nothing, where the stage `train` would leave one."""
    from recsys.model import tower

    folder.mkdir()
    catalog = pl.read_parquet(context.run.path(prepare.STAGE, "catalog.parquet"))
    features = Features.fit(catalog, context.config.items, context.config.tower, np.ones(catalog.height, np.int64))
    features.save(folder / FEATURES)
    tower.build(features, context.config.tower, seed=1).save(folder / TOWER)
    (folder / "_MANIFEST.json").write_text("{}")


@pytest.mark.slow
def test_prepare_and_embed_write_the_same_rows_out_of_process(tmp_path: Path) -> None:
    path = world.write(tmp_path / "world")
    small = ["prepare.rows_per_unit=200", "embed.items_per_unit=20"]
    written = {}
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
        written[profile] = outputs.rows(context.run.folder)
    assert len([name for name in written["local"] if name.startswith("prepare/pairs/")]) > 1
    assert written["portable"] == written["local"]


@pytest.mark.slow
def test_neighbors_are_the_same_rows_out_of_process(tmp_path: Path, write_release: Callable[..., Path]) -> None:
    release = Release.load(write_release([f"item-{number}" for number in range(40)]))
    path = world.write(tmp_path / "world")
    written = {}
    for profile in ("local", "portable"):
        to = tmp_path / f"{profile}-neighbors"
        settings = [f"data.workspace={tmp_path / profile}", f"beam.profile={profile}", f"neighbors.to={to}"]
        config = config_of(path, *settings, "neighbors.items_per_unit=15", "neighbors.k=5")
        export_neighbors(release, config, Progress(quiet=True))
        written[profile] = outputs.rows(to)
    assert len([name for name in written["local"] if name.endswith(".parquet")]) > 1
    assert written["portable"] == written["local"]


# --- workers elsewhere


def nothing(unit: int) -> None:
    """Work that no worker without the folder begins."""
    raise AssertionError(unit)


@pytest.mark.slow
def test_workers_that_do_not_reach_the_folder_of_the_run_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "not shared"
    phase = runner.Phase("first", [0, 1], nothing, lambda unit: folder / f"{unit}.json")
    with pytest.raises(StageError, match=r"must reach the folder of the run, .*not shared.*no 0\.json"):
        runner.run([phase], BeamConfig(), silent)
