"""The folder of a run, with one complete sub-folder for each finished stage.

The id of a run is a hash of data, settings and code, so repeating a run finds the same folder. A stage writes into a
temporary folder, its `_MANIFEST.json` last, and renames the folder: a folder with the name of a stage is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from recsys.config.sections import Config
from recsys.config.senses import Sense
from recsys.data.storage import sha256
from recsys.errors import InputError, StageError

MANIFEST = "_MANIFEST.json"
LOCK = ".lock"
PACKAGES = ("recsys", "pipelines")
"""Packages whose source code may change a release."""
LIBRARIES = ("annoy", "keras", "numpy", "polars", "scipy", "tensorflow", "tensorflow-cpu")
"""Libraries whose version may change a release."""


STAGES_OF_A_SENSE = ("train", "embed", "index", "calibrate")
"""Stages that run once for each sense. Their folders end in the sense, except for `next`."""

Inputs = Mapping[str, Iterable[str]]
"""Role (interactions, items, ...) -> paths or URLs of input files."""


def stage_of(stage: str, sense: Sense) -> str:
    """Return the name of a stage that runs once for each sense."""
    return stage if sense == "next" else f"{stage}-{sense}"


@dataclass(frozen=True)
class Run:
    """One execution of the pipeline for a combination of data, settings and code."""

    run_id: str
    folder: Path
    data_snapshot: str
    code_version: str
    sense: Sense = "next"
    """Sense of the stages in `STAGES_OF_A_SENSE`."""

    @classmethod
    def create(cls, config: Config, inputs: Inputs) -> Run:
        """Return the run of these input files and settings, and create its folder.

        Raises:
            InputError: the workspace is not writable.
        """
        run = cls.find(config, inputs)
        try:
            run.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"data.workspace must be a writable folder. Received: {error}.") from None
        if not os.access(run.folder, os.W_OK):
            raise InputError(f"data.workspace must be a writable folder. Received: {run.folder}.")
        return run

    @classmethod
    def find(cls, config: Config, inputs: Inputs) -> Run:
        """Return the run of these input files and settings without writing anything."""
        return cls.from_snapshot(data_snapshot(inputs), config)

    @classmethod
    def from_snapshot(cls, snapshot: str, config: Config) -> Run:
        """Return the run of a data snapshot, these settings and this code, without writing anything."""
        code = code_version()
        run_id = hashlib.sha256(f"{snapshot} {config.fingerprint()} {code}".encode()).hexdigest()[:12]
        return cls(run_id, config.workspace / "runs" / run_id, snapshot, code)

    def of(self, sense: Sense) -> Run:
        """Return the same run with its stages of another sense."""
        return replace(self, sense=sense)

    def name(self, stage: str) -> str:
        """Return the name of a stage, and of its folder, in the sense of this run."""
        return stage_of(stage, self.sense) if stage in STAGES_OF_A_SENSE else stage

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the run. It is released when the process ends, however it ends.

        Raises:
            StageError: another process holds the lock.
        """
        try:
            lock = FileLock(self.folder / LOCK).acquire(timeout=0)
        except Timeout:
            raise StageError(
                f"Another process is already working on run {self.run_id} in {self.folder}. Retry when it has finished."
            ) from None
        with lock:
            yield

    def done(self, stage: str) -> bool:
        """Return whether a stage is finished."""
        return (self.folder / self.name(stage) / MANIFEST).exists()

    def path(self, stage: str, name: str = "") -> Path:
        """Return the path of a file of a finished stage.

        Raises:
            StageError: the stage is not finished.
        """
        folder = self.folder / self.name(stage)
        if not self.done(stage):
            option = "" if folder.name == stage else f" --sense {self.sense}"
            raise StageError(
                f"stage {folder.name} must be finished first. Received: no {folder}. Run: recsys {stage}{option}"
            )
        return folder / name

    def manifest(self, stage: str) -> dict[str, Any]:
        """Return the manifest of a finished stage."""
        return json.loads(self.path(stage, MANIFEST).read_text(encoding="utf-8"))  # type: ignore[no-any-return]

    @contextmanager
    def stage(self, stage: str, plan: str | None = None) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Yield a temporary folder for the files of a stage, and a dictionary for its manifest.

        On exit the manifest is written and the folder is renamed; on an error the folder is removed.

        Args:
            stage: name of the stage.
            plan: identifies how the stage is divided into units of work. With the same plan as an interrupted
                process, the folder holds the units that it finished. Without a plan the stage starts again.
        """
        final = self.folder / self.name(stage)
        temporary = self.folder / f".tmp-{final.name}.{plan or secrets.token_hex(4)}"
        for leftover in self.folder.glob(f".tmp-{final.name}.*"):  # left by a killed process
            if leftover != temporary:
                shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir(exist_ok=True)
        manifest: dict[str, Any] = {}
        try:
            yield temporary, manifest
            (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
            temporary.rename(final)
        except BaseException as error:
            if plan is None or isinstance(error, Exception):
                shutil.rmtree(temporary, ignore_errors=True)
            raise


def data_snapshot(inputs: Inputs) -> str:
    """Return the SHA-256 over the content of the input files, in order."""
    digest = hashlib.sha256()
    for role, sources in inputs.items():
        for source in sources:
            digest.update(f"{role} {sha256(source)}\n".encode())
    return digest.hexdigest()


def code_version() -> str:
    """Return the version of the package, with a hash of its source code and of the library versions."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        for name, content in sorted(_sources(resources.files(package), package)):
            digest.update(f"{name} {len(content)}\n".encode() + content)
    for library in LIBRARIES:
        digest.update(f"{library} {_version(library)}\n".encode())
    return f"{_version('recsys')}+{digest.hexdigest()[:12]}"


def _sources(folder: Traversable, name: str) -> Iterator[tuple[str, bytes]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _sources(entry, f"{name}/{entry.name}")
        elif entry.name.endswith(".py"):
            yield f"{name}/{entry.name}", entry.read_bytes()


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "absent"
