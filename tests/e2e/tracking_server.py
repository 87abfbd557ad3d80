"""MLflow tracking server in another process, on a free port."""

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
    """Start `mlflow ARGUMENTS…`, yield its URL once it accepts connections, and end all of its processes."""
    command = [sys.executable, "-m", "mlflow", *arguments, "--host", "127.0.0.1", "--port", "0", "--workers", "1"]
    # MLflow searches for uvicorn on the PATH, which lacks an environment that is not activated
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # its workers end with it
        env={**os.environ, "PATH": path, **environment},
    ) as process:
        try:
            assert process.stdout is not None
            output = []
            for line in process.stdout:
                output.append(line)
                if match := re.search(r"running on (http://127\.0\.0\.1:\d+)", line):
                    break
            else:
                pytest.fail("".join(output))
            reader = threading.Thread(target=process.stdout.read)  # a full pipe would block the server
            reader.start()
            yield match.group(1)
        finally:
            os.killpg(process.pid, signal.SIGTERM)
        reader.join()


@contextmanager
def serving(store: str, artifacts: Path) -> Iterator[str]:
    """Yield the URL of a tracking server with a database for its tables and a folder for artifacts."""
    options = ("--backend-store-uri", store, "--artifacts-destination", str(artifacts))
    with started("server", *options, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false") as url:
        yield url
