"""Upload releases to a folder or an object store, and fetch them from a URL into a local cache.

Object stores have no rename, so the manifest is uploaded last: a release without a manifest is incomplete. A fetched
release is verified before it gets its name in the cache.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from recsys.data import storage
from recsys.data.storage import Location, RemoteLocation
from recsys.errors import ReleaseError
from recsys.release.formats import MANIFEST
from recsys.release.manifest import read_manifest
from recsys.release.writer import rename_release

if TYPE_CHECKING:
    from recsys.release.bundle import Release

FILE_NAME = re.compile(r"((similar|next)/)?(?!\.)[\w.-]+")
"""Names of files in a release, relative to its folder."""

CACHE = "RECSYS_CACHE"
"""Environment variable with the cache folder of fetched releases. By default it is in the user's cache folder."""


def upload(release: Release, to: str) -> str:
    """Copy a release to a folder or a URL of releases, and return its location.

    Files of an interrupted upload, without a manifest, are replaced. Complete releases are never replaced.

    Raises:
        ReleaseError: the location has another release with this id.
        InputError: the store cannot be reached, or denies access.
    """
    location = storage.locate(to) / release.release_id
    manifest = location / MANIFEST
    if manifest.exists():
        if _file_entries(manifest) != release.manifest.model_dump()["files"]:
            raise ReleaseError(
                f"{location.display_name} must not be overwritten. Received: release {release.release_id} with other "
                "files than the one there. Name another location in data.releases, or remove that release."
            )
        return location.display_name
    for name in release.manifest.files:
        (location / name).copy_from(release.path / name)
    manifest.copy_from(release.path / MANIFEST)
    return location.display_name


def load(source: str) -> Release:
    """Load and verify the release at a folder or a URL.

    Raises:
        ReleaseError: the release is missing or invalid.
        InputError: the store cannot be reached, or denies access.
    """
    from recsys.release.bundle import Release  # noqa: PLC0415 - the supervisor of a service only fetches

    return Release.load(fetch(source))


def fetch(source: str) -> Path:
    """Return the local folder of a release: the folder itself, or a verified copy of the release at a URL.

    Raises:
        ReleaseError: the release at the URL is missing or invalid.
        InputError: the store cannot be reached, or denies access.
    """
    location = storage.locate(source)
    return _fetch_release(location) if isinstance(location, RemoteLocation) else location.path


def _fetch_release(location: RemoteLocation) -> Path:
    """Return the cached copy. Its name is a hash of the manifest, so a new release at the same URL is fetched again."""
    from recsys.release.bundle import Release  # noqa: PLC0415 - as above

    manifest = location / MANIFEST
    if not manifest.exists():
        raise ReleaseError(f"release must be a folder with a {MANIFEST}. Received: {location.display_name}.")
    cache = _cache()
    cache.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=cache))
    try:
        _download(manifest, temporary / MANIFEST)
        final = cache / storage.sha256(temporary / MANIFEST)[:16]
        if final.exists():
            return final
        try:
            files = read_manifest(temporary).files
            for name, entry in files.items():
                _check_size(location, name, entry.bytes)
            for name in files:
                (temporary / name).parent.mkdir(exist_ok=True)
                _download(location / name, temporary / name)
            Release.load(temporary)
        except ReleaseError as error:
            raise ReleaseError(f"{location.display_name} is not usable: {error}") from None
        return rename_release(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_size(location: RemoteLocation, name: str, size: int) -> None:
    """Reject a file of the wrong size before it is downloaded."""
    if not FILE_NAME.fullmatch(name):  # a manifest must not choose where files are written
        raise ReleaseError(
            "file names in the manifest must be plain names, below the folder of an embedding space or none. "
            f"Received: {name}."
        )
    file = location / name
    received = file.size() if file.exists() else "no such file"
    if received != size:
        raise ReleaseError(f"bytes of {name} must be {size}. Received: {received}. Upload the release again.")


def _download(location: Location, path: Path) -> None:
    with location.open() as source, path.open("wb") as file:
        shutil.copyfileobj(source, file, storage.BLOCK_BYTES)


def _file_entries(manifest: Location) -> object:
    """Return the `files` of a manifest, None if it cannot be read."""
    try:
        with manifest.open() as file:
            return json.load(file)["files"]
    except (ValueError, KeyError, TypeError):
        return None


def _cache() -> Path:
    folder = os.environ.get(CACHE)
    if folder:
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recsys" / "releases"
