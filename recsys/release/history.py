"""History of the champion: which release replaced which, when, by whom and why. Events are only ever appended.

MLflow keeps no history of an alias. Each event is a line of a file in the workspace, and a run in MLflow
(`recsys.release.mlflow_registry`); either copy is enough to restore it.
"""

from __future__ import annotations

import getpass
import json
import os
import secrets
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

FILE = "history.jsonl"

Action = Literal["promote", "rollback"]

OLD_FIELDS = {"why": "reason", "when": "time", "who": "user"}
"""Names of fields in events written before release format 4."""


@dataclass(frozen=True)
class Event:
    """One change of the champion."""

    action: Action
    before: str | None
    """Release id of the replaced champion, None for the first champion."""
    after: str
    """Release id of the new champion."""
    reason: str
    checks: Sequence[Mapping[str, Any]]
    """Gate checks of the new champion, as `recsys.release.check.Check.to_dict`."""
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))
    """ISO 8601, UTC."""
    user: str = field(default_factory=lambda: f"{_user_name()}@{socket.gethostname()}")
    event_id: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def failed(self) -> list[str]:
        """Names of the failed checks, if the release was promoted by force."""
        return [check["name"] for check in self.checks if check["verdict"] == "failed"]

    def to_dict(self) -> dict[str, Any]:
        """Return the event for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Event:
        """Restore an event from the output of `to_dict`.

        Raises:
            TypeError: a field is missing or unknown.
        """
        return cls(**{OLD_FIELDS.get(name, name): value for name, value in saved.items()})


def append(workspace: Path, event: Event) -> None:
    """Append an event to the history of a workspace, and flush it to the disk."""
    path = workspace / FILE
    with path.open("ab+") as file:
        if file.tell() and not _ends_with_newline(path):  # the last writer was killed in the middle of a line
            file.write(b"\n")
        file.write(json.dumps(event.to_dict()).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read(workspace: Path) -> list[Event]:
    """Return the events of a workspace, oldest first. Incomplete lines are skipped."""
    try:
        lines = (workspace / FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    events = []
    for line in lines:
        try:
            events.append(Event.from_dict(json.loads(line)))
        except (ValueError, TypeError, AttributeError):
            continue
    return events


def merge(*sources: Iterable[Event]) -> list[Event]:
    """Return the events of several sources, each once, oldest first."""
    by_id = {event.event_id: event for events in sources for event in events}
    return sorted(by_id.values(), key=lambda event: (event.time, event.event_id))


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):  # a container user without a name
        return str(os.getuid())
