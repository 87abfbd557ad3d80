"""The folder of a run: one sub-folder a stage, each complete or not there.

A run's id is a hash of what went in and of what works on it, so the same night twice is one run. A stage
writes into a temporary folder, its `_MANIFEST.json` last, and the folder is renamed: what stands under a
stage's name is finished.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from recsys.config.sections import Config
from recsys.data.storage import sha256
from recsys.errors import InputError, StageError

MANIFEST = "_MANIFEST.json"
LOCK = ".lock"
PACKAGES = ("recsys", "pipelines")
"""Whose source shapes a release."""
LIBRARIES = ("annoy", "keras", "numpy", "polars", "scipy", "tensorflow", "tensorflow-cpu")
"""Whose version may change a release."""


Inputs = Mapping[str, Iterable[str]]
"""Paths or URLs of input files by their part: interactions, items and so on."""


@dataclass(frozen=True)
class Run:
    """One pass of data, config and code through the stages."""

    run_id: str
    folder: Path
    data_snapshot: str
    code_version: str

    @classmethod
    def of(cls, config: Config, inputs: Inputs) -> Run:
        """The run that belongs to these input files and this config, its folder made.

        Raises:
            InputError: the workspace cannot be written.
        """
        run = cls.planned(config, inputs)
        try:
            run.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"data.workspace must be a folder that we may write to. Received: {error}.") from None
        if not os.access(run.folder, os.W_OK):
            raise InputError(f"data.workspace must be a folder that we may write to. Received: {run.folder}.")
        return run

    @classmethod
    def planned(cls, config: Config, inputs: Inputs) -> Run:
        """The same, nothing written."""
        return cls.on(data_snapshot(inputs), config)

    @classmethod
    def on(cls, snapshot: str, config: Config) -> Run:
        """The run of a data snapshot by this config and this code, nothing written."""
        code = code_version()
        run_id = hashlib.sha256(f"{snapshot} {config.fingerprint()} {code}".encode()).hexdigest()[:12]
        return cls(run_id, config.workspace / "runs" / run_id, snapshot, code)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run: the lock goes with the process, however it ends.

        Raises:
            StageError: another process holds it.
        """
        try:
            held = FileLock(self.folder / LOCK).acquire(timeout=0)
        except Timeout:
            raise StageError(
                f"run {self.run_id} must be worked on by one process at a time. Received: another one is at it."
            ) from None
        with held:
            yield

    def done(self, stage: str) -> bool:
        """Whether a stage is finished."""
        return (self.folder / stage / MANIFEST).exists()

    def path(self, stage: str, name: str = "") -> Path:
        """A file of a finished stage.

        Raises:
            StageError: the stage was not run yet.
        """
        if not self.done(stage):
            raise StageError(
                f"stage {stage} must be finished first. Received: nothing in {self.folder / stage}. Run: recsys {stage}"
            )
        return self.folder / stage / name

    def manifest(self, stage: str) -> dict[str, Any]:
        """What a finished stage wrote down about itself."""
        return json.loads(self.path(stage, MANIFEST).read_text(encoding="utf-8"))  # type: ignore[no-any-return]

    @contextmanager
    def stage(self, stage: str, plan: str | None = None) -> Iterator[tuple[Path, dict[str, Any]]]:
        """A temporary folder for a stage's files, and a dictionary for its manifest.

        On leaving, the manifest is written and the folder gets the stage's name; on an error it is removed.

        Args:
            stage: its name.
            plan: names how a stage is cut into units of work. What a process that was killed or interrupted
                finished of the same plan is there again; without a plan the stage begins anew.
        """
        temporary = self.folder / f".tmp-{stage}-{plan or secrets.token_hex(4)}"
        for leftover in self.folder.glob(f".tmp-{stage}-*"):  # of a process that was killed
            if leftover != temporary:
                shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir(exist_ok=True)
        manifest: dict[str, Any] = {}
        try:
            yield temporary, manifest
            (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
            temporary.rename(self.folder / stage)
        except BaseException as error:
            if plan is None or isinstance(error, Exception):
                shutil.rmtree(temporary, ignore_errors=True)
            raise


def data_snapshot(inputs: Inputs) -> str:
    """SHA-256 over the content of the input files, in order."""
    digest = hashlib.sha256()
    for role, sources in inputs.items():
        for source in sources:
            digest.update(f"{role} {sha256(source)}\n".encode())
    return digest.hexdigest()


def code_version() -> str:
    """Version of the package, and a hash of its source and of the libraries that shape a release."""
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
