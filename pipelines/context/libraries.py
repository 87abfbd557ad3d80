"""What TensorFlow, Beam and MLflow write to the terminal."""

from __future__ import annotations

import logging
import os


def quiet_libraries() -> None:
    """Silence messages that are meant for developers of the libraries; call it before importing TensorFlow."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # no log level silences its notice
    for name in ("apache_beam", "mlflow.store.db.utils"):  # they log the traceback of errors that we report
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for name in ("alembic", "tensorflow", "absl"):
        logging.getLogger(name).setLevel(logging.ERROR)
