"""The service as it is run: a real process, asked over real HTTP."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import httpx

from recsys.testing import program
from recsys.testing.openapi import Description
from serving.middleware import api_keys

Result = TypeVar("Result")

PATIENCE_S = 60.0


class Service:
    """A service over a folder: `releases.json` beside its config names what is to be served.

    Args:
        folder: of config, item changes and log.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "recsys.toml"
        self.wanted = folder / "releases.json"
        self.log = folder / "requests.log"
        self.source: tuple[object, ...] = ("--release", self.wanted)
        self.process: subprocess.Popen[str] | None = None
        self.url = ""
        self.said: list[str] = []
        """Lines on standard error; all of them once it has ended."""
        self.secrets: dict[str, dict[str, str]] = {}
        """Headers by the name of an API key."""
        self.set()

    @classmethod
    def of(cls, folder: Path, release: Path) -> Service:
        """A service over one release that stays."""
        made = cls(folder)
        made.source = ("--release", release)
        return made

    def set(self, **settings: object) -> None:
        """Settings of the table `serve`, for the next start."""
        lines = [f"{name} = {json.dumps(value)}" for name, value in {"poll_seconds": 0.05, **settings}.items()]
        self.config.write_text("\n".join(["[serve]", *lines, ""]))

    def let_in(self, name: str, right: str) -> None:
        """Make an API key, in `keys.txt` beside the config; `set(keys="keys.txt")` asks for one."""
        secret, key = api_keys.create_key(name, right)
        self.secrets[name] = {"Authorization": f"Bearer {secret}"}
        with (self.folder / "keys.txt").open("a") as file:
            file.write(f"{key.line}\n")

    def key(self, name: str) -> str:
        """An API key as a client takes it."""
        return self.secrets[name]["Authorization"].removeprefix("Bearer ")

    def want(self, champion: Path, challenger: Path | None = None) -> None:
        """Say what is to be served."""
        draft = self.wanted.with_suffix(".draft")
        draft.write_text(json.dumps({"champion": str(champion), "challenger": challenger and str(challenger)}))
        draft.rename(self.wanted)

    def start(self, *options: object) -> Service:
        """Start, and wait until it listens."""
        with self.log.open("a") as log:
            command = ("serve", "--config", self.config, *self.source, "--port", 0, *options)
            self.process = program.start(*command, stdout=log.fileno())
        lines = cast("IO[str]", self.process.stderr)
        self.said = []
        for line in lines:
            self.said.append(line)
            if found := re.search(r"running on (http://127\.0\.0\.1:\d+)", line):
                self.url = found.group(1)
                self._listener = threading.Thread(target=self.said.extend, args=(lines,))
                self._listener.start()  # or a service that says much would wait for somebody to listen
                return self
        self.process.wait(program.TIMEOUT_S)
        lines.close()
        raise AssertionError("".join(self.said))

    def start_all(self, number: int) -> Service:
        """Start so many workers, and wait until each has a champion: one that comes later knows none before it."""
        self.start()
        until(lambda: sum("is the champion" in line for line in self.said) == number)
        return self

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End it, and wait until nobody listens any more."""
        assert self.process is not None
        self.process.send_signal(how)
        code = self.process.wait(program.TIMEOUT_S)
        self._listener.join()  # until the last worker has closed standard error
        cast("IO[str]", self.process.stderr).close()
        return code

    def kill(self) -> None:
        """Kill all of its processes at once."""
        assert self.process is not None
        for pid in [self.process.pid, *self.workers()]:
            with suppress(ProcessLookupError):  # it noticed
                os.kill(pid, signal.SIGKILL)
        self.end(signal.SIGKILL)

    def close(self) -> None:
        """End it if it runs."""
        if self.process is not None and self.process.poll() is None:
            self.end()

    def workers(self) -> list[int]:
        """Ids of the processes that answer."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def get(self, path: str, **options: Any) -> httpx.Response:
        """Ask over a connection of its own, so that any worker may answer."""
        return httpx.get(f"{self.url}{path}", timeout=PATIENCE_S, **options)

    def metric(self, name: str, *labels: str) -> float:
        """The sum of a metric's lines with these labels."""
        lines = [line for line in self.get("/metrics").text.splitlines() if re.match(rf"{name}[ {{]", line)]
        return sum(float(line.split()[-1]) for line in lines if all(label in line for label in labels))


@contextmanager
def described(service: Service, *options: object) -> Iterator[httpx.Client]:
    """A client of a service that runs meanwhile; every response is held against the OpenAPI."""
    service.start(*options)
    try:
        description = Description(service.get("/openapi.json").json())
        with httpx.Client(base_url=service.url, event_hooks={"response": [description]}, timeout=PATIENCE_S) as client:
            yield client
    finally:
        service.close()


def until(told: Callable[[], Result]) -> Result:
    """Ask again and again until what is told is true."""
    ends = time.monotonic() + PATIENCE_S
    while not (result := told()):
        assert time.monotonic() < ends, result
    return result
