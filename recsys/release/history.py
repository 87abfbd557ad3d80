"""Who put which release into service, when, in place of what and why: events that are only ever added.

MLflow keeps no history of an alias. An event is a line of a file in the workspace, and a run of its own in MLflow
(`recsys.release.bundle.mlflow_registry`); either is enough to tell it.
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


@dataclass(frozen=True)
class Event:
    """One move of the champion."""

    action: Action
    before: str | None
    """Release that was in service, None at the first."""
    after: str
    """Release that is."""
    why: str
    checks: Sequence[Mapping[str, Any]]
    """What the gate said of the new one, as `recsys.checks.Check.as_data`."""
    when: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))
    """ISO 8601, UTC."""
    who: str = field(default_factory=lambda: f"{_user()}@{socket.gethostname()}")
    event_id: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def failed(self) -> list[str]:
        """Names of the checks that it did not pass: those that somebody decided to overrule."""
        return [check["name"] for check in self.checks if check["verdict"] == "failed"]

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def append(workspace: Path, event: Event) -> None:
    """Add an event to the file of a workspace, to the disk."""
    path = workspace / FILE
    with path.open("ab+") as file:
        if file.tell() and not _ends_a_line(path):  # of a process that was killed in the middle of one
            file.write(b"\n")
        file.write(json.dumps(event.as_data()).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read(workspace: Path) -> list[Event]:
    """The events of a workspace, oldest first; half a line of a killed process is none."""
    try:
        lines = (workspace / FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    events = []
    for line in lines:
        try:
            events.append(Event(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return events


def merged(*told: Iterable[Event]) -> list[Event]:
    """Events that several places tell, each once, oldest first."""
    by_id = {event.event_id: event for events in told for event in events}
    return sorted(by_id.values(), key=lambda event: (event.when, event.event_id))


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _user() -> str:
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
