"""Tables and statements for exported neighbors in SQL databases; see `docs/how-to/export.md`.

The statements are valid in SQLite and in PostgreSQL. Table names are constants, values are bound parameters.
"""

from __future__ import annotations

from typing import Final

ROWS, CURRENT, VIEW = "recsys_neighbors_by_export", "recsys_neighbors_current", "recsys_neighbors"

COLUMNS: Final = ("item_id", "rank", "neighbor_id", "similarity", "probability")
METADATA: Final = ("export_id", "release_id", "k", "items", "rows")

CREATE_ROWS = f"""CREATE TABLE {ROWS} (
    export_id TEXT NOT NULL,
    item_id TEXT NOT NULL,
    rank INTEGER NOT NULL,
    neighbor_id TEXT NOT NULL,
    similarity DOUBLE PRECISION NOT NULL,
    probability DOUBLE PRECISION,
    PRIMARY KEY (export_id, item_id, rank)
)"""
CREATE_CURRENT = f"""CREATE TABLE {CURRENT} (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    export_id TEXT NOT NULL,
    release_id TEXT NOT NULL,
    k INTEGER NOT NULL,
    items BIGINT NOT NULL,
    rows BIGINT NOT NULL
)"""
CREATE_VIEW = (
    f"CREATE VIEW {VIEW} AS SELECT {', '.join(COLUMNS)} FROM {ROWS} "  # noqa: S608 - no value from outside
    f"WHERE export_id = (SELECT export_id FROM {CURRENT})"
)


def publish_statement(placeholder: str) -> str:
    """Return the statement that publishes an export; its parameters are the values of `Export.metadata`."""
    values = ", ".join([placeholder] * len(METADATA))
    updates = ", ".join(f"{column} = excluded.{column}" for column in METADATA)
    return (
        f"INSERT INTO {CURRENT} (one, {', '.join(METADATA)}) VALUES (1, {values}) "  # noqa: S608
        f"ON CONFLICT (one) DO UPDATE SET {updates}"
    )
