"""Write release folders: under a temporary name, the manifest last, then renamed."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from recsys.data.storage import sha256
from recsys.release.formats import FORMAT_VERSION, MANIFEST
from recsys.release.manifest import FileEntry, Manifest


def write_release(sources: dict[str, Path], manifest: dict[str, Any], releases: Path) -> Path:
    """Copy files into a new release folder below `releases`, and return the folder.

    A folder with the final name is complete, because it is renamed last. It is kept.

    Args:
        sources: name in the release -> path, for each file beside the manifest.
        manifest: all fields except `format_version` and `files`.
        releases: parent folder of all releases.
    """
    final = releases / str(manifest["release_id"])
    if final.exists():
        return final
    prefix = f".tmp-{manifest['release_id']}-"
    for leftover in releases.glob(f"{prefix}*"):  # left by a killed process
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = releases / f"{prefix}{secrets.token_hex(4)}"
    temporary.mkdir(parents=True)
    try:
        entries = {}
        for name, source in sources.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source, temporary / name)
            _flush(temporary / name)
            entries[name] = FileEntry(bytes=(temporary / name).stat().st_size, sha256=sha256(temporary / name))
        complete = Manifest(format_version=FORMAT_VERSION, files=entries, **manifest)
        (temporary / MANIFEST).write_text(complete.model_dump_json(indent=2) + "\n", encoding="utf-8")
        _flush(temporary / MANIFEST)
        for folder in {(temporary / name).parent for name in (MANIFEST, *sources)}:
            _flush(folder)
        return rename_release(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def rename_release(temporary: Path, final: Path) -> Path:
    """Give a complete folder its final name. If another process did so first, its folder is kept."""
    try:
        temporary.rename(final)
    except OSError:
        if not (final / MANIFEST).exists():
            raise
    _flush(final.parent)
    return final


def _flush(path: Path) -> None:
    """Flush a file or a folder to the disk, so that after a crash a renamed folder is complete."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
