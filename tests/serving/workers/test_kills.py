"""Processes of the service that are killed while they write or load. No acknowledged change is lost."""

from __future__ import annotations

import itertools
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, cast

import pytest

from recsys.errors import UnknownItemError
from recsys.testing.releases import WriteRelease
from recsys.testing.service_process import Service, wait_until
from serving.client import Client, ServiceError
from serving.live.item_changes import START, ItemChange, ItemChanges

pytestmark = pytest.mark.slow

ITEMS = [f"item {number:02}" for number in range(30)]
NEW = [f"new {number:02}" for number in range(10)]
TITLES = {item_id: f"Title of {item_id}" for item_id in ITEMS}
WRITERS = 4
DIMENSION = 5

Titles = dict[str, str | None]
"""Item id -> title; None if the item is hidden or was never added."""


@pytest.fixture
def service(tmp_path: Path, write_release: WriteRelease) -> Iterator[Service]:
    """A service with two workers and the key `writer`, not started."""
    made = Service(tmp_path)
    made.set_releases(write_release(ITEMS, release_id="first"))
    made.add_key("writer", "write")
    made.configure(workers=2, keys="keys.txt")
    yield made
    made.close()


def open_client(service: Service) -> Client:
    """Open a client with the key `writer` that does not retry."""
    return Client(service.url, key=service.key("writer"), timeout_s=60, max_attempts=1)


class Writer(threading.Thread):
    """Thread that adds and hides items until the service does not respond."""

    def __init__(self, service: Service, item_ids: list[str], seed: int, acknowledged: threading.Semaphore) -> None:
        super().__init__()
        self._service = service
        self._item_ids = item_ids
        self._seed = seed
        self._acknowledged = acknowledged
        self.written: Titles = {}
        """Last acknowledged change of each item."""
        self.pending: Titles = {}
        """The change that was sent and not acknowledged."""

    def run(self) -> None:
        rng = random.Random(self._seed)  # noqa: S311 - no secret
        with open_client(self._service) as client:
            for number in itertools.count():
                item_id = rng.choice(self._item_ids)
                title = rng.choice([None, f"Put {self._seed} {number}"])
                self.pending = {item_id: title}
                try:
                    if title is None:
                        client.hide_item(item_id)
                    else:
                        client.put_item(item_id, title=title, vector=[rng.uniform(-1, 1) for _ in range(DIMENSION)])
                except ServiceError:
                    return
                self.written[item_id] = title
                self.pending = {}
                self._acknowledged.release()


def test_acknowledged_changes_survive_a_kill(service: Service) -> None:
    """The first result after the restart contains them. Changes that were not acknowledged may be lost."""
    rng = random.Random(11)  # noqa: S311 - no secret
    expected: Titles = {**TITLES, **dict.fromkeys(NEW)}
    pending: Titles = {}
    query_item, changeable = ITEMS[0], [*ITEMS[1:], *NEW]
    for kills in range(5):
        service.start()
        with open_client(service) as client:
            result = client.similar(query_item, k=100)
        titles = {neighbor.item_id: neighbor.title for neighbor in result.neighbors}
        for item_id in changeable:
            assert titles.get(item_id) in {expected[item_id], pending.get(item_id, expected[item_id])}
            expected[item_id] = titles.get(item_id)
        if kills == 4:
            break
        acknowledged = threading.Semaphore(0)
        writers = [
            Writer(service, changeable[number::WRITERS], kills * WRITERS + number, acknowledged)
            for number in range(WRITERS)
        ]
        for writer in writers:
            writer.start()
        for _ in range(rng.randint(1, 60)):
            assert acknowledged.acquire(timeout=60)
        service.kill()
        pending = {}
        for writer in writers:
            writer.join()
            expected |= writer.written
            pending |= writer.pending
    assert sum(title is None for title in expected.values()) > len(NEW), "some items are hidden"


def open_files(service: Service) -> str:
    """Return the names of all files that the workers have open or map, as lines."""
    names = []
    for pid in service.workers():
        names.append(Path(f"/proc/{pid}/maps").read_text())
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed in the meantime
                names.append(str(file.readlink()))
    return "\n".join(names)


def test_restarts_after_a_kill_while_loading(service: Service, write_release: WriteRelease) -> None:
    """It is killed while it loads a promoted release, and again while it loads that release at the start."""
    service.start()
    with open_client(service) as client:
        assert client.similar(ITEMS[0]).release_id == "first"
        client.hide_item(ITEMS[5])
    second = write_release([*ITEMS, *(f"other {number}" for number in range(60_000))], release_id="second")
    service.set_releases(second)
    wait_until(lambda: str(second) in open_files(service))
    service.kill()
    service.start()
    wait_until(lambda: f"{second}/next/embeddings.npy" in open_files(service))
    service.kill()
    service.start()
    with open_client(service) as client:
        result = client.similar(ITEMS[0], k=1_000)
        assert result.release_id == "second"
        assert ITEMS[5] not in {neighbor.item_id for neighbor in result.neighbors}
        with pytest.raises(UnknownItemError):
            client.item(ITEMS[5])


# --- the file of item changes alone

WRITERS_SCRIPT = """
import itertools, os, sys
from pathlib import Path
from serving.live.item_changes import ItemChange, ItemChanges

def write(name):
    item_changes = ItemChanges(Path(name))
    for number in itertools.count():
        item_id = f"{os.getpid()}-{number}"
        item_changes.write(ItemChange(item_id, 1.0, hidden=True))
        os.write(1, f"written {item_id}\\n".encode())

for line in sys.stdin:
    name, children = line.strip(), []
    for _ in range(2 if Path(name).exists() else 1):
        child = os.fork()
        if not child:
            write(name)
        children.append(child)
    os.write(1, f"started {' '.join(map(str, children))}\\n".encode())
    for child in children:
        os.waitpid(child, 0)
    os.write(1, b"ended\\n")
"""
"""For each line of the input, start processes that write to the file of that name until they are killed. One process
creates the file, as the supervisor does before it starts workers."""


def read_valid(path: Path) -> dict[str, ItemChange]:
    """Return the changes of a file, after an integrity check."""
    item_changes = ItemChanges(path)
    changes = {change.item_id: change for change in item_changes.read_since(START).changes}
    item_changes.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
    return changes


def test_file_keeps_acknowledged_changes_if_its_writers_are_killed(tmp_path: Path) -> None:
    """They are killed 50 times, after random numbers of changes, including none in a new file."""
    rng = random.Random(5)  # noqa: S311 - no secret
    command = [sys.executable, "-c", WRITERS_SCRIPT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        stdin, stdout = cast("IO[str]", process.stdin), cast("IO[str]", process.stdout)
        for number in range(50):
            path = tmp_path / f"item changes {number // 5}.db"
            before = set(read_valid(path)) if number % 5 else set()
            stdin.write(f"{path}\n")
            acknowledged = kill_writers(stdout, after=rng.choice([0, rng.randint(1, 30)]))
            changes = read_valid(path)
            assert before | acknowledged <= set(changes)
            assert len(changes) <= len(before | acknowledged) + 2, "each writer may have one unacknowledged change"
            assert all(change.hidden for change in changes.values())


def kill_writers(output: IO[str], after: int) -> set[str]:
    """Kill the writers after a number of acknowledged changes, and return all item ids that they acknowledged."""
    item_ids: set[str] = set()
    pids: list[int] = []
    killed = False
    for line in output:
        event, *arguments = line.split()
        if event == "ended":
            break
        if event == "written":
            item_ids.update(arguments)
        else:
            pids = [int(pid) for pid in arguments]
        if pids and len(item_ids) >= after and not killed:
            killed = True
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
    return item_ids


COMMIT_SCRIPT = """
import os, sys
from pathlib import Path
from serving.live.item_changes import ItemChange, ItemChanges

item_changes = ItemChanges(Path(sys.argv[1]))
item_changes.write(ItemChange("second", 1.0, hidden=True))
os.write(1, b"written")
os._exit(0)
"""
SYSTEM_CALLS = "pwrite64,fdatasync,fsync,ftruncate,unlink"
"""System calls by which SQLite changes files."""


def strace(*arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = ["strace", "-f", "-qq", "-o", "/dev/null", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def test_file_is_valid_after_a_kill_at_any_system_call_of_a_commit(tmp_path: Path) -> None:
    """The process is killed at the first call that changes a file, then at the second, until the commit succeeds."""
    if shutil.which("strace") is None or strace("true").returncode:
        pytest.skip("strace is not installed or not permitted")
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    committed = []
    for number in itertools.count(1):
        path = tmp_path / str(number) / "item_changes.db"
        item_changes = ItemChanges(path)
        item_changes.write(ItemChange("first", 1.0, hidden=True))
        item_changes.close()
        kill = f"inject={SYSTEM_CALLS}:signal=KILL:when={number}"
        process = strace(
            "-e", f"trace={SYSTEM_CALLS}", "-e", kill, sys.executable, "-c", COMMIT_SCRIPT, path, env=environment
        )
        item_ids = set(read_valid(path))
        assert item_ids in ({"first"}, {"first", "second"})
        assert "second" in item_ids or process.stdout != "written"
        committed.append("second" in item_ids)
        if process.stdout == "written":
            break
        assert re.search(r"-9|137", str(process.returncode)), process.stderr
    assert len(committed) > 4
    assert not committed[0]
