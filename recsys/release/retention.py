"""What of a workspace may go: release folders and run folders that nothing needs any more.

MLflow keeps its own copy of each release; that one is not touched, so what is pruned here can be fetched again.
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
from recsys.release.bundle import read_manifest
from recsys.release.runs import LOCK

TIMEOUT_S = 10
LEAVING = ".leaving-"


class Plan(NamedTuple):
    """What is kept and why, and what would go."""

    kept: dict[str, str]
    """Release id -> why."""
    releases: list[Path]
    """Release folders to delete."""
    runs: list[Path]
    """Run folders to delete."""


def plan(workspace: Path, needed: Mapping[str, str], newest: int) -> Plan:
    """Decide for every release and run of a workspace. Nothing is deleted.

    Args:
        workspace: folder with `releases` and `runs`.
        needed: releases that are kept whatever their age, and why.
        newest: so many of the newest releases, and of the newest runs, are kept too.
    """
    created = {}
    for folder in (workspace / "releases").glob("[!.]*"):
        try:
            created[folder.name] = read_manifest(folder).created_at
        except ReleaseError:
            continue  # we do not know what it is, so it is not ours to delete
    by_age = sorted(created, key=lambda name: (created[name], name), reverse=True)
    kept = dict.fromkeys(by_age[:newest], f"one of the newest {newest}")
    kept |= {name: why for name, why in needed.items() if name in created}
    runs = sorted((workspace / "runs").glob("[!.]*"), key=lambda folder: (_touched(folder), folder.name), reverse=True)
    return Plan(
        kept,
        [workspace / "releases" / name for name in reversed(by_age) if name not in kept],
        [folder for folder in reversed(runs[newest:]) if folder.name not in kept and folder.name not in needed],
    )


def prune(workspace: Path, found: Plan) -> list[Path]:
    """Delete what a plan of a workspace names; the folders that are gone. A run that a process works on stays."""
    gone = []
    for leftover in (workspace / "releases").glob(f"{LEAVING}*"):  # of a process that was killed
        shutil.rmtree(leftover)
    for folder in found.runs:
        try:
            held = FileLock(folder / LOCK).acquire(timeout=0)
        except Timeout:
            continue
        with held:
            shutil.rmtree(folder)
        gone.append(folder)
    for folder in found.releases:
        # under a name that nobody lists: half a release never stands under its own
        leaving = folder.with_name(f"{LEAVING}{folder.name}")
        folder.rename(leaving)
        shutil.rmtree(leaving)
        gone.append(folder)
    return gone


def served(server: str) -> str:
    """The release that a server says it answers from.

    Raises:
        InputError: it does not say.
    """
    url = f"{server.rstrip('/')}/v1/release"
    if not url.startswith(("http://", "https://")):
        raise InputError(f"a server must be given as http://HOST:PORT. Received: {server}.")
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:  # noqa: S310 - http and https alone
            return str(json.load(answer)["release_id"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"server {server} must say which release it serves: nothing is deleted that it may need. "
            f"Received: {error!r}. Start it, or leave it out if it is gone."
        ) from None


def _touched(folder: Path) -> int:
    """When a run was last worked on: a stage that is finished touches the folder."""
    return folder.stat().st_mtime_ns
