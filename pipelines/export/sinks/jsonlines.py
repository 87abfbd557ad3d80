"""Sink for a JSON lines file with one line per item, in the format of the service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO

import polars as pl

from pipelines.export.sinks.base import Export, group_by_item
from recsys.data.storage import Location
from recsys.errors import InputError


class JsonLinesSink:
    """Writes a draft and renames it when it is complete, so the file is replaced in one step."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self._draft: Path | None = None
        self._file: IO[bytes] | None = None

    def current_export_id(self) -> str | None:
        """Return the export id in the first line of the file."""
        if not self.location.exists():
            return None
        try:
            with self.location.open() as file:
                first_line = file.readline()
            return str(json.loads(first_line)["export_id"])
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(
                "export.to must be a new file, or a file of exported neighbors. "
                f"Received: {self.location.display_name}, which has other content. Name another file."
            ) from None

    def write(self, export: Export, part: Path) -> None:
        """Append the rows to the draft."""
        if self._draft is None or self._file is None:
            self._draft = self.location.draft(part.parent)  # for an object store, the draft is beside the parts
            self._file = self._draft.open("wb")
        ids = [pl.lit(export.export_id).alias("export_id"), pl.lit(export.release_id).alias("release_id")]
        group_by_item(part).select(*ids, "item_id", "neighbors").write_ndjson(self._file)

    def publish(self, export: Export) -> None:  # noqa: ARG002 - every line contains its id
        """Replace the file with the draft."""
        if self._draft is not None and self._file is not None:
            self._file.close()
            self.location.commit(self._draft)
            self._draft = self._file = None

    def remove_previous(self, export: Export) -> None:
        """Do nothing: the previous file was replaced."""

    def close(self) -> None:
        """Remove an unpublished draft."""
        if self._draft is not None and self._file is not None:
            self._file.close()
            self._draft.unlink()
