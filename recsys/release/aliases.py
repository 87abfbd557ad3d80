"""The releases with an alias in MLflow, found without MLflow where possible: to import it takes seconds.

If the tracking URI is an SQLite file and the release is on this machine, the tables of the model registry are read.
In every other case, MLflow is asked.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from recsys.config.sections import Config
from recsys.release.formats import MANIFEST
from recsys.release.versions import RELEASE_TAG

SQLITE = "sqlite:///"
QUERY = """
SELECT tag.value
FROM registered_model_aliases AS alias
JOIN model_version_tags AS tag ON tag.name = alias.name AND tag.version = alias.version
WHERE alias.name = ? AND alias.alias = ? AND tag.key = ?
"""


def fetch(config: Config, alias: str) -> Path | None:
    """Return the folder of the release with an alias, after downloading it if necessary; None if no release has it.

    Raises:
        TrackingError: MLflow does not answer.
        ReleaseError: the download is not the release that the alias names.
    """
    releases = config.workspace / "releases"
    release_id = read_release_id(config, alias)
    if release_id is not None and (releases / release_id / MANIFEST).exists():
        return releases / release_id
    from recsys.release.mlflow_registry import Tracker  # noqa: PLC0415 - imports MLflow

    tracker = Tracker(config)
    version = tracker.version_with(alias)
    return None if version is None else tracker.fetch(version, releases)


def read_release_id(config: Config, alias: str) -> str | None:
    """Return the id of the release with an alias if an SQLite file names exactly one; None does not mean that none is.

    With workspaces of MLflow, models of several workspaces may have the name.
    """
    if not config.tracking_uri.startswith(SQLITE):
        return None
    file = f"file:{quote(config.tracking_uri.removeprefix(SQLITE))}?mode=ro"
    try:
        with closing(sqlite3.connect(file, uri=True)) as database:
            rows = database.execute(QUERY, (config.tracking.model, alias, RELEASE_TAG)).fetchall()
    except sqlite3.Error:  # MLflow says what is wrong, or uses other tables
        return None
    return str(rows[0][0]) if len(rows) == 1 else None
