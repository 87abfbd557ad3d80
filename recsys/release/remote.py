"""Releases by URL: put beside one another in an object store, and fetched from there.

In a store there is no rename, so a release is there when its manifest is: it is put last. What is fetched gets its
name on this machine when it has been verified, and is found there the next time.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from recsys.data import storage
from recsys.data.storage import Location, RemoteLocation
from recsys.errors import ReleaseError
from recsys.release import bundle as releases
from recsys.release.bundle import Release, read_manifest
from recsys.release.formats import MANIFEST

CACHE = "RECSYS_CACHE"
"""Variable that names the folder of what was fetched; by default it is below the user's own cache."""


def put(release: Release, to: str) -> str:
    """Copy a release to a folder or a URL of releases, and return where it is.

    What a process that was killed left there without a manifest is replaced. A whole release never is.

    Raises:
        ReleaseError: another release of this id is there.
        InputError: the store is away, or refuses.
    """
    location = storage.locate(to) / release.release_id
    manifest = location / MANIFEST
    if manifest.exists():
        if _files(manifest) != release.manifest.model_dump()["files"]:
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
    """The release of a folder or a URL, verified.

    Raises:
        ReleaseError: it does not verify.
        InputError: the store is away, or refuses.
    """
    return Release.load(local(source))


def local(source: str) -> Path:
    """The folder of a release on this machine: itself, or a copy of what a URL names, fetched once and verified.

    Raises:
        ReleaseError: what is at the URL is no release, or does not verify.
        InputError: the store is away, or refuses.
    """
    location = storage.locate(source)
    return _fetched(location) if isinstance(location, RemoteLocation) else location.path


def _fetched(location: RemoteLocation) -> Path:
    """The copy of a release. It is named by its manifest, so another release at the same URL is another copy."""
    manifest = location / MANIFEST
    if not manifest.exists():
        raise ReleaseError(f"release must be a folder with a {MANIFEST}. Received: {location.display_name}.")
    cache = _cache()
    cache.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=cache))
    try:
        _fetch(manifest, temporary / MANIFEST)
        final = cache / storage.sha256(temporary / MANIFEST)[:16]
        if final.exists():
            return final
        try:
            files = read_manifest(temporary).files
            for name, entry in files.items():
                _check(location, name, entry.bytes)
            for name in files:
                _fetch(location / name, temporary / name)
            Release.load(temporary)
        except ReleaseError as error:
            raise ReleaseError(f"{location.display_name} is not usable: {error}") from None
        return releases.publish(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check(location: RemoteLocation, name: str, size: int) -> None:
    """Refuse a file before it is fetched."""
    if name in {"", ".."} or Path(name).name != name:  # a manifest from outside must not choose where we write
        raise ReleaseError(f"the manifest must name files beside it. Received: {name}.")
    file = location / name
    there = file.size() if file.exists() else "no such file"
    if there != size:
        raise ReleaseError(f"bytes of {name} must be {size}. Received: {there}. Put the release there again.")


def _fetch(location: Location, path: Path) -> None:
    with location.open() as source, path.open("wb") as file:
        shutil.copyfileobj(source, file, storage.BLOCK_BYTES)


def _files(manifest: Location) -> object:
    """What a manifest says of its files; None of one that cannot be read."""
    try:
        with manifest.open() as file:
            return json.load(file)["files"]
    except (ValueError, KeyError, TypeError):
        return None


def _cache() -> Path:
    given = os.environ.get(CACHE)
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recsys" / "releases"
