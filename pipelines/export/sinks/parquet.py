"""Sink for a folder of Parquet files, whose `_MANIFEST.json` lists the files of the current export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipelines.export.sinks.base import Export
from recsys.data.storage import Location
from recsys.errors import InputError
from recsys.release.runs import MANIFEST

PREFIX = "export-"


class ParquetSink:
    """Writes each export to its own subfolder, and replaces the manifest in one step.

    Raises:
        InputError: the folder has other content.
    """

    def __init__(self, folder: Location) -> None:
        self.folder = folder
        self._unpublished: Location | None = None
        foreign = [name for name in folder.list_names() if not name.startswith((PREFIX, MANIFEST))]
        if foreign:
            raise InputError(
                "export.to must be a folder that holds only exported neighbors. "
                f"Received: {folder.display_name}, which holds {foreign[0]}. Name another folder."
            )

    def current_export_id(self) -> str | None:
        """Return the export id in the manifest."""
        location = self.folder / MANIFEST
        if not location.exists():
            return None
        try:
            with location.open() as file:
                manifest: Any = json.load(file)
            return str(manifest["export_id"])
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{location.display_name} must be the manifest of exported neighbors. Received: another file. "
                "Name another folder in export.to."
            ) from None

    def write(self, export: Export, part: Path) -> None:
        """Copy the part."""
        self._unpublished = self.folder / _subfolder(export)
        (self._unpublished / part.name).copy_from(part)

    def publish(self, export: Export) -> None:
        """Replace the manifest."""
        files = [f"{_subfolder(export)}/{part.name}" for part in export.parts]
        manifest = json.dumps({**export.metadata, "files": files}, indent=2) + "\n"
        (self.folder / MANIFEST).write_bytes(manifest.encode())
        self._unpublished = None

    def remove_previous(self, export: Export) -> None:
        """Remove the subfolders of other exports."""
        for name in self.folder.list_names():
            if name.startswith(PREFIX) and name != _subfolder(export):
                (self.folder / name).remove()

    def close(self) -> None:
        """Remove the subfolder of an unpublished export."""
        if self._unpublished is not None and self._unpublished.exists():
            self._unpublished.remove()


def _subfolder(export: Export) -> str:
    return f"{PREFIX}{export.export_id}"
