"""What every place that neighbors go to can do, and the order in which it is asked to.

Rows are written where no reader looks, then one step lets all readers see them, and what they saw before is
removed last. So a reader sees one export or the next, whole, wherever this is killed.
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
    """The neighbors of one release under one choice of settings."""

    export_id: str
    """The release id, a dash, and a hash of release, settings and code: the same id is the same rows."""
    release_id: str
    k: int
    items: int
    """Items with neighbors."""
    rows: int
    """Neighbors of all of them."""
    parts: tuple[Path, ...]
    """Parquet files of `recsys.retrieval.bulk.SCHEMA`; the rows of an item lie together in one."""

    @property
    def about(self) -> dict[str, str | int]:
        """What a sink keeps of it beside the rows."""
        return {
            "export_id": self.export_id,
            "release_id": self.release_id,
            "k": self.k,
            "items": self.items,
            "rows": self.rows,
        }


class Sink(Protocol):
    """A place that neighbors go to.

    Raises:
        StageError: from every method, where a server is away or refuses.
        InputError: likewise, of a store.
    """

    def current(self) -> str | None:
        """Id of the export that readers see; None before the first. Leaves no trace."""

    def write(self, export: Export, part: Path) -> None:
        """Take the rows of a part, which no reader sees yet. After a kill they are written again from the first."""

    def switch(self, export: Export) -> None:
        """Let all readers see this export from now on, and no other."""

    def clean(self, export: Export) -> None:
        """Remove the rows of all other exports, after a `switch` to this one."""

    def close(self) -> None:
        """Let go, and take back what was written and not switched to."""


def deliver(export: Export, sink: Sink, advance: Advance) -> None:
    """Put an export in the place of the one before.

    Raises:
        StageError: the sink is away, or another process writes to it.
    """
    if sink.current() != export.export_id:
        for done, part in enumerate(export.parts):
            advance(done, len(export.parts))
            sink.write(export, part)
        sink.switch(export)
    sink.clean(export)


def by_item(part: Path) -> pl.DataFrame:
    """The rows of a part, one an item: `item_id` and `neighbors`, a list as the service answers, but for titles."""
    neighbor = pl.struct(pl.col("neighbor_id").alias("item_id"), "similarity", "rank", "probability")
    rows = pl.read_parquet(part)
    return rows.group_by("item_id", maintain_order=True).agg(neighbor.alias("neighbors"))


def require_writable(folder: Path, name: str) -> None:
    """Refuse a folder that cannot be written, or made.

    Raises:
        InputError: which, and why.
    """
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        raise InputError(f"neighbors.to must lie in a folder that we may write to. Received: {name}.")
