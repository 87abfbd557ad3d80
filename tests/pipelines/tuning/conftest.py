"""A clock and an empty MLflow database for tunings."""

from __future__ import annotations

from pathlib import Path

import pytest

from recsys.config.loading import parse_config
from recsys.release.mlflow_registry import Tracker


class Time:
    """A clock that moves only when a pass is done."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Time:
    return Time()


@pytest.fixture(scope="module")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes seconds to make the tables of a database."""
    folder = tmp_path_factory.mktemp("mlflow")
    settings = parse_config({"data": {"interactions": "log.csv", "workspace": str(folder)}})
    assert Tracker(settings).champion() is None
    return folder / "mlflow.db"
