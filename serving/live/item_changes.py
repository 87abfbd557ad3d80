"""What was changed between two nights, in one SQLite file that all workers of a machine share.

A change is acknowledged when it is on the disk. Every worker looks at SQLite's `data_version`, some microseconds,
before it answers, so its next answer knows of the change whoever wrote it. There is one entry an item: what was said
last holds.
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

from recsys.errors import StageError

JOURNAL = "journal.db"
BUSY_S = 5.0
"""Longest wait for another process that writes."""
TAKE_DOWN_S = 365 * 86_400.0
"""So long a take-down is kept that no release needs any more: an older release may come back."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    item_id TEXT NOT NULL UNIQUE,
    at REAL NOT NULL,
    hidden INTEGER NOT NULL,
    changes TEXT NOT NULL,
    features TEXT,
    vector BLOB,
    release_id TEXT
);
CREATE TABLE IF NOT EXISTS drops (times INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS readers (pid INTEGER PRIMARY KEY, releases TEXT NOT NULL);
INSERT INTO drops SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM drops);
"""
COLUMNS = "item_id, at, hidden, changes, features, vector, release_id"


class Position(NamedTuple):
    """How much of a journal was read."""

    drops: int
    """How often entries were dropped."""
    seq: int
    """Of the last entry."""


NOWHERE = Position(-1, 0)


@dataclass(frozen=True)
class Entry:
    """What differs of one item from what a release says."""

    item_id: str
    at: float
    """When it was written, seconds since 1970."""
    hidden: bool = False
    """Taken down."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """Column of the catalog, also `title` and `available` -> value."""
    features: Mapping[str, Any] | None = None
    """What the item's place was made of, if it was made of features."""
    vector: NDArray[np.float32] | None = None
    """The item's place, float32 [dimension]."""
    release_id: str | None = None
    """The release in whose space the vector is."""


class Changes(NamedTuple):
    """What a reader has not read yet."""

    position: Position
    anew: bool
    """Whether these are all there are, because entries that were read may be dropped."""
    entries: list[Entry]


class Journal:
    """The entries of one file.

    Raises:
        StageError: from every method, where the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._writing_lock, self._reading_lock = threading.Lock(), threading.Lock()
        with self._told():
            self._writer = self._connect()
            self._writer.executescript(SCHEMA)
            self._reader = self._connect()
            self._watcher = self._connect()

    def close(self) -> None:
        """Close the file."""
        for connection in (self._watcher, self._reader, self._writer):
            connection.close()

    def version(self) -> int:
        """Another number after each change, whichever process made it. For one thread."""
        with self._told():
            # a connection sees what others wrote, and this one writes nothing
            return int(self._watcher.execute("PRAGMA data_version").fetchone()[0])

    def __len__(self) -> int:
        with self._told(), self._reading_lock:
            return int(self._reader.execute("SELECT count(*) FROM entries").fetchone()[0])

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        files = (self._path, self._path.with_name(f"{self._path.name}-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    def write(self, entry: Entry) -> None:
        """Say something about an item, in the place of what was said before. Returns when it is on the disk."""
        features = None if entry.features is None else json.dumps(dict(entry.features))
        vector = None if entry.vector is None else entry.vector.astype("<f4").tobytes()
        row = json.dumps(dict(entry.row))
        values = (entry.item_id, entry.at, int(entry.hidden), row, features, vector, entry.release_id)
        with self._writing() as connection:
            connection.execute(f"INSERT OR REPLACE INTO entries ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", values)  # noqa: S608

    def since(self, position: Position) -> Changes:
        """What a reader at a position has not read: the entries after it, or all where some were dropped."""
        with self._told(), self._reading_lock:
            connection = self._reader
            connection.execute("BEGIN")
            try:
                (drops,) = connection.execute("SELECT times FROM drops").fetchone()
                anew = drops != position.drops
                after = 0 if anew else position.seq
                rows = connection.execute(
                    f"SELECT seq, {COLUMNS} FROM entries WHERE seq > ? ORDER BY seq",  # noqa: S608
                    (after,),
                ).fetchall()
            finally:
                connection.execute("COMMIT")
        return Changes(Position(drops, rows[-1][0] if rows else after), anew, [_entry(row[1:]) for row in rows])

    def reading(self, releases: list[str]) -> None:
        """Say which releases this process answers from: what they need is not dropped."""
        with self._writing() as connection:
            connection.execute("INSERT OR REPLACE INTO readers VALUES (?, ?)", (os.getpid(), json.dumps(releases)))

    def settle(self, releases: list[str], contained: Callable[[Entry], bool]) -> int:
        """Drop the entries that are contained in all releases that any process answers from; how many these were.

        Args:
            releases: those that this process answers from. Where another process has others, nothing is dropped.
            contained: whether all of them contain an entry.
        """
        oldest = time.time() - TAKE_DOWN_S
        with self._writing() as connection:
            for pid, of_reader in connection.execute("SELECT pid, releases FROM readers").fetchall():
                if not _alive(pid):
                    connection.execute("DELETE FROM readers WHERE pid = ?", (pid,))
                elif not set(json.loads(of_reader)) <= set(releases):
                    return 0
            rows = connection.execute(f"SELECT seq, {COLUMNS} FROM entries").fetchall()  # noqa: S608
            entries = [(seq, _entry(row)) for seq, *row in rows]
            dropped = [(seq,) for seq, entry in entries if contained(entry) and (not entry.hidden or entry.at < oldest)]
            if dropped:
                connection.executemany("DELETE FROM entries WHERE seq = ?", dropped)
                connection.execute("UPDATE drops SET times = times + 1")
        return len(dropped)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._told(), self._writing_lock:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StageError(f"the journal {self._path} must be ours to write. Received: {error}.") from None


def _entry(row: Sequence[Any]) -> Entry:
    """The entry of a row of `COLUMNS`."""
    item_id, at, hidden, changes, features, vector, release_id = row
    return Entry(
        item_id,
        at,
        bool(hidden),
        json.loads(changes),
        None if features is None else json.loads(features),
        None if vector is None else np.frombuffer(vector, "<f4"),
        release_id,
    )


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
