"""Release formats: names of the files in a release, and how each older version differs from the current one.

All other modules use the names of the current version. `docs/reference/release-format.md` describes the format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

FORMAT_VERSION = 4

MANIFEST = "manifest.json"
CATALOG = "catalog.parquet"
EMBEDDINGS = "embeddings.npy"
TOWER = "tower.keras"
FEATURES = "features.json"
EVALUATION = "evaluation.json"
CALIBRATION = "calibration.json"
ITEM_USERS = "item_users.npy"
FILES = (CATALOG, EMBEDDINGS, TOWER, FEATURES, EVALUATION, CALIBRATION, ITEM_USERS)
"""Files of a release beside its manifest and the files of its index."""

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """How one version names what the current version holds."""

    absent_files: tuple[str, ...] = ()
    """Files that this version does not have, by their current names."""
    old_files: Mapping[str, str] = field(default_factory=dict)
    """Current name of a file -> its name in this version."""
    old_fields: Mapping[str, str] = field(default_factory=dict)
    """Current name of a manifest field -> its name in this version."""
    defaults: Callable[[Fields], Fields] = lambda _: {}
    """Manifest -> values of the fields that this version does not have."""

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files in this version, without the manifest and the index."""
        return tuple(self.file(name) for name in FILES if name not in self.absent_files)

    def file(self, name: str) -> str:
        """Return the name that a file has in this version.

        Args:
            name: current name.
        """
        return self.old_files.get(name, name)

    def upgrade(self, manifest: Fields) -> dict[str, Any]:
        """Return the manifest with the current field names, and with defaults for fields that it does not have."""
        new_names = {old: new for new, old in self.old_fields.items()}
        return {**self.defaults(manifest), **{new_names.get(name, name): value for name, value in manifest.items()}}


_BRITISH_FILES = {CATALOG: "catalogue.parquet", ITEM_USERS: "audience.npy"}
_BRITISH_FIELDS = {"catalog_fingerprint": "catalogue_fingerprint"}


def _one_index_file(manifest: Fields) -> Fields:
    return {"index": [{"file": "index.ann", "start": 0, "stop": manifest.get("num_items")}]}


FORMATS = {
    1: Format(
        absent_files=(CALIBRATION, ITEM_USERS),
        old_files=_BRITISH_FILES,
        old_fields=_BRITISH_FIELDS,
        defaults=lambda manifest: {"distance": "cosine", "recency": None, **_one_index_file(manifest)},
    ),
    2: Format(
        absent_files=(ITEM_USERS,), old_files=_BRITISH_FILES, old_fields=_BRITISH_FIELDS, defaults=_one_index_file
    ),
    3: Format(old_files=_BRITISH_FILES, old_fields=_BRITISH_FIELDS),
    FORMAT_VERSION: Format(),
}
"""Every version that can be loaded."""
