"""Killed while it writes, while it loads, and inside a commit: what was acknowledged is there. Real processes."""

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
from recsys.testing.service_process import Service, until
from serving.client import Client, ServiceError
from serving.live.item_changes import START, ItemChange, ItemChanges

pytestmark = pytest.mark.slow

ITEMS = [f"item {number:02}" for number in range(30)]
NEW = [f"new {number:02}" for number in range(10)]
TITLES = {item_id: f"Title of {item_id}" for item_id in ITEMS}
WRITERS = 4
DIMENSION = 5

Titles = dict[str, str | None]
"""Item -> its title; None where it was taken down, or never put."""


@pytest.fixture
def service(tmp_path: Path, write_release: WriteRelease) -> Iterator[Service]:
    """Two workers and a key that may write. Not started."""
    made = Service(tmp_path)
    made.want(write_release(ITEMS, release_id="first"))
    made.let_in("writer", "write")
    made.set(workers=2, keys="keys.txt")
    yield made
    made.close()


def client(service: Service) -> Client:
    """Of the key that may write; what is not answered is not asked again."""
    return Client(service.url, key=service.key("writer"), timeout_s=60, max_attempts=1)


class Writer(threading.Thread):
    """Puts items and takes them down until nobody answers."""

    def __init__(self, service: Service, item_ids: list[str], seed: int, acknowledged: threading.Semaphore) -> None:
        super().__init__()
        self._service = service
        self._item_ids = item_ids
        self._seed = seed
        self._acknowledged = acknowledged
        self.said: Titles = {}
        """What was acknowledged last of each item."""
        self.open: Titles = {}
        """What was sent and not acknowledged."""

    def run(self) -> None:
        rng = random.Random(self._seed)  # noqa: S311 - no secret
        with client(self._service) as opened:
            for number in itertools.count():
                item_id = rng.choice(self._item_ids)
                title = rng.choice([None, f"Put {self._seed} {number}"])
                self.open = {item_id: title}
                try:
                    if title is None:
                        opened.hide_item(item_id)
                    else:
                        opened.put_item(item_id, title=title, vector=[rng.uniform(-1, 1) for _ in range(DIMENSION)])
                except ServiceError:
                    return
                self.said[item_id] = title
                self.open = {}
                self._acknowledged.release()


def test_killed_while_it_writes_it_loses_nothing_that_was_acknowledged(service: Service) -> None:
    """The first answer after it knows all; of what was sent and not acknowledged, either."""
    rng = random.Random(11)  # noqa: S311 - no secret
    expected: Titles = {**TITLES, **dict.fromkeys(NEW)}
    unsure: Titles = {}
    asked, changeable = ITEMS[0], [*ITEMS[1:], *NEW]
    for kills in range(5):
        service.start()
        with client(service) as caller:
            answer = caller.similar(asked, k=100)
        shown = {neighbor.item_id: neighbor.title for neighbor in answer.neighbors}
        for item_id in changeable:
            assert shown.get(item_id) in {expected[item_id], unsure.get(item_id, expected[item_id])}
            expected[item_id] = shown.get(item_id)
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
        unsure = {}
        for writer in writers:
            writer.join()
            expected |= writer.said
            unsure |= writer.open
    assert sum(title is None for title in expected.values()) > len(NEW), "some were taken down and stayed so"


def opened(service: Service) -> str:
    """Names of all files that the workers have open, or map."""
    names = []
    for pid in service.workers():
        names.append(Path(f"/proc/{pid}/maps").read_text())
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                names.append(str(file.readlink()))
    return "\n".join(names)


def test_killed_while_it_loads_it_starts_again(service: Service, write_release: WriteRelease) -> None:
    """As soon as a file of the release is seen open: of a swap, and of the start after it."""
    service.start()
    with client(service) as caller:
        assert caller.similar(ITEMS[0]).release_id == "first"
        caller.hide_item(ITEMS[5])
    second = write_release([*ITEMS, *(f"other {number}" for number in range(60_000))], release_id="second")
    service.want(second)
    until(lambda: str(second) in opened(service))
    service.kill()
    service.start()
    until(lambda: f"{second}/embeddings.npy" in opened(service))
    service.kill()
    service.start()
    with client(service) as caller:
        answer = caller.similar(ITEMS[0], k=1_000)
        assert answer.release_id == "second"
        assert ITEMS[5] not in {neighbor.item_id for neighbor in answer.neighbors}
        with pytest.raises(UnknownItemError):
            caller.item(ITEMS[5])


# --- the journal itself

FORKS = """
import itertools, os, sys
from pathlib import Path
from serving.live.item_changes import ItemChange, ItemChanges

def write(name):
    journal = ItemChanges(Path(name))
    for number in itertools.count():
        item_id = f"{os.getpid()}-{number}"
        journal.write(ItemChange(item_id, 1.0, hidden=True))
        os.write(1, f"said {item_id}\\n".encode())

for line in sys.stdin:
    name, children = line.strip(), []
    for _ in range(2 if Path(name).exists() else 1):
        child = os.fork()
        if not child:
            write(name)
        children.append(child)
    os.write(1, f"writing {' '.join(map(str, children))}\\n".encode())
    for child in children:
        os.waitpid(child, 0)
    os.write(1, b"ended\\n")
"""
"""For each line, processes that write to the journal of that name until they are killed; one makes it, as one does
before the workers start."""


def sound(path: Path) -> dict[str, ItemChange]:
    """The entries of a journal, which is whole."""
    journal = ItemChanges(path)
    entries = {entry.item_id: entry for entry in journal.read_since(START).changes}
    journal.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
    return entries


def test_a_process_that_is_killed_while_it_writes_the_journal_loses_nothing(tmp_path: Path) -> None:
    """Fifty times, two at once, after so many acknowledgements as chance will have it: none, in a new file, too."""
    rng = random.Random(5)  # noqa: S311 - no secret
    command = [sys.executable, "-c", FORKS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        told, heard = cast("IO[str]", process.stdin), cast("IO[str]", process.stdout)
        for number in range(50):
            journal = tmp_path / f"journal {number // 5}.db"
            before = set(sound(journal)) if number % 5 else set()
            told.write(f"{journal}\n")
            said = killed(heard, after=rng.choice([0, rng.randint(1, 30)]))
            found = sound(journal)
            assert before | said <= set(found)
            assert len(found) <= len(before | said) + 2, "one each was written and not told of"
            assert all(entry.hidden for entry in found.values())


def killed(heard: IO[str], after: int) -> set[str]:
    """Kill the processes that write after so many acknowledgements: all that were heard until they had ended."""
    said: set[str] = set()
    writing: list[int] = []
    dead = False
    for line in heard:
        kind, *words = line.split()
        if kind == "ended":
            break
        if kind == "said":
            said.update(words)
        else:
            writing = [int(pid) for pid in words]
        if writing and len(said) >= after and not dead:
            dead = True
            for pid in writing:
                os.kill(pid, signal.SIGKILL)
    return said


ONE_MORE = """
import os, sys
from pathlib import Path
from serving.live.item_changes import ItemChange, ItemChanges

journal = ItemChanges(Path(sys.argv[1]))
journal.write(ItemChange("second", 1.0, hidden=True))
os.write(1, b"said")
os._exit(0)
"""
DISK = "pwrite64,fdatasync,fsync,ftruncate,unlink"
"""Calls by which SQLite changes files."""


def traced(*arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = ["strace", "-f", "-qq", "-o", "/dev/null", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def test_killed_at_any_call_of_a_commit_the_journal_is_whole(tmp_path: Path) -> None:
    """At the first call that changes a file, the second, and so on, until the commit is done before that many."""
    if shutil.which("strace") is None or traced("true").returncode:
        pytest.skip("strace is not installed, or may not trace")
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    outcomes = []
    for number in itertools.count(1):
        path = tmp_path / str(number) / "item_changes.db"
        journal = ItemChanges(path)
        journal.write(ItemChange("first", 1.0, hidden=True))
        journal.close()
        kill = f"inject={DISK}:signal=KILL:when={number}"
        done = traced("-e", f"trace={DISK}", "-e", kill, sys.executable, "-c", ONE_MORE, path, env=environment)
        found = set(sound(path))
        assert found in ({"first"}, {"first", "second"})
        assert "second" in found or done.stdout != "said"
        outcomes.append("second" in found)
        if done.stdout == "said":
            break
        assert re.search(r"-9|137", str(done.returncode)), done.stderr
    assert len(outcomes) > 4
    assert not outcomes[0]
