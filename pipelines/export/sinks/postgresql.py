"""Sink for tables in a PostgreSQL database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import polars as pl
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pipelines.export.answers import Answer
from pipelines.export.sinks.base import Export
from pipelines.export.sinks.sql import Tables
from recsys.config.urls import Address
from recsys.errors import StageError

CONNECT_S = 10
LOCK = 0x72656373797300
"""Key of the advisory lock of the writing transaction, an arbitrary number."""


class PostgresqlSink:
    """Writes and publishes all rows in one transaction, so a killed process leaves no rows."""

    def __init__(self, address: Address, answer: Answer) -> None:
        self.tables = Tables(answer)
        self.address = address
        self._writing = False

    def current_export_id(self) -> str | None:
        """Return the export id in the table of the current export."""
        with self._translated_errors():
            (table,) = self._connection.execute("SELECT to_regclass(%s)", [self.tables.current]).fetchone() or (None,)
            if table is None:
                return None
            row = self._connection.execute(f"SELECT export_id FROM {self.tables.current}").fetchone()  # noqa: S608
            return None if row is None else str(row[0])

    def write(self, export: Export, part: Path) -> None:
        """Copy the rows in bulk."""
        rows = pl.read_parquet(part).select(pl.lit(export.export_id), *self.tables.columns)
        copy = f"COPY {self.tables.rows} (export_id, {', '.join(self.tables.columns)}) FROM STDIN (FORMAT csv)"
        with self._translated_errors():
            if not self._writing:
                self._begin(export)
            with self._connection.cursor().copy(copy) as stream:
                # quotes distinguish empty strings from nulls
                stream.write(rows.write_csv(include_header=False, quote_style="non_numeric"))

    def publish(self, export: Export) -> None:
        """Make the export the current one, and commit."""
        with self._translated_errors():
            self._connection.execute(self.tables.publish("%s"), list(export.metadata.values()))
            self._connection.execute("COMMIT")
            self._writing = False

    def remove_previous(self, export: Export) -> None:
        """Delete the rows of other exports."""
        # two ranges of the primary key; <> would scan all rows
        delete = f"DELETE FROM {self.tables.rows} WHERE export_id < %s OR export_id > %s"  # noqa: S608
        with self._translated_errors():
            self._connection.execute(delete, [export.export_id] * 2)

    def close(self) -> None:
        """Close the connection, which rolls back an open transaction."""
        if "_connection" in self.__dict__:
            self._connection.close()

    @cached_property
    def _connection(self) -> psycopg.Connection:
        parameters = conninfo_to_dict(self.address.url)
        timeout = parameters.get("connect_timeout", CONNECT_S)
        url = make_conninfo(self.address.url, connect_timeout=timeout, client_encoding="utf8")
        return psycopg.connect(url, autocommit=True)

    def _begin(self, export: Export) -> None:
        self._connection.execute("BEGIN")
        self._writing = True
        (acquired,) = self._connection.execute("SELECT pg_try_advisory_xact_lock(%s)", [LOCK]).fetchone() or (False,)
        if not acquired:
            raise StageError(
                f"Another process is already exporting neighbors to {self.address.shown}. Retry when it has finished."
            )
        (table,) = self._connection.execute("SELECT to_regclass(%s)", [self.tables.current]).fetchone() or (None,)
        if table is None:  # IF NOT EXISTS would need the CREATE privilege even if the tables exist
            for statement in (self.tables.create_rows, self.tables.create_current, self.tables.create_view):
                self._connection.execute(statement)
        self._connection.execute(f"DELETE FROM {self.tables.rows} WHERE export_id = %s", [export.export_id])  # noqa: S608

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            text = self.address.without_secret(str(error))
            raise StageError(
                f"neighbors cannot be written to PostgreSQL at {self.address.shown}. Received: {text}. "
                "Check export.to, or start the server."
            ) from None  # the original message can contain the password
