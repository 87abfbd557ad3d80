"""Neighbours as one file of JSON lines, one an item, as the service answers; the file is replaced in one step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO

import polars as pl

from pipelines.sinks.sink import Export, by_item, require_writable
from recsys.errors import InputError


class JsonLines:
    """A file beside `path` that takes its name when it is complete.

    Raises:
        InputError: we may not write there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary = path.with_name(f".{path.name}.tmp")
        self._file: IO[bytes] | None = None
        require_writable(path.parent, str(path))

    def current(self) -> str | None:
        """From the first line."""
        try:
            with self.path.open("rb") as file:
                first = file.readline()
            return str(json.loads(first)["export_id"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(
                "neighbours.to must be a new file, or one of neighbours that were exported. "
                f"Received: {self.path}, which holds something else. Name another file."
            ) from None

    def write(self, export: Export, part: Path) -> None:
        """Lines at the end."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._temporary.open("wb")
        ids = [pl.lit(export.export_id).alias("export_id"), pl.lit(export.release_id).alias("release_id")]
        by_item(part).select(*ids, "item_id", "neighbours").write_ndjson(self._file)

    def switch(self, export: Export) -> None:  # noqa: ARG002 - every line names it
        """The new file under the name of the old one."""
        if self._file is not None:
            self._file.close()
            self._temporary.replace(self.path)
            self._file = None

    def clean(self, export: Export) -> None:
        """There is one file, and it was replaced."""

    def close(self) -> None:
        """Remove the file that did not take its name."""
        if self._file is not None:
            self._file.close()
            self._temporary.unlink()
