"""Tables and statements for exported neighbors in SQL databases; see `docs/how-to/export.md`.

The statements are valid in SQLite and in PostgreSQL. Table names are constants, values are bound parameters.
"""

from __future__ import annotations

from typing import Final

import polars as pl

from pipelines.export.answers import Answer

METADATA: Final = ("export_id", "release_id", "k", "items", "rows")
TYPES: Final = {pl.String: "TEXT", pl.Int32: "INTEGER", pl.Float64: "DOUBLE PRECISION"}
NULLABLE: Final = ("probability",)


class Tables:
    """The tables and the view of an answer."""

    def __init__(self, answer: Answer) -> None:
        self.view = f"recsys_{answer.name}"
        self.rows = f"{self.view}_by_export"
        self.current = f"{self.view}_current"
        self.columns = answer.columns
        self._schema = answer.schema

    @property
    def create_rows(self) -> str:
        """Statement that creates the table of the rows."""
        columns = [
            f"{name} {TYPES[dtype]}{'' if name in NULLABLE else ' NOT NULL'}" for name, dtype in self._schema.items()
        ]
        columns = ["export_id TEXT NOT NULL", *columns, "PRIMARY KEY (export_id, item_id, rank)"]
        return f"CREATE TABLE {self.rows} ({', '.join(columns)})"

    @property
    def create_current(self) -> str:
        """Statement that creates the table of the current export."""
        return f"""CREATE TABLE {self.current} (
            one INTEGER PRIMARY KEY CHECK (one = 1),
            export_id TEXT NOT NULL,
            release_id TEXT NOT NULL,
            k INTEGER NOT NULL,
            items BIGINT NOT NULL,
            rows BIGINT NOT NULL
        )"""

    @property
    def create_view(self) -> str:
        """Statement that creates the view of the rows of the current export."""
        return (
            f"CREATE VIEW {self.view} AS SELECT {', '.join(self.columns)} FROM {self.rows} "  # noqa: S608 - no value from outside
            f"WHERE export_id = (SELECT export_id FROM {self.current})"
        )

    def publish(self, placeholder: str) -> str:
        """Return the statement that publishes an export; its parameters are the values of `Export.metadata`."""
        values = ", ".join([placeholder] * len(METADATA))
        updates = ", ".join(f"{column} = excluded.{column}" for column in METADATA)
        return (
            f"INSERT INTO {self.current} (one, {', '.join(METADATA)}) VALUES (1, {values}) "  # noqa: S608
            f"ON CONFLICT (one) DO UPDATE SET {updates}"
        )
