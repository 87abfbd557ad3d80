"""Retention: which releases and runs are deleted."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from recsys.errors import InputError
from recsys.release import retention
from recsys.release.runs import LOCK


@pytest.fixture
def workspace(tmp_path: Path, write_release: Any) -> Path:
    """Six releases, a (oldest) to f, each with its run, and an older run without a release."""
    folder = tmp_path / "workspace"
    (folder / "releases").mkdir(parents=True)
    original = write_release(["x", "y", "z"])
    for day, name in enumerate("abcdef", 1):
        release = folder / "releases" / name
        release.mkdir()
        manifest = json.loads((original / "manifest.json").read_text())
        manifest |= {"release_id": name, "created_at": f"2024-01-0{day}T00:00:00+00:00"}
        (release / "manifest.json").write_text(json.dumps(manifest))
    for day, name in enumerate(["rejected", *"abcdef"]):
        run = folder / "runs" / name
        run.mkdir(parents=True)
        (run / LOCK).touch()
        os.utime(run, (day, day))
    return folder


def names(workspace: Path, kind: str) -> str:
    return "".join(sorted(path.name for path in (workspace / kind).iterdir()))


def test_keeps_used_and_newest_releases(workspace: Path) -> None:
    plan = retention.plan(workspace, {"a": "champion", "c": "pinned: for the test"}, newest=2)
    assert plan.keep == {
        "f": "one of the newest 2",
        "e": "one of the newest 2",
        "a": "champion",
        "c": "pinned: for the test",
    }
    assert [folder.name for folder in plan.releases] == ["b", "d"]
    assert [folder.name for folder in plan.runs] == ["rejected", "b", "d"]
    assert names(workspace, "releases") == "abcdef", "a plan deletes nothing"
    deleted = retention.prune(workspace, plan)
    assert {folder.name for folder in deleted} == {"b", "d", "rejected"}
    assert (names(workspace, "releases"), names(workspace, "runs")) == ("acef", "acef")


def test_ignores_used_releases_outside_the_workspace(workspace: Path) -> None:
    plan = retention.plan(workspace, {"elsewhere": "champion"}, newest=6)
    assert "elsewhere" not in plan.keep
    assert plan.releases == []


def test_does_not_delete_folders_that_are_not_releases(workspace: Path) -> None:
    (workspace / "releases" / "notes").mkdir()
    (workspace / "releases" / "a" / "manifest.json").write_text("{}")
    plan = retention.plan(workspace, {}, newest=1)
    assert [folder.name for folder in plan.releases] == ["b", "c", "d", "e"]


def test_does_not_delete_a_locked_run(workspace: Path) -> None:
    from filelock import FileLock

    plan = retention.plan(workspace, {}, newest=1)
    with FileLock(workspace / "runs" / "b" / LOCK):
        retention.prune(workspace, plan)
    assert names(workspace, "runs") == "bf"


def test_deletes_what_a_killed_process_left(workspace: Path) -> None:
    (workspace / "releases" / "a").rename(workspace / "releases" / f"{retention.DELETING}a")
    plan = retention.plan(workspace, {}, newest=6)
    assert set(plan.keep) == set("bcdef")
    retention.prune(workspace, plan)
    assert names(workspace, "releases") == "bcdef"


def test_plan_of_an_empty_workspace_is_empty(tmp_path: Path) -> None:
    assert retention.plan(tmp_path, {}, newest=1) == ({}, [], [])


@pytest.mark.parametrize("server", ["http://127.0.0.1:9", "file:///etc/passwd", "127.0.0.1:8000"])
def test_rejects_a_server_that_does_not_report_its_release(server: str) -> None:
    with pytest.raises(InputError, match="server"):
        retention.served_release(server)
