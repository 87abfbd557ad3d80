"""The interface of a sink for exported neighbors, and the order of its calls.

Rows are written where no reader sees them, then one step makes them visible to all readers, and the previous rows are
removed last. So a reader sees one complete export or the next, whenever the process is killed.
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
    """The neighbors of all items of a release, searched with one configuration."""

    export_id: str
    """The release id, a dash, and a hash of release, settings and code: equal ids mean equal rows."""
    release_id: str
    k: int
    items: int
    """Number of items with neighbors."""
    rows: int
    """Number of neighbors of all items."""
    parts: tuple[Path, ...]
    """Parquet files of `recsys.retrieval.bulk.SCHEMA`; the rows of an item are adjacent, in one file."""

    @property
    def metadata(self) -> dict[str, str | int]:
        """What a sink stores besides the rows."""
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
        StageError: from every method, if a server is not reachable or rejects a statement.
        InputError: from every method, if an object store is not reachable or rejects a request.
    """

    def current_export_id(self) -> str | None:
        """Return the id of the export that readers see, None before the first. Changes nothing."""

    def write(self, export: Export, part: Path) -> None:
        """Write the rows of a part, invisible to readers. After a kill, writing starts again with the first part."""

    def publish(self, export: Export) -> None:
        """Make this export the one that readers see, in one step."""

    def remove_previous(self, export: Export) -> None:
        """Remove the rows of all other exports, after this one was published."""

    def close(self) -> None:
        """Release resources and remove rows that were not published."""


def deliver(export: Export, sink: Sink, advance: Advance) -> None:
    """Write an export to a sink, in place of the previous one.

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
    """Return a part as one row per item: `item_id` and `neighbors`, a list as in the service, without titles."""
    neighbor = pl.struct(pl.col("neighbor_id").alias("item_id"), "similarity", "rank", "probability")
    rows = pl.read_parquet(part)
    return rows.group_by("item_id", maintain_order=True).agg(neighbor.alias("neighbors"))


def require_writable(folder: Path, name: str) -> None:
    """Raise if a folder cannot be written or created.

    Raises:
        InputError: the folder, and what to do.
    """
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        raise InputError(f"export.to must be in a folder with write permission. Received: {name}.")
