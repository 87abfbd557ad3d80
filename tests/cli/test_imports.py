"""Which libraries the commands import, each in a process of its own: importing all of them takes ten seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipelines.context.run_context import RunContext
from pipelines.orchestration import finished_run
from recsys.config.loading import load_config
from recsys.config.sections import Config
from recsys.release.formats import MANIFEST
from recsys.release.mlflow_registry import Tracker
from recsys.release.versions import CHAMPION, RELEASE_TAG
from recsys.testing import world
from recsys.testing.releases import WriteRelease
from tests import GOLDEN_RELEASES

CODE = """
import json, sys
from recsys.command_line import main
try:
    main()
except SystemExit as end:
    print(json.dumps([end.code or 0, sorted(sys.modules)]))
"""
TRAINING = {"apache_beam", "keras", "mlflow", "pandas", "tensorflow"}
LIBRARIES = TRAINING | {"annoy", "fastapi", "numpy", "polars", "pyarrow", "scipy", "uvicorn"}


def run(*arguments: object) -> tuple[list[str], set[str]]:
    """Run a command that succeeds, and return its output and the modules that it imported."""
    command = [sys.executable, "-c", CODE, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "300"})
    *output, last = done.stdout.splitlines()
    code, modules = json.loads(last)
    assert code == 0, done.stderr
    return output, set(modules)


def register(config: Config, release_id: str, alias: str) -> None:
    """Register a version of the model without its files, and set an alias."""
    tracker = Tracker(config)
    tracker.client.create_registered_model(tracker.model)
    tracker.client.create_model_version(tracker.model, "file:///nowhere", tags={RELEASE_TAG: release_id})
    tracker.client.set_registered_model_alias(tracker.model, alias, "1")


def test_help_imports_no_library() -> None:
    output, modules = run("--help")
    assert any("nightly" in line for line in output)
    assert not (LIBRARIES | {"pydantic"}) & modules


@pytest.mark.parametrize("command", [["similar"], ["releases", "prune"], ["serve"], ["train"]], ids=" ".join)
def test_help_of_a_command_imports_no_other_command(command: Sequence[str]) -> None:
    _, modules = run(*command, "--help")
    assert not LIBRARIES & modules
    packages = {name.partition(".")[0] for name in modules if ".commands" in name}
    assert packages <= {"recsys", {"serve": "serving", "train": "pipelines"}.get(command[0], "recsys")}


def test_query_of_a_release_imports_neither_training_nor_the_service() -> None:
    _, modules = run("similar", "item-0-0", "--release", GOLDEN_RELEASES / "v5", "--json")
    assert not (TRAINING | {"fastapi", "scipy", "uvicorn"}) & modules


def test_query_of_the_champion_imports_no_mlflow(tmp_path: Path, write_release: WriteRelease) -> None:
    """Its alias is in an SQLite file, and its release in the workspace."""
    (tmp_path / "recsys.toml").write_text('[data]\nworkspace = "."\n')
    write_release(["a", "b", "c"], release_id="release-0")
    register(load_config(tmp_path / "recsys.toml"), "release-0", CHAMPION)
    output, modules = run("similar", "b", "--config", tmp_path / "recsys.toml", "--json")
    assert json.loads(output[0])["release_id"] == "release-0"
    assert not (TRAINING | {"fastapi", "scipy", "uvicorn"}) & modules


def test_finished_run_imports_neither_mlflow_nor_the_libraries_of_its_stages(tmp_path: Path) -> None:
    config = load_config(world.write(tmp_path))
    finished = RunContext.from_config(config).run
    release = config.workspace / "releases" / finished.run_id
    release.mkdir(parents=True)
    (release / MANIFEST).touch()
    register(config, finished.run_id, CHAMPION)
    finished_run.save(config, finished, {"outcome": "promoted", "run_id": finished.run_id, "seconds": {"train": 9.0}})
    output, modules = run("nightly", "--config", tmp_path / "recsys.toml", "--json")
    summary = json.loads(output[0])
    assert (summary["outcome"], summary["skipped"], summary["seconds"]) == ("promoted", True, {})
    assert "nothing to do" in summary["text"]
    assert not TRAINING & modules


def test_supervisor_imports_no_tensorflow_for_the_tower_of_its_workers() -> None:
    code = (
        "import json, sys; from serving.commands.serve import _find_embedder; import serving.workers.supervisor; "
        "_find_embedder(); print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not TRAINING & set(json.loads(done.stdout))
