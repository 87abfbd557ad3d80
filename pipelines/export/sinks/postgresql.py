"""Neighbors in a PostgreSQL database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import polars as pl
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pipelines.export.sinks.base import Export
from pipelines.export.sinks.sql import COLUMNS, CREATE_CURRENT, CREATE_ROWS, CREATE_VIEW, CURRENT, ROWS, switch
from recsys.config.urls import Address
from recsys.errors import StageError

CONNECT_S = 10
LOCK = 0x72656373797300
"""Of the one that writes, for the time of its transaction; any number that nobody else takes."""


class Postgresql:
    """All rows and the switch are one transaction, so a kill leaves nothing."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._writing = False

    def current(self) -> str | None:
        """From the table of one row."""
        with self._told():
            (known,) = self._connection.execute("SELECT to_regclass(%s)", [CURRENT]).fetchone() or (None,)
            if known is None:
                return None
            row = self._connection.execute(f"SELECT export_id FROM {CURRENT}").fetchone()  # noqa: S608
            return None if row is None else str(row[0])

    def write(self, export: Export, part: Path) -> None:
        """Copy the rows in bulk."""
        rows = pl.read_parquet(part).select(pl.lit(export.export_id), *COLUMNS)
        copy = f"COPY {ROWS} (export_id, {', '.join(COLUMNS)}) FROM STDIN (FORMAT csv)"
        with self._told():
            if not self._writing:
                self._begin(export)
            with self._connection.cursor().copy(copy) as stream:
                # text in quotation marks and null without: so that empty text stays text
                stream.write(rows.write_csv(include_header=False, quote_style="non_numeric"))

    def switch(self, export: Export) -> None:
        """Replace the one row, and commit."""
        with self._told():
            self._connection.execute(switch("%s"), list(export.about.values()))
            self._connection.execute("COMMIT")
            self._writing = False

    def clean(self, export: Export) -> None:
        """Remove the rows of other exports."""
        # not <>, which would read every row to find none
        others = f"DELETE FROM {ROWS} WHERE export_id < %s OR export_id > %s"  # noqa: S608
        with self._told():
            self._connection.execute(others, [export.export_id] * 2)

    def close(self) -> None:
        """A transaction that did not come to its end goes with the connection."""
        if "_connection" in self.__dict__:
            self._connection.close()

    @cached_property
    def _connection(self) -> psycopg.Connection:
        given = conninfo_to_dict(self.address.url)
        waits = given.get("connect_timeout", CONNECT_S)
        url = make_conninfo(self.address.url, connect_timeout=waits, client_encoding="utf8")
        return psycopg.connect(url, autocommit=True)

    def _begin(self, export: Export) -> None:
        self._connection.execute("BEGIN")
        self._writing = True
        (mine,) = self._connection.execute("SELECT pg_try_advisory_xact_lock(%s)", [LOCK]).fetchone() or (False,)
        if not mine:
            raise StageError(
                f"{self.address.shown} must be written by one process at a time. Received: another one is at it. "
                "Wait for it."
            )
        (known,) = self._connection.execute("SELECT to_regclass(%s)", [CURRENT]).fetchone() or (None,)
        if known is None:  # not by IF NOT EXISTS, which needs the right to create even where all is there
            for statement in (CREATE_ROWS, CREATE_CURRENT, CREATE_VIEW):
                self._connection.execute(statement)
        self._connection.execute(f"DELETE FROM {ROWS} WHERE export_id = %s", [export.export_id])  # noqa: S608

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            text = self.address.without_secret(str(error))
            raise StageError(
                f"PostgreSQL at {self.address.shown} must take the neighbors. Received: {text}. "
                "Check neighbors.to, or start the server."
            ) from None  # its own text may hold the password
