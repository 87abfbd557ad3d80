"""Versions of the registered model, and the names of their aliases and tags in MLflow."""

from __future__ import annotations

from dataclasses import dataclass

CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"
"""Aliases."""
RUN_TAG, RELEASE_TAG, SNAPSHOT_TAG = "recsys.run_id", "recsys.release_id", "recsys.data_snapshot"
VERDICT_TAG, PIN_TAG = "recsys.gate", "recsys.pinned"
EVENT_TAG, CHECKS_TAG = "recsys.event", "recsys.event_checks"


@dataclass(frozen=True)
class Version:
    """A version of the registered model."""

    number: str
    release_id: str
    source: str
    """URL at which MLflow keeps the release folder."""
