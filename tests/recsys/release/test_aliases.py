"""Aliases are read from MLflow's SQLite file without MLflow; in every other case, MLflow is asked."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recsys.config.loading import parse_config
from recsys.config.sections import Config
from recsys.errors import TrackingError
from recsys.release import aliases, mlflow_registry
from recsys.release.mlflow_registry import Tracker
from recsys.release.versions import CHALLENGER, CHAMPION, PREVIOUS


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return parse_config({"data": {"workspace": str(tmp_path / "work space")}})


def test_alias_is_that_of_mlflow_after_each_change(config: Config, register_releases: Callable[..., Any]) -> None:
    """For each alias, and for models with the name of another alias or of no model."""
    assert aliases.read_release_id(config, CHAMPION) is None
    tracker = Tracker(config)
    first, second, third = register_releases(tracker, 3)
    assert aliases.read_release_id(config, CHAMPION) is None
    other = config.model_copy(update={"tracking": config.tracking.model_copy(update={"model": "other"})})
    for version, champion in ((first, None), (second, first), (third, second), (first, third)):
        tracker.promote(version, champion)
        for alias in (CHAMPION, PREVIOUS, CHALLENGER):
            known = tracker.version_with(alias)
            assert aliases.read_release_id(config, alias) == (known.release_id if known else None)
        assert aliases.read_release_id(other, CHAMPION) is None
        assert aliases.fetch(config, CHAMPION) == config.workspace / "releases" / version.release_id


def test_mlflow_is_asked_if_the_release_is_not_on_this_machine(
    config: Config, register_releases: Callable[..., Any], tmp_path: Path
) -> None:
    (version,) = register_releases(Tracker(config), 1)
    Tracker(config).promote(version, None)
    (config.workspace / "releases" / "release-0").rename(tmp_path / "moved")
    assert aliases.fetch(config, CHALLENGER) is None
    fetched = aliases.fetch(config, CHAMPION)
    assert fetched == config.workspace / "releases" / "release-0"
    assert (fetched / "manifest.json").read_bytes() == (tmp_path / "moved" / "manifest.json").read_bytes()


def test_mlflow_is_asked_if_two_workspaces_have_the_model(
    config: Config, register_releases: Callable[..., Any]
) -> None:
    tracker = Tracker(config)
    (version,) = register_releases(tracker, 1)
    tracker.promote(version, None)
    with sqlite3.connect(config.workspace / "mlflow.db") as database:
        for table in ("registered_models", "model_versions", "model_version_tags", "registered_model_aliases"):
            columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            selected = ", ".join("'other'" if column == "workspace" else column for column in columns)
            copy = f"INSERT INTO {table} ({', '.join(columns)}) SELECT {selected} FROM {table}"  # noqa: S608
            database.execute(copy)
    assert aliases.read_release_id(config, CHAMPION) is None
    assert tracker.version_with(CHAMPION) == version


def test_damaged_database_is_reported_by_mlflow(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    config.workspace.mkdir()
    (config.workspace / "mlflow.db").write_text("no database " * 100)
    assert aliases.read_release_id(config, CHAMPION) is None
    monkeypatch.setattr(mlflow_registry, "connect", lambda _: (_ for _ in ()).throw(TrackingError("MLflow answers")))
    with pytest.raises(TrackingError, match="MLflow answers"):
        aliases.fetch(config, CHAMPION)
