"""Interface of a sink for exported neighbors, and the order of its calls.

Rows are written invisibly to readers, then published in one step, then the previous rows are removed. So readers see
the previous or the new export, never parts of both, even if the process is killed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import polars as pl

from pipelines.context.progress import Advance
from recsys.errors import InputError


@dataclass(frozen=True)
class Export:
    """The neighbors of all items of a release."""

    export_id: str
    """Release id, dash, and hash of release, settings and code. Exports with equal ids have equal rows."""
    release_id: str
    k: int
    items: int
    """Number of items with neighbors."""
    rows: int
    """Number of neighbors of all items."""
    parts: tuple[Path, ...]
    """Parquet files with the columns of the answer. The rows of an item are adjacent and in one file."""

    @property
    def metadata(self) -> dict[str, str | int]:
        """Metadata that a sink stores with the rows."""
        return {
            "export_id": self.export_id,
            "release_id": self.release_id,
            "k": self.k,
            "items": self.items,
            "rows": self.rows,
        }


class Sink(Protocol):
    """A destination of exported neighbors.

    Raises:
        StageError: by any method, if a server is not reachable or rejects a statement.
        InputError: by any method, if an object store is not reachable or rejects a request.
    """

    def current_export_id(self) -> str | None:
        """Return the id of the export that readers see, or None if there is none. Writes nothing."""

    def write(self, export: Export, part: Path) -> None:
        """Write the rows of a part invisibly to readers. A process that resumes starts again with the first part."""

    def publish(self, export: Export) -> None:
        """Make this export visible to readers, in place of the previous one, in one step."""

    def remove_previous(self, export: Export) -> None:
        """Remove the rows of all other exports. Called after this one was published."""

    def close(self) -> None:
        """Release resources and remove rows that were not published."""


def deliver(export: Export, sink: Sink, advance: Advance) -> None:
    """Write an export to a sink and replace the previous one.

    Raises:
        StageError: the sink is not reachable, or another process writes to it.
    """
    if sink.current_export_id() != export.export_id:
        for number, part in enumerate(export.parts):
            advance(number, len(export.parts))
            sink.write(export, part)
        sink.publish(export)
    sink.remove_previous(export)


def group_by_item(part: Path) -> pl.DataFrame:
    """Read a part as one row per item: `item_id` and `neighbors`, a list as in responses, without titles."""
    neighbor = pl.struct(pl.col("neighbor_id").alias("item_id"), pl.exclude("item_id", "neighbor_id"))
    rows = pl.read_parquet(part)
    return rows.group_by("item_id", maintain_order=True).agg(neighbor.alias("neighbors"))


def require_writable(folder: Path, name: str) -> None:
    """Check that a folder can be written or created.

    Raises:
        InputError: it cannot; the message contains `name`.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        raise InputError(f"export.to must be in a folder with write permission. Received: {name}.")
