"""MLflow registry in an SQLite file: resumed runs, registered versions, error messages."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from recsys import Release
from recsys.config.loading import parse_config
from recsys.config.sections import Config
from recsys.config.senses import SENSES
from recsys.errors import ReleaseError, TrackingError
from recsys.release.mlflow_registry import Tracker
from recsys.testing.sink_contract import list_files
from tests import GOLDEN_RELEASES

GOLDEN = GOLDEN_RELEASES / "v1"


@pytest.fixture
def settings(tmp_path: Path) -> Config:
    return parse_config({"data": {"interactions": "log.csv", "workspace": str(tmp_path / "workspace")}})


@pytest.fixture
def tracker(settings: Config) -> Tracker:
    return Tracker(settings)


def test_restarted_run_is_resumed(tracker: Tracker) -> None:
    """A run that was killed and started again has one MLflow run."""
    first = tracker.start_run("abc", "snapshot")
    tracker.log_params(first, {"train": {"passes": 3}})
    tracker.finish_run(first, "FAILED")
    resumed = tracker.start_run("abc", "snapshot")
    tracker.log_params(resumed, {"train": {"passes": 3}})
    assert resumed == first
    assert tracker.client.get_run(first).info.status == "RUNNING"
    assert tracker.start_run("def", "snapshot") != first


def test_artifacts_are_stored_in_the_workspace(
    tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are not stored in the working directory."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    run = tracker.start_run("abc", "snapshot")
    tracker.log_artifact(run, GOLDEN / "features.json", "release")
    assert list(elsewhere.iterdir()) == []
    assert list((tmp_path / "workspace" / "mlartifacts").rglob("features.json"))


def test_release_is_registered_once_and_fetched_by_its_version(tracker: Tracker, tmp_path: Path) -> None:
    release = Release.load(GOLDEN)
    run = tracker.start_run("abc", "snapshot")
    version = tracker.register(run, release)
    assert tracker.register(run, release) == version
    assert version.number == "1"
    folder = tracker.fetch(version, tmp_path / "fetched")
    assert folder == tmp_path / "fetched" / release.release_id
    assert Release.load(folder).manifest == release.manifest
    assert [path.name for path in folder.parent.iterdir()] == [release.release_id]


def test_release_with_two_spaces_is_registered_and_fetched(
    tracker: Tracker, write_release: Callable[..., Path], tmp_path: Path
) -> None:
    release = Release.load(write_release(["a", "b", "c", "d"], spaces=("next", "similar")))
    version = tracker.register(tracker.start_run("abc", "snapshot"), release)
    folder = tracker.fetch(version, tmp_path / "fetched")
    assert {name: (folder / name).read_bytes() for name in list_files(folder)} == {
        name: (release.path / name).read_bytes() for name in list_files(release.path)
    }
    for sense in SENSES:
        assert Release.load(folder).similar("a", sense=sense) == release.similar("a", sense=sense)


def test_rejects_a_version_whose_artifact_is_another_release(tracker: Tracker, tmp_path: Path) -> None:
    """The tag of the version names another release than the manifest in the artifact."""
    version = tracker.register(tracker.start_run("abc", "snapshot"), Release.load(GOLDEN))
    with pytest.raises(ReleaseError, match=r"must hold release other. Received: 571d78ec1c0d"):
        tracker.fetch(replace(version, release_id="other"), tmp_path)
    assert list(tmp_path.glob("other")) == []


@pytest.mark.creates_mlflow_tables
@pytest.mark.slow
def test_recreates_a_database_whose_creation_was_killed(settings: Config) -> None:
    """MLflow creates its tables one by one, which takes seconds, and rejects an incomplete database."""
    program = f"""
from recsys.config.loading import parse_config
from recsys.release.mlflow_registry import Tracker
Tracker(parse_config({settings.model_dump(include={"data"})!r}))
"""
    workspace = settings.workspace
    workspace.mkdir()
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            if any(path.stat().st_size for path in workspace.rglob("mlflow.db")):  # the first table exists
                process.kill()
                break
    assert process.returncode == -9
    assert not (workspace / "mlflow.db").exists()
    tracker = Tracker(settings)
    assert tracker.start_run("abc", "snapshot") == tracker.start_run("abc", "snapshot")
    assert not [*workspace.glob(".tmp-*")]


def test_no_champion_before_the_first_promotion(tracker: Tracker) -> None:
    assert tracker.champion() is None
    version = tracker.register(tracker.start_run("abc", "snapshot"), Release.load(GOLDEN))
    assert tracker.champion() is None
    tracker.promote(version, None)
    assert tracker.champion() == version


@pytest.mark.parametrize(
    ("uri", "shown_uri"),
    [
        ("http://someone:sesame@127.0.0.1:{}", "http://…@127.0.0.1:{}"),
        ("http://127.0.0.1:{}/?token=sesame", "http://127.0.0.1:{}/"),
    ],
)
def test_unreachable_server_fails_within_seconds_without_showing_the_password(
    tmp_path: Path, uri: str, shown_uri: str
) -> None:
    with socket.socket() as free_socket:
        free_socket.bind(("127.0.0.1", 0))
        port = free_socket.getsockname()[1]
    settings = parse_config(
        {
            "data": {"interactions": "log.csv", "workspace": str(tmp_path)},
            "tracking": {"uri": uri.format(port)},
        }
    )
    with pytest.raises(TrackingError, match=rf"MLflow at {re.escape(shown_uri.format(port))} must answer") as raised:
        Tracker(settings).champion()
    assert "sesame" not in str(raised.value)


def test_error_about_an_invalid_database_is_one_line(settings: Config) -> None:
    """MLflow does not convert the errors of SQLAlchemy."""
    settings.workspace.mkdir()
    (settings.workspace / "mlflow.db").write_text("not a database file" * 1_000)
    with pytest.raises(TrackingError, match=r"MLflow at sqlite:///.*mlflow\.db must answer.*not a database") as raised:
        Tracker(settings).start("abc", "snapshot")
    assert "\n" not in str(raised.value)
