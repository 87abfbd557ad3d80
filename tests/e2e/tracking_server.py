"""A tracking server of MLflow's on a free port: another process, as its users start it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def started(*arguments: str, **environment: str) -> Iterator[str]:
    """URL of what `mlflow ARGUMENTS…` serves, as soon as it answers; ended with all that it started."""
    command = [sys.executable, "-m", "mlflow", *arguments, "--host", "127.0.0.1", "--port", "0", "--workers", "1"]
    # MLflow looks for uvicorn on the PATH, where an environment that is not activated has no say.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that its workers end with it
        env={**os.environ, "PATH": path, **environment},
    ) as process:
        try:
            assert process.stdout is not None
            said = []
            for line in process.stdout:
                said.append(line)
                if found := re.search(r"running on (http://127\.0\.0\.1:\d+)", line):
                    break
            else:
                pytest.fail("".join(said))
            rest = threading.Thread(target=process.stdout.read)  # a pipe that is full would hold it up
            rest.start()
            yield found.group(1)
        finally:
            os.killpg(process.pid, signal.SIGTERM)
        rest.join()


@contextmanager
def serving(store: str, artifacts: Path) -> Iterator[str]:
    """URL of a tracking server that keeps its tables in a database and the files below a folder."""
    options = ("--backend-store-uri", store, "--artifacts-destination", str(artifacts))
    with started("server", *options, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false") as url:
        yield url
