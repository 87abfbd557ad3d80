"""Neighbours as a folder of Parquet files; `_MANIFEST.json` in it names the files of the export to read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pipelines.sinks.sink import Export, require_writable
from recsys.errors import InputError
from recsys.workspace import MANIFEST

PREFIX = "export-"


class ParquetFolder:
    """One folder an export within `folder`. The manifest is replaced in one step.

    Raises:
        InputError: we may not write there, or the folder holds other things.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._written: Path | None = None
        require_writable(folder, str(folder))
        if folder.exists():
            others = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith((PREFIX, MANIFEST)))
            if others:
                raise InputError(
                    f"neighbours.to must be a folder of its own. Received: {folder}, which holds {others[0]}. "
                    "Name another one."
                )

    def current(self) -> str | None:
        """From the manifest."""
        try:
            manifest: Any = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
            return str(manifest["export_id"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{self.folder / MANIFEST} must be of neighbours that were exported. Received: another file. "
                "Name another folder in neighbours.to."
            ) from None

    def write(self, export: Export, part: Path) -> None:
        """A copy of the part."""
        self._written = self._of(export)
        self._written.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(part, self._written / part.name)

    def switch(self, export: Export) -> None:
        """A new manifest under the name of the old one."""
        files = [f"{self._of(export).name}/{part.name}" for part in export.parts]
        temporary = self.folder / f"{MANIFEST}.tmp"
        temporary.write_text(json.dumps({**export.about, "files": files}, indent=2) + "\n", encoding="utf-8")
        temporary.replace(self.folder / MANIFEST)
        self._written = None

    def clean(self, export: Export) -> None:
        """Remove the other folders."""
        for folder in self.folder.glob(f"{PREFIX}*"):
            if folder != self._of(export):
                shutil.rmtree(folder)

    def close(self) -> None:
        """Remove what is not named by the manifest."""
        if self._written is not None:
            shutil.rmtree(self._written, ignore_errors=True)

    def _of(self, export: Export) -> Path:
        return self.folder / f"{PREFIX}{export.export_id}"
