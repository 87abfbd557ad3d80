"""The input files of a run: interactions, items, labeled pairs, item groups, and the release of a warm start."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pipelines.context.input_units import find_files
from pipelines.context.item_groups import read_groups
from recsys.config.sections import DataConfig
from recsys.errors import ConfigError, InputError, ReleaseError
from recsys.release import remote
from recsys.release.formats import MANIFEST
from recsys.release.manifest import read_manifest


@dataclass(frozen=True)
class InputFiles:
    """Paths or URLs of the input files, by role."""

    interactions: list[str]
    items: list[str] = field(default_factory=list)
    labeled_pairs: list[str] = field(default_factory=list)
    warm_start: list[str] = field(default_factory=list)
    """Manifest of the release of a warm start."""
    alike: list[str] = field(default_factory=list)
    """Groups of items that belong together."""

    @classmethod
    def find(cls, config: DataConfig) -> InputFiles:
        """Find the files of the settings in `[data]`.

        Raises:
            ConfigError: `data.interactions` is not set, or a URL cannot be used.
            InputError: files are missing, `data.alike` is invalid, or `data.warm_start` is not a release.
        """
        if config.interactions is None:
            raise ConfigError(
                "data.interactions must be set: a path, a glob or a URL of the log. Received: nothing. "
                "Set it in the config, or by --set data.interactions=PATH."
            )
        if config.alike is not None:
            read_groups(config.alike)  # an invalid file must fail before the work
        return cls(
            find_files(config.interactions, "data.interactions"),
            find_files(config.items, "data.items") if config.items else [],
            find_files(config.labeled_pairs, "data.labeled_pairs") if config.labeled_pairs else [],
            [str(_manifest_path(config.warm_start))] if config.warm_start is not None else [],
            [config.alike] if config.alike is not None else [],
        )

    def by_role(self) -> dict[str, list[str]]:
        """Return the files by role, in the order in which the data snapshot reads them."""
        roles = {"interactions": self.interactions, "items": self.items, "labeled_pairs": self.labeled_pairs}
        optional = {"warm_start": self.warm_start, "alike": self.alike}
        return roles | {role: files for role, files in optional.items() if files}


def _manifest_path(release: str) -> Path:
    """Return the manifest of a release, which lists all other files of the release.

    Raises:
        InputError: it is not a release.
    """
    try:
        folder = remote.fetch(release)
        read_manifest(folder)
    except ReleaseError as error:
        raise InputError(f"data.warm_start must be the folder of a release: {error}") from None
    return folder / MANIFEST
