"""Retention: delete release folders and run folders of a workspace that are no longer needed.

MLflow keeps its own copy of each registered release, which is not deleted, so a pruned release can be fetched again.
"""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from recsys.errors import InputError, ReleaseError
from recsys.release.manifest import read_manifest
from recsys.release.runs import LOCK

TIMEOUT_S = 10
DELETING = ".deleting-"
"""Prefix of a release folder while it is deleted."""


class Plan(NamedTuple):
    """Releases to keep, and folders to delete."""

    keep: dict[str, str]
    """Release id -> reason."""
    releases: list[Path]
    """Release folders to delete."""
    runs: list[Path]
    """Run folders to delete."""


def plan(workspace: Path, needed: Mapping[str, str], newest: int) -> Plan:
    """Decide which releases and runs of a workspace to delete. Nothing is deleted yet.

    Args:
        workspace: folder with `releases` and `runs`.
        needed: release id -> reason, for releases to keep whatever their age.
        newest: number of newest releases, and of newest runs, to keep.
    """
    created = {}
    for folder in (workspace / "releases").glob("[!.]*"):
        try:
            created[folder.name] = read_manifest(folder).created_at
        except ReleaseError:
            continue  # not a release, so it is not deleted
    by_age = sorted(created, key=lambda name: (created[name], name), reverse=True)
    keep = dict.fromkeys(by_age[:newest], f"one of the newest {newest}")
    keep |= {name: reason for name, reason in needed.items() if name in created}
    runs = sorted(
        (workspace / "runs").glob("[!.]*"), key=lambda folder: (_last_change(folder), folder.name), reverse=True
    )
    return Plan(
        keep,
        [workspace / "releases" / name for name in reversed(by_age) if name not in keep],
        [folder for folder in reversed(runs[newest:]) if folder.name not in keep and folder.name not in needed],
    )


def prune(workspace: Path, plan: Plan) -> list[Path]:
    """Delete the folders of a plan, and return them. Runs locked by another process are kept."""
    deleted = []
    for leftover in (workspace / "releases").glob(f"{DELETING}*"):  # left by a killed process
        shutil.rmtree(leftover)
    for folder in plan.runs:
        try:
            lock = FileLock(folder / LOCK).acquire(timeout=0)
        except Timeout:
            continue
        with lock:
            shutil.rmtree(folder)
        deleted.append(folder)
    for folder in plan.releases:
        # renamed first, so that a partly deleted release is never listed
        renamed = folder.with_name(f"{DELETING}{folder.name}")
        folder.rename(renamed)
        shutil.rmtree(renamed)
        deleted.append(folder)
    return deleted


def served_release(server: str) -> str:
    """Return the id of the release that a server serves.

    Raises:
        InputError: the server cannot be reached, or does not return a release id.
    """
    url = f"{server.rstrip('/')}/v1/release"
    if not url.startswith(("http://", "https://")):
        raise InputError(f"server must be a URL like http://HOST:PORT. Received: {server}.")
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:  # noqa: S310 - http and https alone
            return str(json.load(response)["release_id"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"server {server} must return the release that it serves, so that it is not deleted. Received: {error!r}. "
            "Start the server, or omit it if it no longer runs."
        ) from None


def _last_change(folder: Path) -> int:
    """Return the time of the last finished stage in nanoseconds."""
    return folder.stat().st_mtime_ns
