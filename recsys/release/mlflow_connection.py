"""Connection to an MLflow tracking server or database. Every exception of MLflow is raised as a `TrackingError`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from recsys.config.urls import Address
from recsys.errors import RecsysError, TrackingError

# MLflow's defaults would retry for up to an hour
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # standard output is reserved for results

import mlflow


def connect(uri: str) -> mlflow.MlflowClient:
    """Return a client, after creating the database if the URI is an SQLite file that does not exist.

    Raises:
        TrackingError: MLflow cannot be reached.
    """
    with tracking_errors(uri):
        if uri.startswith("sqlite:///"):
            create_database(Path(uri.removeprefix("sqlite:///")))
        mlflow.set_tracking_uri(uri)  # for code of MLflow that resolves `runs:/` URLs
        return mlflow.MlflowClient(uri)


def create_database(database: Path) -> None:
    """Create MLflow's tables in a temporary file and rename it: MLflow cannot use a partly created database."""
    if database.exists():
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    folder = database.with_name(f".tmp-{database.name}")
    with FileLock(database.with_name(f".{database.name}.lock")):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if not database.exists():  # another process may have created it
            created = folder / database.name
            mlflow.MlflowClient(f"sqlite:///{created}").search_experiments(max_results=1)
            created.rename(database)
        folder.rmdir()


@contextmanager
def tracking_errors(uri: str) -> Iterator[None]:
    """Raise every unexpected exception as a `TrackingError` that names the URI without its password."""
    try:
        yield
    except RecsysError:
        raise
    except Exception as error:  # noqa: BLE001 - databases and artifact stores raise their own errors
        address = Address(uri)
        raise TrackingError(
            f"MLflow at {address.shown} must answer. Received: {address.without_secret(str(error))}. "
            "Check tracking.uri, or start the server."
        ) from None  # the original message may contain the password
