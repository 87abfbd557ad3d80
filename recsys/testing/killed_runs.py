"""Nightly runs that are killed, and how what they leave differs from what an undisturbed run leaves."""

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

from pipelines.orchestration import report_files
from pipelines.orchestration.stage_table import STAGES
from pipelines.stages import promote
from recsys.config.loading import load_config
from recsys.errors import RecsysError
from recsys.release.bundle import Release
from recsys.release.formats import MANIFEST, TOWER
from recsys.release.mlflow_registry import Tracker
from recsys.testing import synthetic

USER_ROWS, ITEM_ROWS, UNITS = 20, 50, 10
"""Rows for each user and for each item; units of a log."""

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
validation_users = 500
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
"""A night of all stages, but little of each."""

MOMENTS = ("start", "mlflow", *STAGES, "end")
"""What a night is at, in order."""

DRAWN = {"created_at", "mlflow_run"}
"""What a release says about its making that no two nights share."""


DRAWN_BY_KERAS = re.compile(rb'"date_saved": "[^"]*"|"shared_object_id": \d+')
"""The same of a tower: the second is an address in memory."""


class Gone(NamedTuple):
    """A night that is over."""

    code: int
    seconds: float
    said: str

    @property
    def at(self) -> str:
        """What it was at when it ended."""
        finished = re.findall(r"^  (\w+) +\d+\.\d s", self.said, re.MULTILINE)
        begun = [*(["start"] if re.search(r"^Run ", self.said, re.MULTILINE) else []), *finished]
        return MOMENTS[len(begun)]


def world(folder: Path, rows: int) -> Path:
    """Made-up interactions and a config; the path of the config."""
    synthetic.interactions(folder / "interactions.parquet", rows, rows // USER_ROWS, rows // ITEM_ROWS)
    config = folder / "recsys.toml"
    config.write_text(SETTINGS.format(memory_mb=max(1, rows // UNITS) / 125))
    return config


def night(config: Path, workspace: Path, until_s: float | None = None) -> Gone:
    """One night as a program, killed after so many seconds if it is not over by then."""
    program = Path(sysconfig.get_path("scripts")) / "recsys"
    command: list[str | Path] = [program, "nightly", "--config", config, "--set", f"data.workspace={workspace}"]
    workspace.mkdir(exist_ok=True)
    told = workspace / "told.txt"
    started = time.perf_counter()
    with told.open("w") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True)
        try:
            process.wait(until_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    seconds = time.perf_counter() - started
    said = told.read_text()
    told.unlink()
    return Gone(process.returncode, seconds, said)


def _tower(path: Path) -> object:
    """Members of the archive, weights among them, less the times and addresses that Keras puts there."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    return {name: DRAWN_BY_KERAS.sub(b"", member) for name, member in members.items()}


def _manifest(path: Path) -> object:
    """All that it says, less what is drawn, and the hash of the tower's file, which follows from that."""
    said = {key: value for key, value in json.loads(path.read_text()).items() if key not in DRAWN}
    return said | {"files": {name: entry for name, entry in said["files"].items() if name != TOWER}}


CONTENT: dict[str, Callable[[Path], object]] = {TOWER: _tower, MANIFEST: _manifest}
"""Files that hold what differs from night to night, and how they are read without it."""


TIMED = {".lock", promote.REPORT, report_files.REPORT, report_files.PAGE}
"""Files that are of no use to compare: they tell how long things took."""


def outputs(workspace: Path) -> dict[str, Path]:
    """Every file that nights leave, by its path in the workspace; `TIMED`, and what MLflow keeps, apart."""
    files = [path for part in ("runs", "releases") for path in (workspace / part).rglob("*") if path.is_file()]
    return {str(path.relative_to(workspace)): path for path in sorted(files) if path.name not in TIMED}


def differences(config: Path, undisturbed: Path, workspace: Path) -> list[str]:
    """What a finished workspace has otherwise than the undisturbed one; none where all is the same.

    Beside the files: one version of the model, in service, of the undisturbed night's release, which loads here
    and as MLflow keeps it.
    """
    expected, received = outputs(undisturbed), outputs(workspace)
    found = [f"{name} is missing" for name in expected.keys() - received.keys()]
    found += [f"{name} is left over" for name in received.keys() - expected.keys()]
    for name in expected.keys() & received.keys():
        both = expected[name], received[name]
        if both[0].read_bytes() != both[1].read_bytes():
            content = CONTENT.get(both[0].name)
            if content is None or content(both[0]) != content(both[1]):
                found.append(f"{name} differs")
    try:
        found += _out_of_service(config, next((undisturbed / "releases").iterdir()).name, workspace)
    except RecsysError as error:
        found.append(str(error))
    return sorted(found)


def _out_of_service(config: Path, release_id: str, workspace: Path) -> list[str]:
    """What keeps the one release from being the one in service."""
    tracker = Tracker(load_config(config, [f"data.workspace={workspace}"]))
    versions = [version.tags["recsys.release_id"] for version in tracker.client.search_model_versions()]
    if versions != [release_id]:
        return [f"MLflow has versions of the releases {versions}, not of {release_id} once"]
    champion = tracker.champion()
    if champion is None:
        return ["no version is champion"]
    kept = Release.load(tracker.fetch(champion, workspace / "fetched"))
    here = Release.load(workspace / "releases" / release_id)
    item_id = here.catalog.item_ids[0]
    same = kept.similar(item_id) == here.similar(item_id)
    return [] if same else ["the champion that MLflow keeps answers otherwise than the release"]
