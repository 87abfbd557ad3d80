"""Neighbors as a folder of Parquet files; `_MANIFEST.json` in it names the files of the export to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipelines.export.sinks.base import Export
from recsys.data.storage import Location
from recsys.errors import InputError
from recsys.release.runs import MANIFEST

PREFIX = "export-"


class ParquetFolder:
    """One folder an export within `folder`. The manifest is replaced in one step.

    Raises:
        InputError: the folder holds other things.
    """

    def __init__(self, folder: Location) -> None:
        self.folder = folder
        self._written: Location | None = None
        others = [name for name in folder.list_names() if not name.startswith((PREFIX, MANIFEST))]
        if others:
            raise InputError(
                f"neighbors.to must be a folder of its own. Received: {folder.display_name}, which holds {others[0]}. "
                "Name another one."
            )

    def current(self) -> str | None:
        """From the manifest."""
        location = self.folder / MANIFEST
        if not location.exists():
            return None
        try:
            with location.open() as file:
                manifest: Any = json.load(file)
            return str(manifest["export_id"])
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{location.display_name} must be of neighbors that were exported. Received: another file. "
                "Name another folder in neighbors.to."
            ) from None

    def write(self, export: Export, part: Path) -> None:
        """A copy of the part."""
        self._written = self.folder / _of(export)
        (self._written / part.name).copy_from(part)

    def switch(self, export: Export) -> None:
        """A new manifest under the name of the old one."""
        files = [f"{_of(export)}/{part.name}" for part in export.parts]
        manifest = json.dumps({**export.about, "files": files}, indent=2) + "\n"
        (self.folder / MANIFEST).write_bytes(manifest.encode())
        self._written = None

    def clean(self, export: Export) -> None:
        """Remove the other folders."""
        for name in self.folder.list_names():
            if name.startswith(PREFIX) and name != _of(export):
                (self.folder / name).remove()

    def close(self) -> None:
        """Remove what is not named by the manifest."""
        if self._written is not None and self._written.exists():
            self._written.remove()


def _of(export: Export) -> str:
    return f"{PREFIX}{export.export_id}"
