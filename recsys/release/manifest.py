"""Manifest of a release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from recsys.config.senses import Sense
from recsys.config.table import DistanceName
from recsys.errors import ReleaseError
from recsys.index.shards import Shard
from recsys.release.formats import FORMAT_VERSION, FORMATS, MANIFEST


class FileEntry(BaseModel):
    """One file of a release."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    sha256: str


class SpaceEntry(BaseModel):
    """One embedding space of a release."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: tuple[Shard, ...]
    """Files of the index, ordered by item number."""
    search_k: int
    """Nodes that a query inspects in each file of the index, tuned to reach the recall."""
    index_recall: float
    """Share of the exact nearest `recall_k` that the index returns at `search_k`."""
    neighbors_recall: float | None = None
    """Share of the exact nearest items of an item that its row of the neighbor table contains; 1 if the table was
    computed by exact search, null without a table (formats 1 to 5)."""
    recency: float | None
    """Weight of an item of a history relative to the next newer item, chosen on validation; null if not chosen."""


class Manifest(BaseModel):
    """Contents of a release: how it was built, and the size and hash of each file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int
    release_id: str
    created_at: str
    """ISO 8601, UTC."""
    num_items: int
    dimension: int
    metric: str
    """Annoy's name of the distance."""
    distance: DistanceName
    """Distance of embeddings."""
    n_trees: int
    seed: int
    n_jobs: int
    recall_k: int
    """Number of nearest neighbors whose recall is measured."""
    spaces: dict[Sense, SpaceEntry]
    """Embedding spaces by sense. A sense without its own space is answered by the space `next`."""
    catalog_fingerprint: str
    data_snapshot: str
    """SHA-256 over the input files."""
    code_version: str
    parent_release: str | None
    """The champion when this release was built."""
    mlflow_run: str | None
    config: dict[str, Any]
    """Settings that determine the release."""
    files: dict[str, FileEntry]

    @field_validator("spaces")
    @classmethod
    def _contain_next(cls, spaces: dict[Sense, SpaceEntry]) -> dict[Sense, SpaceEntry]:
        if "next" not in spaces:
            raise ValueError(f"spaces must contain next. Received: {', '.join(spaces) or 'none'}.")
        return spaces


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of a release folder, of any supported format version.

    Raises:
        ReleaseError: the manifest is missing, invalid or of an unsupported version.
    """
    try:
        saved = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        version = saved["format_version"]
    except FileNotFoundError:
        raise ReleaseError(f"release must be a folder with a {MANIFEST}. Received: {path}.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReleaseError(f"{path / MANIFEST} must be the manifest of a release. Received: {error!r}.") from None
    if version not in FORMATS:
        newer = isinstance(version, int) and version > FORMAT_VERSION
        remedy = "Update recsys to read it." if newer else "Build the release again."
        raise ReleaseError(
            f"release {path} must have a format version from 1 to {FORMAT_VERSION}. Received: {version!r}. {remedy}"
        )
    try:
        return Manifest.model_validate(FORMATS[version].upgrade(saved))
    except ValidationError as error:
        raise ReleaseError(f"{path / MANIFEST} must be the manifest of a release. Received: {error}") from None
