"""The service in its own process, queried over HTTP."""

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

TIMEOUT_S = 60.0


class Service:
    """A service whose folder has its config and `releases.json`, which names the releases that it serves.

    Args:
        folder: for the config, the item changes and the log.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "recsys.toml"
        self.releases_file = folder / "releases.json"
        self.log = folder / "requests.log"
        self.source: tuple[object, ...] = ("--release", self.releases_file)
        self.process: subprocess.Popen[str] | None = None
        self.url = ""
        self.stderr_lines: list[str] = []
        """Lines of standard error; complete after the service has ended."""
        self.secrets: dict[str, dict[str, str]] = {}
        """HTTP headers by name of the API key."""
        self.configure()

    @classmethod
    def for_release(cls, folder: Path, release: Path) -> Service:
        """Create a service of one release that does not change."""
        service = cls(folder)
        service.source = ("--release", release)
        return service

    def configure(self, **settings: object) -> None:
        """Write settings of the table `serve`; they apply from the next start."""
        lines = [f"{name} = {json.dumps(value)}" for name, value in {"poll_seconds": 0.05, **settings}.items()]
        self.config.write_text("\n".join(["[serve]", *lines, ""]))

    def add_key(self, name: str, right: str) -> None:
        """Add an API key to `keys.txt`; `configure(keys="keys.txt")` makes keys required."""
        secret, key = api_keys.create_key(name, right)
        self.secrets[name] = {"Authorization": f"Bearer {secret}"}
        with (self.folder / "keys.txt").open("a") as file:
            file.write(f"{key.line}\n")

    def key(self, name: str) -> str:
        """Return an API key."""
        return self.secrets[name]["Authorization"].removeprefix("Bearer ")

    def set_releases(self, champion: Path, challenger: Path | None = None) -> None:
        """Set the releases that the service serves."""
        draft = self.releases_file.with_suffix(".draft")
        draft.write_text(json.dumps({"champion": str(champion), "challenger": challenger and str(challenger)}))
        draft.rename(self.releases_file)

    def start(self, *options: object) -> Service:
        """Start the service and wait until it listens."""
        with self.log.open("a") as log:
            command = ("serve", "--config", self.config, *self.source, "--port", 0, *options)
            self.process = program.start(*command, stdout=log.fileno())
        lines = cast("IO[str]", self.process.stderr)
        self.stderr_lines = []
        for line in lines:
            self.stderr_lines.append(line)
            if match := re.search(r"running on (http://127\.0\.0\.1:\d+)", line):
                self.url = match.group(1)
                self._stderr_reader = threading.Thread(target=self.stderr_lines.extend, args=(lines,))
                self._stderr_reader.start()  # a full pipe would block the service
                return self
        self.process.wait(program.TIMEOUT_S)
        lines.close()
        raise AssertionError("".join(self.stderr_lines))

    def start_workers(self, number: int) -> Service:
        """Start a number of workers and wait until each has loaded a champion."""
        self.start()
        wait_until(lambda: sum("is the champion" in line for line in self.stderr_lines) == number)
        return self

    def stop(self, signal_number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, wait until all processes have ended, and return the exit code."""
        assert self.process is not None
        self.process.send_signal(signal_number)
        code = self.process.wait(program.TIMEOUT_S)
        self._stderr_reader.join()  # ends when the last worker has closed standard error
        cast("IO[str]", self.process.stderr).close()
        return code

    def kill(self) -> None:
        """Kill all processes of the service at once."""
        assert self.process is not None
        for pid in [self.process.pid, *self.workers()]:
            with suppress(ProcessLookupError):  # it has ended already
                os.kill(pid, signal.SIGKILL)
        self.stop(signal.SIGKILL)

    def close(self) -> None:
        """Stop the service if it is running."""
        if self.process is not None and self.process.poll() is None:
            self.stop()

    def workers(self) -> list[int]:
        """Return the process ids of the workers."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def get(self, path: str, **options: Any) -> httpx.Response:
        """Send a GET request over a new connection, which any worker may accept."""
        return httpx.get(f"{self.url}{path}", timeout=TIMEOUT_S, **options)

    def metric(self, name: str, *labels: str) -> float:
        """Return the sum of the samples of a metric with these labels."""
        lines = [line for line in self.get("/metrics").text.splitlines() if re.match(rf"{name}[ {{]", line)]
        return sum(float(line.split()[-1]) for line in lines if all(label in line for label in labels))


@contextmanager
def validated_client(service: Service, *options: object) -> Iterator[httpx.Client]:
    """Start a service and return a client that validates each response against the OpenAPI description."""
    service.start(*options)
    try:
        description = Description(service.get("/openapi.json").json())
        with httpx.Client(base_url=service.url, event_hooks={"response": [description]}, timeout=TIMEOUT_S) as client:
            yield client
    finally:
        service.close()


def wait_until(condition: Callable[[], Result]) -> Result:
    """Poll a condition until it is true, and return its value."""
    deadline = time.monotonic() + TIMEOUT_S
    while not (result := condition()):
        assert time.monotonic() < deadline, result
    return result
