"""Prepared data of the trials of a tuning. Trials with the same settings of pairs share them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.context.input_files import InputFiles
from pipelines.context.progress import Progress
from pipelines.prepare.stage import prepare
from recsys.config.sections import Config
from recsys.release.runs import Run

PREFIX = "prepared-"
"""Prefix of the folders; a hash of the settings that shape the pairs follows."""

MAX_FOLDERS = 4
"""Maximum number of folders. If a setting of pairs has a range of numbers, almost every trial needs a new one."""


@dataclass(frozen=True)
class PreparedData:
    """Folders of prepared data in the folder of a tuning."""

    run: Run
    """The run of the tuning."""
    inputs: InputFiles

    @property
    def folders(self) -> list[Path]:
        """All folders, most recently used first."""
        folders = self.run.folder.glob(f"{PREFIX}*")
        return sorted(folders, key=lambda folder: folder.stat().st_mtime_ns, reverse=True)

    def prepare(self, config: Config) -> Run:
        """Return a run whose prepare stage is finished."""
        tables = config.model_dump(mode="json", include={"prepare": True, "similar": {"enabled", "penalty"}})
        settings = json.dumps(tables, sort_keys=True)
        folder = self.run.folder / f"{PREFIX}{hashlib.sha256(settings.encode()).hexdigest()[:12]}"
        folder.mkdir(exist_ok=True)
        os.utime(folder)
        for old_folder in self.folders[MAX_FOLDERS:]:
            shutil.rmtree(old_folder)
        run = replace(self.run, folder=folder)
        prepare(config, run, self.inputs, Progress(quiet=True))
        return run

    def remove(self) -> None:
        """Remove all folders."""
        for folder in self.folders:
            shutil.rmtree(folder)
