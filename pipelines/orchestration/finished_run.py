"""The summary of a finished run, so that the same run again ends before its stages and MLflow are imported."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from recsys.config.sections import Config
from recsys.data.storage import atomic_write
from recsys.release import aliases
from recsys.release.formats import MANIFEST
from recsys.release.runs import Run
from recsys.release.versions import CHAMPION

FILE = "finished.json"


def save(config: Config, run: Run, summary: dict[str, Any]) -> None:
    """Store the summary of a run whose release was promoted, and of which MLflow has everything."""
    with atomic_write(run.folder / FILE) as draft:
        draft.write_text(json.dumps({"settings": _settings(config), "summary": summary}) + "\n", encoding="utf-8")


def find(config: Config, run: Run) -> dict[str, Any] | None:
    """Return the stored summary if the run has nothing to do, otherwise None.

    It has if its release is not on this machine or is not known to be the champion, or if settings have changed that
    do not shape the release but what happens to it.
    """
    try:
        saved = json.loads((run.folder / FILE).read_text(encoding="utf-8"))
        settings, summary = saved["settings"], saved["summary"]
    except (OSError, ValueError, KeyError, TypeError):  # not finished, or a file of another version
        return None
    release = config.workspace / "releases" / run.run_id / MANIFEST
    is_current = settings == _settings(config) and release.exists()
    return summary if is_current and aliases.read_release_id(config, CHAMPION) == run.run_id else None


def _settings(config: Config) -> str:
    """Return a hash of the settings on which the end of a run depends; a URI may contain a password."""
    tables = [config.promote.model_dump_json(), config.tracking.model_dump_json(), config.data.releases]
    return hashlib.sha256(json.dumps([*tables, str(config.workspace.resolve())]).encode()).hexdigest()
