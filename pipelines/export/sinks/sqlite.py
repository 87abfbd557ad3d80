"""Sink for tables in an SQLite file, which may contain other tables."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import polars as pl

from pipelines.export.answers import Answer
from pipelines.export.sinks.base import Export, require_writable
from pipelines.export.sinks.sql import Tables
from recsys.config.loading import SQLITE
from recsys.config.urls import Address
from recsys.errors import ConfigError, StageError

WAIT_S = 60.0
"""Maximum seconds to wait for the lock of another process."""
DELETE_ROWS = 100_000
"""Maximum number of rows removed per transaction; limits the time that readers wait."""


class SqliteSink:
    """Writes each part in its own transaction, so readers wait only briefly.

    Raises:
        ConfigError: the URL does not contain a file.
        InputError: the folder cannot be written.
    """

    def __init__(self, address: Address, answer: Answer) -> None:
        self.tables = Tables(answer)
        name = address.url.removeprefix(SQLITE)
        if not address.url.startswith(SQLITE) or not name:
            raise ConfigError(f"export.to must name a file, {SQLITE}FILE. Received: {address.shown}.")
        self.path = Path(name)
        require_writable(self.path.parent, str(self.path))

    def current_export_id(self) -> str | None:
        """Return the export id in the table of the current export."""
        if not self.path.exists():
            return None
        with self._translated_errors():
            exists = self._connection.execute(
                "SELECT 1 FROM sqlite_master WHERE name = ?", [self.tables.current]
            ).fetchone()
            if exists is None:
                return None
            row = self._connection.execute(f"SELECT export_id FROM {self.tables.current}").fetchone()  # noqa: S608
            return None if row is None else str(row[0])

    def write(self, export: Export, part: Path) -> None:
        """Insert or replace the rows."""
        tables = self.tables
        columns = ("export_id", *tables.columns)
        values = ", ".join("?" * len(columns))
        insert = f"INSERT OR REPLACE INTO {tables.rows} ({', '.join(columns)}) VALUES ({values})"  # noqa: S608
        rows = pl.read_parquet(part).select(pl.lit(export.export_id), *tables.columns).iter_rows()
        with self._transaction() as connection:
            if connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", [tables.current]).fetchone() is None:
                for statement in (f"{tables.create_rows} WITHOUT ROWID", tables.create_current, tables.create_view):
                    connection.execute(statement)
            connection.executemany(insert, rows)

    def publish(self, export: Export) -> None:
        """Make the export the current one if all its rows were written."""
        with self._transaction() as connection:
            count = f"SELECT count(*) FROM {self.tables.rows} WHERE export_id = ?"  # noqa: S608
            (num_rows,) = connection.execute(count, [export.export_id]).fetchone()
            if num_rows != export.rows:
                raise StageError(
                    f"{self.path} must be written by one process at a time. Received: {num_rows} of {export.rows} "
                    "rows after writing all parts. Retry when the other process has finished."
                )
            connection.execute(self.tables.publish("?"), list(export.metadata.values()))

    def remove_previous(self, export: Export) -> None:
        """Delete the rows of other exports in chunks."""
        key, table = "export_id, item_id, rank", self.tables.rows
        # two ranges of the primary key; <> would scan all rows
        other_rows = f"SELECT {key} FROM {table} WHERE export_id < ? OR export_id > ? LIMIT {DELETE_ROWS}"  # noqa: S608
        num_deleted = DELETE_ROWS
        while num_deleted == DELETE_ROWS:
            with self._transaction() as connection:
                ids = [export.export_id] * 2
                num_deleted = connection.execute(f"DELETE FROM {table} WHERE ({key}) IN ({other_rows})", ids).rowcount  # noqa: S608

    def close(self) -> None:
        """Close the connection; unpublished rows are invisible, and the next export removes them."""
        if "_connection" in self.__dict__:
            self._connection.close()

    @cached_property
    def _connection(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return sqlite3.connect(self.path, timeout=WAIT_S, isolation_level=None)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._translated_errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.rollback()
                raise
            self._connection.commit()

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StageError(
                f"neighbors cannot be written to the SQLite file {self.path}. Received: {error}. Check export.to."
            ) from None
