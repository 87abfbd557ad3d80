"""Neighbors as one file of JSON lines, one an item, as the service answers; the file is replaced in one step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO

import polars as pl

from pipelines.export.sinks.base import Export, by_item
from recsys.data.storage import Location
from recsys.errors import InputError


class JsonLines:
    """A draft that takes its name when it is complete."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self._draft: Path | None = None
        self._file: IO[bytes] | None = None

    def current(self) -> str | None:
        """From the first line."""
        if not self.location.exists():
            return None
        try:
            with self.location.open() as file:
                first = file.readline()
            return str(json.loads(first)["export_id"])
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(
                "neighbors.to must be a new file, or one of neighbors that were exported. "
                f"Received: {self.location.display_name}, which holds something else. Name another file."
            ) from None

    def write(self, export: Export, part: Path) -> None:
        """Lines at the end."""
        if self._draft is None or self._file is None:
            self._draft = self.location.draft(part.parent)  # what is uploaded is written where the parts are
            self._file = self._draft.open("wb")
        ids = [pl.lit(export.export_id).alias("export_id"), pl.lit(export.release_id).alias("release_id")]
        by_item(part).select(*ids, "item_id", "neighbors").write_ndjson(self._file)

    def switch(self, export: Export) -> None:  # noqa: ARG002 - every line names it
        """The new file under the name of the old one."""
        if self._draft is not None and self._file is not None:
            self._file.close()
            self.location.commit(self._draft)
            self._draft = self._file = None

    def clean(self, export: Export) -> None:
        """There is one file, and it was replaced."""

    def close(self) -> None:
        """Remove the file that did not take its name."""
        if self._draft is not None and self._file is not None:
            self._file.close()
            self._draft.unlink()
