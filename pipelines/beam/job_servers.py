"""Servers of portable Beam runners: a job server and a pool of workers.

They listen on free ports and end when this process ends, even if it is killed. The Python servers bind to loopback
only; Beam's Java job server always binds to all interfaces.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

from pipelines.beam.loopback import HOST
from recsys.errors import StageError

START_TIMEOUT_S = 120
POLL_S = 0.05
LAST_LINES = 5
"""Number of lines of output in an error message."""

WORKER_POOL = [sys.executable, "-m", "pipelines.beam.worker_pool"]
JOB_SERVER = [sys.executable, "-m", "pipelines.beam.loopback", "apache_beam.runners.portability.local_job_service_main"]


@contextmanager
def started(options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Start a job server unless `job_endpoint` is set, and a worker pool unless `environment_type` is set.

    Args:
        options: options of a portable runner, from `pipelines.beam.options.pipeline_options`.

    Yields:
        The options with the addresses of the started servers.

    Raises:
        StageError: a server does not start.
    """
    with tempfile.TemporaryDirectory(prefix="recsys-beam-", ignore_cleanup_errors=True) as name, ExitStack() as stack:
        folder, servers, addresses = Path(name), [], {}
        if "job_endpoint" not in options:
            port = free_port()
            addresses["job_endpoint"] = f"{HOST}:{port}"
            command = _job_server(options, port, folder)
            servers.append(stack.enter_context(Server("job server", command, port, folder)))
        if "environment_type" not in options:
            port = free_port()
            addresses |= {"environment_type": "EXTERNAL", "environment_config": f"{HOST}:{port}"}
            command = [*WORKER_POOL, str(port)]
            servers.append(stack.enter_context(Server("worker pool", command, port, folder)))
        for server in servers:
            server.wait()
        yield options | addresses


def _job_server(options: dict[str, Any], port: int, folder: Path) -> list[str]:
    """Return the command of the job server: the Java server if a jar is set, otherwise the Python server."""
    for runner, master in (("flink", "flink_master"), ("spark", "spark_master_url")):
        jar = options.get(f"{runner}_job_server_jar")
        if jar is not None and master in options:
            launcher = options.get("job_server_java_launcher", "java")
            java = shutil.which(launcher)
            if java is None:
                raise StageError(f"{runner} needs Java 17. Received: no {launcher} on the PATH. Install it.")
            embedded = options[master].startswith(("local", "[local]"))
            properties, flags = _loopback_flags(runner, folder) if embedded else ([], [])
            return [
                *(java, f"-Djava.io.tmpdir={folder}", *properties, *options.get("job_server_jvm_properties", [])),
                *("-jar", jar, f"--{master.replace('_', '-')}={options[master]}", f"--job-host={HOST}", *flags),
                *(f"--job-port={port}", "--artifact-port=0", "--expansion-port=-1"),
                f"--artifacts-dir={options.get('artifacts_dir', folder)}",
            ]
    return [*JOB_SERVER, f"--port={port}", f"--staging_dir={folder}"]


def _loopback_flags(runner: str, folder: Path) -> tuple[list[str], list[str]]:
    """Return the Java properties and job server flags that bind an embedded runner to loopback."""
    if runner == "spark":
        return [f"-Dspark.driver.host={HOST}", f"-Dspark.driver.bindAddress={HOST}", "-Dspark.ui.enabled=false"], []
    names = ("jobmanager.bind-host", "taskmanager.bind-host", "taskmanager.host", "rest.address", "rest.bind-address")
    (folder / "config.yaml").write_text("".join(f"{name}: {HOST}\n" for name in names))
    return [], [f"--flink-conf-dir={folder}"]


class Server:
    """A process that listens on a port, started by `pipelines.beam.process_guard`."""

    def __init__(self, name: str, command: list[str], port: int, folder: Path) -> None:
        self.name, self.command, self.port, self.folder = name, command, port, folder
        self.log = folder / f"{name}.log"

    def __enter__(self) -> Self:
        environment = os.environ | {
            # the pool starts workers by the name `python`; they need the same import paths
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "TMPDIR": str(self.folder),
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipelines.beam.process_guard", *self.command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # only this process handles Ctrl-C
            )
        return self

    def __exit__(self, *_: object) -> None:
        with self.process as process:
            process.stdin.close()  # type: ignore[union-attr]  # a pipe

    def wait(self) -> None:
        """Wait until the server listens.

        Raises:
            StageError: the process ended, or does not listen in time.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.process.poll() is None and time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex((HOST, self.port)) == 0:
                    return
            time.sleep(POLL_S)
        output = "\n".join(self.log.read_text(errors="replace").splitlines()[-LAST_LINES:])
        raise StageError(
            f"Beam's {self.name} must start within {START_TIMEOUT_S} s. Its last output: {output or 'none'}."
        )


def free_port() -> int:
    """Return a free port on loopback."""
    with socket.create_server((HOST, 0)) as probe:
        return int(probe.getsockname()[1])
