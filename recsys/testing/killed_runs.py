"""Nightly runs that are killed and restarted, compared with a run that is not killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sysconfig
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pipelines.orchestration import finished_run, report_files
from pipelines.orchestration.stage_table import STAGES
from pipelines.stages import promote
from recsys.config.loading import load_config
from recsys.errors import RecsysError
from recsys.release.bundle import Release
from recsys.release.formats import MANIFEST, TOWER
from recsys.release.mlflow_registry import Tracker
from recsys.testing import synthetic

USER_ROWS, ITEM_ROWS, UNITS = 20, 50, 10
"""Rows per user, rows per item, and the number of units of the interactions."""

SETTINGS = """
[data]
interactions = "interactions.parquet"
[prepare]
window = 3
[tower]
dimension = 16
[candidates]
kind = "sampled"
max_positives = 1024
negatives = 512
[train]
passes = 2
history_passes = 0
batch_size = 1024
validation_queries = 500
[resources]
memory_mb = {memory_mb}
[index]
n_trees = 10
recall_target = 0.8
recall_floor = 0.5
[evaluate]
users = 500
[promote]
quality_floor = 0.0
"""
"""Settings of a short run with all stages."""

PHASES = ("start", "mlflow", *STAGES, "end")
"""Phases of a run, in order."""

VOLATILE_FIELDS = {"created_at", "mlflow_run"}
"""Fields of a manifest that differ from run to run."""


VOLATILE_KERAS_FIELDS = re.compile(rb'"date_saved": "[^"]*"|"shared_object_id": \d+')
"""Fields of a Keras file that differ from run to run; the second is a memory address."""


class FinishedRun(NamedTuple):
    """A run that has ended or was killed."""

    exit_code: int
    seconds: float
    stderr: str

    @property
    def phase(self) -> str:
        """Phase in which the run ended."""
        finished = re.findall(r"^  ([\w-]+) +\d+\.\d s", self.stderr, re.MULTILINE)
        started = [*(["start"] if re.search(r"^Run ", self.stderr, re.MULTILINE) else []), *finished]
        return PHASES[len(started)]


def write_data(folder: Path, rows: int) -> Path:
    """Write synthetic interactions and a config, and return the path of the config."""
    synthetic.interactions(folder / "interactions.parquet", rows, rows // USER_ROWS, rows // ITEM_ROWS)
    config = folder / "recsys.toml"
    config.write_text(SETTINGS.format(memory_mb=max(1, rows // UNITS) / 125))
    return config


def run_nightly(config: Path, workspace: Path, kill_after_s: float | None = None) -> FinishedRun:
    """Run `recsys nightly` in a process, and kill it if it takes longer than `kill_after_s`."""
    program = Path(sysconfig.get_path("scripts")) / "recsys"
    command: list[str | Path] = [program, "nightly", "--config", config, "--set", f"data.workspace={workspace}"]
    workspace.mkdir(exist_ok=True)
    stderr_file = workspace / "stderr.txt"
    started = time.perf_counter()
    with stderr_file.open("w") as file:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file, start_new_session=True)
        try:
            process.wait(kill_after_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    seconds = time.perf_counter() - started
    stderr = stderr_file.read_text()
    stderr_file.unlink()
    return FinishedRun(process.returncode, seconds, stderr)


def _tower(path: Path) -> object:
    """Return the members of the archive without the times and addresses that Keras writes."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    return {name: VOLATILE_KERAS_FIELDS.sub(b"", member) for name, member in members.items()}


def _manifest(path: Path) -> object:
    """Return the manifest without volatile fields and without the hashes of the towers' files, which depend on them."""
    content = {key: value for key, value in json.loads(path.read_text()).items() if key not in VOLATILE_FIELDS}
    return content | {"files": {name: entry for name, entry in content["files"].items() if Path(name).name != TOWER}}


CONTENT: dict[str, Callable[[Path], object]] = {TOWER: _tower, MANIFEST: _manifest}
"""Files with volatile fields, and functions that read them without these fields."""


TIMED = {".lock", finished_run.FILE, promote.REPORT, report_files.REPORT, report_files.PAGE}
"""Files that are not compared, because they contain durations."""


def outputs(workspace: Path) -> dict[str, Path]:
    """Return all files of runs and releases by path in the workspace, except `TIMED` files."""
    files = [path for part in ("runs", "releases") for path in (workspace / part).rglob("*") if path.is_file()]
    return {str(path.relative_to(workspace)): path for path in sorted(files) if path.name not in TIMED}


def differences(config: Path, undisturbed: Path, workspace: Path) -> list[str]:
    """Return the differences between a workspace and an undisturbed one; none if they are equal.

    Also checks that MLflow has one model version, that it is the champion, that it is the release of the undisturbed
    run, and that both copies of the release load.
    """
    expected, received = outputs(undisturbed), outputs(workspace)
    result = [f"{name} is missing" for name in expected.keys() - received.keys()]
    result += [f"{name} is unexpected" for name in received.keys() - expected.keys()]
    for name in expected.keys() & received.keys():
        expected_file, received_file = expected[name], received[name]
        if expected_file.read_bytes() != received_file.read_bytes():
            read_content = CONTENT.get(expected_file.name)
            if read_content is None or read_content(expected_file) != read_content(received_file):
                result.append(f"{name} differs")
    try:
        result += _champion_errors(config, next((undisturbed / "releases").iterdir()).name, workspace)
    except RecsysError as error:
        result.append(str(error))
    return sorted(result)


def _champion_errors(config: Path, release_id: str, workspace: Path) -> list[str]:
    """Return why the release is not the champion, or not equal to the champion in MLflow."""
    tracker = Tracker(load_config(config, [f"data.workspace={workspace}"]))
    versions = [version.tags["recsys.release_id"] for version in tracker.client.search_model_versions()]
    if versions != [release_id]:
        return [f"MLflow has versions of the releases {versions}, expected one version of {release_id}"]
    champion = tracker.champion()
    if champion is None:
        return ["no version is champion"]
    registered = Release.load(tracker.fetch(champion, workspace / "fetched"))
    local = Release.load(workspace / "releases" / release_id)
    item_id = local.catalog.item_ids[0]
    same = registered.similar(item_id) == local.similar(item_id)
    return [] if same else ["the champion in MLflow and the release return different results"]
