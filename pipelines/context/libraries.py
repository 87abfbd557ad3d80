"""Log messages of TensorFlow, Beam and MLflow."""

from __future__ import annotations

import logging
import os


def quiet_libraries() -> None:
    """Silence messages for developers of the libraries. Call this before TensorFlow is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # its notice ignores the log level
    for name in ("apache_beam", "mlflow.store.db.utils"):  # they log tracebacks of errors that are reported anyway
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for name in ("alembic", "tensorflow", "absl"):
        logging.getLogger(name).setLevel(logging.ERROR)
