"""What may go and what may not: by folders on disk."""

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
    """Six releases, a to f from old to new, each with its run; and a run without a release, older than all."""
    folder = tmp_path / "workspace"
    (folder / "releases").mkdir(parents=True)
    original = write_release(["x", "y", "z"])
    for day, name in enumerate("abcdef", 1):
        place = folder / "releases" / name
        place.mkdir()
        manifest = json.loads((original / "manifest.json").read_text())
        manifest |= {"release_id": name, "created_at": f"2024-01-0{day}T00:00:00+00:00"}
        (place / "manifest.json").write_text(json.dumps(manifest))
    for day, name in enumerate(["refused", *"abcdef"]):
        run = folder / "runs" / name
        run.mkdir(parents=True)
        (run / LOCK).touch()
        os.utime(run, (day, day))
    return folder


def left(workspace: Path, kind: str) -> str:
    return "".join(sorted(path.name for path in (workspace / kind).iterdir()))


def test_what_is_needed_and_the_newest_stay(workspace: Path) -> None:
    plan = retention.plan(workspace, {"a": "champion", "c": "pinned: for the test"}, newest=2)
    assert plan.keep == {
        "f": "one of the newest 2",
        "e": "one of the newest 2",
        "a": "champion",
        "c": "pinned: for the test",
    }
    assert [folder.name for folder in plan.releases] == ["b", "d"]
    assert [folder.name for folder in plan.runs] == ["refused", "b", "d"]
    assert left(workspace, "releases") == "abcdef", "a plan deletes nothing"
    gone = retention.prune(workspace, plan)
    assert {folder.name for folder in gone} == {"b", "d", "refused"}
    assert (left(workspace, "releases"), left(workspace, "runs")) == ("acef", "acef")


def test_a_release_that_is_not_here_keeps_nothing_and_harms_nothing(workspace: Path) -> None:
    plan = retention.plan(workspace, {"elsewhere": "champion"}, newest=6)
    assert "elsewhere" not in plan.keep
    assert plan.releases == []


def test_a_folder_that_is_no_release_is_not_ours_to_delete(workspace: Path) -> None:
    (workspace / "releases" / "notes").mkdir()
    (workspace / "releases" / "a" / "manifest.json").write_text("{}")
    plan = retention.plan(workspace, {}, newest=1)
    assert [folder.name for folder in plan.releases] == ["b", "c", "d", "e"]


def test_a_run_that_is_worked_on_stays(workspace: Path) -> None:
    from filelock import FileLock

    plan = retention.plan(workspace, {}, newest=1)
    with FileLock(workspace / "runs" / "b" / LOCK):
        retention.prune(workspace, plan)
    assert left(workspace, "runs") == "bf"


def test_what_a_killed_prune_left_goes_with_the_next(workspace: Path) -> None:
    (workspace / "releases" / "a").rename(workspace / "releases" / f"{retention.DELETING}a")
    plan = retention.plan(workspace, {}, newest=6)
    assert set(plan.keep) == set("bcdef")
    retention.prune(workspace, plan)
    assert left(workspace, "releases") == "bcdef"


def test_an_empty_workspace_has_nothing_to_prune(tmp_path: Path) -> None:
    assert retention.plan(tmp_path, {}, newest=1) == ({}, [], [])


@pytest.mark.parametrize("server", ["http://127.0.0.1:9", "file:///etc/passwd", "127.0.0.1:8000"])
def test_a_server_that_does_not_say_what_it_serves_is_an_error(server: str) -> None:
    with pytest.raises(InputError, match="server"):
        retention.served_release(server)
