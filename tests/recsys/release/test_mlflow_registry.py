"""MLflow, for real, on an SQLite file: runs that go on, versions that are found again, errors that say where."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from recsys import Release
from recsys.config.loading import parse_config
from recsys.config.sections import Config
from recsys.errors import ReleaseError, TrackingError
from recsys.release.mlflow_registry import Tracker
from tests import GOLDEN_RELEASES

GOLDEN = GOLDEN_RELEASES / "v1"


@pytest.fixture
def settings(tmp_path: Path) -> Config:
    return parse_config({"data": {"interactions": "log.csv", "workspace": str(tmp_path / "workspace")}})


@pytest.fixture
def tracker(settings: Config) -> Tracker:
    return Tracker(settings)


def test_a_run_that_is_begun_again_goes_on(tracker: Tracker) -> None:
    """A night that was killed has one run in MLflow, not two."""
    first = tracker.start_run("abc", "snapshot")
    tracker.log_params(first, {"train": {"passes": 3}})
    tracker.finish_run(first, "FAILED")
    again = tracker.start_run("abc", "snapshot")
    tracker.log_params(again, {"train": {"passes": 3}})
    assert again == first
    assert tracker.client.get_run(first).info.status == "RUNNING"
    assert tracker.start_run("def", "snapshot") != first


def test_artifacts_lie_in_the_workspace(tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in whatever folder the night was started from."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    run = tracker.start_run("abc", "snapshot")
    tracker.log_artifact(run, GOLDEN / "features.json", "release")
    assert list(elsewhere.iterdir()) == []
    assert list((tmp_path / "workspace" / "mlartifacts").rglob("features.json"))


def test_a_release_is_registered_once_and_fetched_by_its_version(tracker: Tracker, tmp_path: Path) -> None:
    release = Release.load(GOLDEN)
    run = tracker.start_run("abc", "snapshot")
    version = tracker.register(run, release)
    assert tracker.register(run, release) == version
    assert version.number == "1"
    folder = tracker.fetch(version, tmp_path / "fetched")
    assert folder == tmp_path / "fetched" / release.release_id
    assert Release.load(folder).manifest == release.manifest
    assert [path.name for path in folder.parent.iterdir()] == [release.release_id]


def test_a_version_of_another_release_is_not_taken(tracker: Tracker, tmp_path: Path) -> None:
    """The tag says one thing, the artifact another."""
    version = tracker.register(tracker.start_run("abc", "snapshot"), Release.load(GOLDEN))
    with pytest.raises(ReleaseError, match=r"must hold release other. Received: 571d78ec1c0d"):
        tracker.fetch(replace(version, release_id="other"), tmp_path)
    assert list(tmp_path.glob("other")) == []


@pytest.mark.creates_mlflow_tables
@pytest.mark.slow
def test_a_database_that_a_killed_process_began_is_made_anew(settings: Config) -> None:
    """MLflow makes its tables one after the other, for seconds, and refuses to go on with half of them."""
    program = f"""
from recsys.config.loading import parse_config
from recsys.release.mlflow_registry import Tracker
Tracker(parse_config({settings.model_dump(include={"data"})!r}))
"""
    workspace = settings.workspace
    workspace.mkdir()
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            if any(path.stat().st_size for path in workspace.rglob("mlflow.db")):  # its first table
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
    ("uri", "shown"),
    [
        ("http://someone:sesame@127.0.0.1:{}", "http://…@127.0.0.1:{}"),
        ("http://127.0.0.1:{}/?token=sesame", "http://127.0.0.1:{}/"),
    ],
)
def test_a_closed_port_is_told_in_seconds_and_without_the_password(tmp_path: Path, uri: str, shown: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    settings = parse_config(
        {
            "data": {"interactions": "log.csv", "workspace": str(tmp_path)},
            "tracking": {"uri": uri.format(port)},
        }
    )
    with pytest.raises(TrackingError, match=rf"MLflow at {re.escape(shown.format(port))} must answer") as caught:
        Tracker(settings).champion()
    assert "sesame" not in str(caught.value)


def test_what_is_no_database_is_told_in_one_line(settings: Config) -> None:
    """SQLAlchemy's errors reach us as they are, through all of MLflow."""
    settings.workspace.mkdir()
    (settings.workspace / "mlflow.db").write_text("no database at all" * 1_000)
    with pytest.raises(TrackingError, match=r"MLflow at sqlite:///.*mlflow\.db must answer.*not a database") as caught:
        Tracker(settings).start("abc", "snapshot")
    assert "\n" not in str(caught.value)
