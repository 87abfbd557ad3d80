"""Neighbors in an SQLite file, which may hold other tables too."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import polars as pl

from pipelines.export.sinks.base import Export, require_writable
from pipelines.export.sinks.sql import COLUMNS, CREATE_CURRENT, CREATE_ROWS, CREATE_VIEW, CURRENT, ROWS, switch
from recsys.config.loading import SQLITE
from recsys.config.urls import Address
from recsys.errors import ConfigError, StageError

WAIT_S = 60.0
"""How long another process may hold the file."""
REMOVED = 100_000
"""Rows removed in one transaction: readers wait that long at most."""


class Sqlite:
    """Each part is one transaction, so that readers hardly wait.

    Raises:
        ConfigError: the URL names no file.
        InputError: we may not write there.
    """

    def __init__(self, address: Address) -> None:
        name = address.url.removeprefix(SQLITE)
        if not address.url.startswith(SQLITE) or not name:
            raise ConfigError(f"neighbors.to must name a file, {SQLITE}FILE. Received: {address.shown}.")
        self.path = Path(name)
        require_writable(self.path.parent, str(self.path))

    def current(self) -> str | None:
        """From the table of one row."""
        if not self.path.exists():
            return None
        with self._told():
            known = self._connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", [CURRENT]).fetchone()
            if known is None:
                return None
            row = self._connection.execute(f"SELECT export_id FROM {CURRENT}").fetchone()  # noqa: S608
            return None if row is None else str(row[0])

    def write(self, export: Export, part: Path) -> None:
        """Upsert the rows."""
        columns = ", ".join(("export_id", *COLUMNS))
        insert = f"INSERT OR REPLACE INTO {ROWS} ({columns}) VALUES (?, ?, ?, ?, ?, ?)"  # noqa: S608
        rows = pl.read_parquet(part).select(pl.lit(export.export_id), *COLUMNS).iter_rows()
        with self._transaction() as connection:
            if connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", [CURRENT]).fetchone() is None:
                for statement in (f"{CREATE_ROWS} WITHOUT ROWID", CREATE_CURRENT, CREATE_VIEW):
                    connection.execute(statement)
            connection.executemany(insert, rows)

    def switch(self, export: Export) -> None:
        """Replace the one row, if all is there."""
        with self._transaction() as connection:
            count = f"SELECT count(*) FROM {ROWS} WHERE export_id = ?"  # noqa: S608
            (there,) = connection.execute(count, [export.export_id]).fetchone()
            if there != export.rows:
                raise StageError(
                    f"{self.path} must be written by one process at a time. Received: {there} of {export.rows} rows "
                    "were there after the last was written. Run it again."
                )
            connection.execute(switch("?"), list(export.about.values()))

    def clean(self, export: Export) -> None:
        """Remove a chunk at a time."""
        key = "export_id, item_id, rank"
        # not <>, which would read every row to find none
        others = f"SELECT {key} FROM {ROWS} WHERE export_id < ? OR export_id > ? LIMIT {REMOVED}"  # noqa: S608
        removed = REMOVED
        while removed == REMOVED:
            with self._transaction() as connection:
                ids = [export.export_id] * 2
                removed = connection.execute(f"DELETE FROM {ROWS} WHERE ({key}) IN ({others})", ids).rowcount  # noqa: S608

    def close(self) -> None:
        """Rows that were not switched to stay unseen, and go with the next export."""
        if "_connection" in self.__dict__:
            self._connection.close()

    @cached_property
    def _connection(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return sqlite3.connect(self.path, timeout=WAIT_S, isolation_level=None)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._told():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.rollback()
                raise
            self._connection.commit()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StageError(
                f"SQLite must take the neighbors into {self.path}. Received: {error}. Check neighbors.to."
            ) from None
