"""When a run that has finished has nothing to do again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.orchestration import finished_run
from recsys.config.loading import parse_config
from recsys.config.sections import Config
from recsys.release.mlflow_registry import Tracker
from recsys.release.runs import Run
from recsys.release.versions import Version

SUMMARY = {"outcome": "promoted", "run_id": "release-0"}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return parse_config({"data": {"interactions": "log.csv", "workspace": str(tmp_path / "workspace")}})


@pytest.fixture
def versions(config: Config, register_releases: Callable[..., Any]) -> list[Version]:
    """Two registered releases; the first is the champion."""
    registered: list[Version] = register_releases(Tracker(config), 2)
    Tracker(config).promote(registered[0], None)
    return registered


@pytest.fixture
def run(config: Config) -> Run:
    """The finished run of the first release."""
    folder = config.workspace / "runs" / "release-0"
    folder.mkdir(parents=True)
    finished = Run("release-0", folder, "snapshot", "code")
    finished_run.save(config, finished, SUMMARY)
    return finished


@pytest.mark.usefixtures("versions")
def test_run_of_the_champion_has_nothing_to_do(config: Config, run: Run) -> None:
    assert finished_run.find(config, run) == SUMMARY
    assert finished_run.find(config, replace(run, folder=run.folder.parent / "other")) is None


@pytest.mark.usefixtures("versions")
@pytest.mark.parametrize(
    ("table", "key", "value"),
    [("promote", "tolerance", 0.01), ("tracking", "experiment", "other"), ("data", "releases", "s3://bucket/releases")],
)
def test_changed_settings_may_change_what_happens_to_the_release(
    config: Config, run: Run, table: str, key: str, value: Any
) -> None:
    changed = getattr(config, table).model_copy(update={key: value})
    assert finished_run.find(config.model_copy(update={table: changed}), run) is None


def test_other_champion_and_missing_release_are_found_by_the_stages(
    config: Config, run: Run, versions: list[Version]
) -> None:
    Tracker(config).promote(versions[1], versions[0])
    assert finished_run.find(config, run) is None
    Tracker(config).promote(versions[0], versions[1])
    assert finished_run.find(config, run) == SUMMARY
    (config.workspace / "releases" / "release-0" / "manifest.json").unlink()
    assert finished_run.find(config, run) is None


@pytest.mark.usefixtures("versions")
@pytest.mark.parametrize("content", ["", "{", "[]", json.dumps({"summary": SUMMARY})])
def test_file_of_another_version_is_ignored(config: Config, run: Run, content: str) -> None:
    (run.folder / finished_run.FILE).write_text(content)
    assert finished_run.find(config, run) is None
