"""Item changes since a release was built, in one SQLite file that all workers of a machine share.

A change is acknowledged when it is on disk. Before each result, every worker checks SQLite's `data_version`, which
takes a few microseconds, so its next result contains the change whichever worker wrote it. The file has one change
per item; a new one replaces it.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recsys.config.senses import Sense
from recsys.errors import StageError

ITEM_CHANGES_FILE = "item_changes.db"
BUSY_TIMEOUT_S = 5.0
"""Longest wait for another process that writes."""
HIDDEN_RETENTION_S = 365 * 86_400.0
"""Time for which a hidden item is stored although no loaded release contains it: an older release may return."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS changes (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    item_id TEXT NOT NULL UNIQUE,
    changed_at REAL NOT NULL,
    hidden INTEGER NOT NULL,
    columns TEXT NOT NULL,
    features TEXT,
    vector BLOB,
    release_id TEXT,
    similar_vector BLOB
);
CREATE TABLE IF NOT EXISTS compactions (count INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS readers (pid INTEGER PRIMARY KEY, releases TEXT NOT NULL);
INSERT INTO compactions SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM compactions);
"""
ADDED_COLUMN = "similar_vector"
"""Column that files of earlier versions do not have. `vector` is the embedding in the space `next` in every version."""
COLUMNS = "item_id, changed_at, hidden, columns, features, vector, release_id, similar_vector"


class Position(NamedTuple):
    """Position of a reader in the changes."""

    compactions: int
    """Number of compactions when it was read."""
    sequence: int
    """Sequence number of the last change read."""


START = Position(-1, 0)


@dataclass(frozen=True)
class ItemChange:
    """The differences of one item from a release."""

    item_id: str
    changed_at: float
    """Time of the change, in seconds since 1970."""
    hidden: bool = False
    """Whether the item is hidden from all results."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Catalog column, `title` or `available` -> new value."""
    features: Mapping[str, Any] | None = None
    """The features that vectors were computed from, if any was."""
    vectors: Mapping[Sense, NDArray[np.float32]] = field(default_factory=dict)
    """Embedding space -> the embedding of the item, float32 [dimension]."""
    release_id: str | None = None
    """The release whose embeddings the vectors are comparable with."""


class Changes(NamedTuple):
    """The changes that a reader has not read yet."""

    position: Position
    """The position after reading them."""
    is_complete: bool
    """Whether these are all changes of the file, because a compaction may have deleted changes read before."""
    changes: list[ItemChange]


class ItemChanges:
    """The item changes of one file.

    Raises:
        StageError: from every method, if the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write_lock, self._read_lock = threading.Lock(), threading.Lock()
        with self._translate_errors():
            self._writer = self._connect()
            self._writer.executescript(SCHEMA)
            self._reader = self._connect()
            self._watcher = self._connect()
        self._add_column()

    def close(self) -> None:
        """Close the file."""
        for connection in (self._watcher, self._reader, self._writer):
            connection.close()

    def version(self) -> int:
        """Return a number that differs after each change by any process. Call it from one thread only."""
        try:  # before every response: a context manager would double the time
            # data_version counts the writes of other connections, and this connection never writes
            version: int = self._watcher.execute("PRAGMA data_version").fetchone()[0]
        except sqlite3.Error as error:
            raise self._error(error) from None
        return version

    def __len__(self) -> int:
        with self._translate_errors(), self._read_lock:
            return int(self._reader.execute("SELECT count(*) FROM changes").fetchone()[0])

    @property
    def num_bytes(self) -> int:
        """Size on disk, in bytes."""
        files = (self._path, self._path.with_name(f"{self._path.name}-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    def write(self, change: ItemChange) -> None:
        """Store the change of an item, replacing the previous one. Returns when it is on disk."""
        features = None if change.features is None else json.dumps(dict(change.features))
        vectors = {space: vector.astype("<f4").tobytes() for space, vector in change.vectors.items()}
        row = (
            change.item_id,
            change.changed_at,
            int(change.hidden),
            json.dumps(dict(change.columns)),
            features,
            vectors.get("next"),
            change.release_id,
            vectors.get("similar"),
        )
        with self._transaction() as connection:
            connection.execute(f"INSERT OR REPLACE INTO changes ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)  # noqa: S608

    def read_since(self, position: Position) -> Changes:
        """Return the changes after a position, or all changes if there was a compaction since."""
        with self._translate_errors(), self._read_lock:
            connection = self._reader
            connection.execute("BEGIN")
            try:
                (compactions,) = connection.execute("SELECT count FROM compactions").fetchone()
                is_complete = compactions != position.compactions
                after = 0 if is_complete else position.sequence
                rows = connection.execute(
                    f"SELECT sequence, {COLUMNS} FROM changes WHERE sequence > ? ORDER BY sequence",  # noqa: S608
                    (after,),
                ).fetchall()
            finally:
                connection.execute("COMMIT")
        last = rows[-1][0] if rows else after
        return Changes(Position(compactions, last), is_complete, [_change_from_row(row[1:]) for row in rows])

    def register_releases(self, release_ids: list[str]) -> None:
        """Record the releases that this process has loaded. A compaction keeps the changes that they need."""
        with self._transaction() as connection:
            row = (os.getpid(), json.dumps(release_ids))
            connection.execute("INSERT OR REPLACE INTO readers VALUES (?, ?)", row)

    def compact(self, release_ids: list[str], is_contained: Callable[[ItemChange], bool]) -> int:
        """Delete the changes that all loaded releases contain, and return their number.

        Args:
            release_ids: releases that this process has loaded. Nothing is deleted if another process has loaded others.
            is_contained: returns whether all of them contain a change.
        """
        oldest = time.time() - HIDDEN_RETENTION_S
        with self._transaction() as connection:
            for pid, releases in connection.execute("SELECT pid, releases FROM readers").fetchall():
                if not _is_running(pid):
                    connection.execute("DELETE FROM readers WHERE pid = ?", (pid,))
                elif not set(json.loads(releases)) <= set(release_ids):
                    return 0
            rows = connection.execute(f"SELECT sequence, {COLUMNS} FROM changes").fetchall()  # noqa: S608
            changes = [(sequence, _change_from_row(row)) for sequence, *row in rows]
            contained = [
                (sequence,)
                for sequence, change in changes
                if is_contained(change) and (not change.hidden or change.changed_at < oldest)
            ]
            if contained:
                connection.executemany("DELETE FROM changes WHERE sequence = ?", contained)
                connection.execute("UPDATE compactions SET count = count + 1")
        return len(contained)

    def _add_column(self) -> None:
        """Add the column that a file of an earlier version does not have."""
        with self._transaction() as connection:
            names = {name for _, name, *_ in connection.execute("PRAGMA table_info(changes)").fetchall()}
            if ADDED_COLUMN not in names:
                connection.execute(f"ALTER TABLE changes ADD COLUMN {ADDED_COLUMN} BLOB")

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._translate_errors(), self._write_lock:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._error(error) from None

    def _error(self, error: sqlite3.Error) -> StageError:
        return StageError(f"the file of item changes {self._path} must be readable and writable. Received: {error}.")


def _change_from_row(row: Sequence[Any]) -> ItemChange:
    """Return the change of a row of `COLUMNS`."""
    item_id, changed_at, hidden, columns, features, next_vector, release_id, similar_vector = row
    vectors: dict[Sense, bytes | None] = {"similar": similar_vector, "next": next_vector}
    return ItemChange(
        item_id,
        changed_at,
        bool(hidden),
        json.loads(columns),
        None if features is None else json.loads(features),
        {space: np.frombuffer(vector, "<f4") for space, vector in vectors.items() if vector is not None},
        release_id,
    )


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
