"""Release formats: names of the files in a release, and how each older version differs from the current one.

All other modules use the names of the current version. `docs/reference/release-format.md` describes the format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from recsys.config.senses import Sense

FORMAT_VERSION = 6

MANIFEST = "manifest.json"
CATALOG = "catalog.parquet"
EMBEDDINGS = "embeddings.npy"
NEIGHBORS = "neighbors.npy"
TOWER = "tower.keras"
FEATURES = "features.json"
EVALUATION = "evaluation.json"
CALIBRATION = "calibration.json"
ITEM_USERS = "item_users.npy"
FOLLOWERS = "followers.npy"
SHARED_FILES = (CATALOG, EVALUATION, ITEM_USERS, FOLLOWERS)
"""Files of a release beside its manifest and its spaces."""
SPACE_FILES = (EMBEDDINGS, NEIGHBORS, TOWER, FEATURES, CALIBRATION)
"""Files of an embedding space beside those of its index."""

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
    single_space: bool = True
    """Whether the release has one embedding space, `next`, whose files are not in a folder of their own."""

    def file(self, name: str, space: Sense | None = None) -> str:
        """Return the name that a file has in this version, relative to the folder of the release.

        Args:
            name: current name.
            space: embedding space that the file belongs to, if any.
        """
        return f"{self.folder(space)}{self.old_files.get(name, name)}"

    def folder(self, space: Sense | None) -> str:
        """Return the prefix of the files of an embedding space."""
        return "" if space is None or self.single_space else f"{space}/"

    def upgrade(self, manifest: Fields) -> dict[str, Any]:
        """Return the manifest with the current field names, and with defaults for fields that it does not have."""
        new_names = {old: new for new, old in self.old_fields.items()}
        fields = {**self.defaults(manifest), **{new_names.get(name, name): value for name, value in manifest.items()}}
        if self.single_space:
            space = {name: fields.pop(name) for name in SPACE_FIELDS if name in fields}
            fields["spaces"] = {"next": space}
        return fields


SPACE_FIELDS = ("index", "search_k", "index_recall", "recency")
"""Manifest fields of an embedding space."""
_BRITISH_FILES = {CATALOG: "catalogue.parquet", ITEM_USERS: "audience.npy"}
_BRITISH_FIELDS = {"catalog_fingerprint": "catalogue_fingerprint"}


def _one_index_file(manifest: Fields) -> Fields:
    return {"index": [{"file": "index.ann", "start": 0, "stop": manifest.get("num_items")}]}


FORMATS = {
    1: Format(
        absent_files=(CALIBRATION, ITEM_USERS, FOLLOWERS, NEIGHBORS),
        old_files=_BRITISH_FILES,
        old_fields=_BRITISH_FIELDS,
        defaults=lambda manifest: {"distance": "cosine", "recency": None, **_one_index_file(manifest)},
    ),
    2: Format(
        absent_files=(ITEM_USERS, FOLLOWERS, NEIGHBORS),
        old_files=_BRITISH_FILES,
        old_fields=_BRITISH_FIELDS,
        defaults=_one_index_file,
    ),
    3: Format(absent_files=(FOLLOWERS, NEIGHBORS), old_files=_BRITISH_FILES, old_fields=_BRITISH_FIELDS),
    4: Format(absent_files=(FOLLOWERS, NEIGHBORS)),
    5: Format(absent_files=(NEIGHBORS,), single_space=False),
    FORMAT_VERSION: Format(single_space=False),
}
"""Every version that can be loaded."""
