"""The processes that some profiles need beside ours: Beam's job server, and a pool of workers.

They take free ports and end with the run, however it ends. Those of Python listen on loopback; Beam's Java job
server listens to every interface, and cannot be told otherwise.
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

START_S = 120
POLL_S = 0.05
LAST_LINES = 5

WORKER_POOL = [sys.executable, "-m", "pipelines.beam.worker_pool"]
JOB_SERVER = [sys.executable, "-m", "pipelines.beam.loopback", "apache_beam.runners.portability.local_job_service_main"]


@contextmanager
def beside(options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Start what the options leave open: a job server without `job_endpoint`, workers without `environment_type`.

    Args:
        options: of a portable runner, checked by `profiles.options`.

    Yields:
        The same options, with the addresses of what was started.

    Raises:
        StageError: a server does not start.
    """
    with tempfile.TemporaryDirectory(prefix="recsys-beam-", ignore_cleanup_errors=True) as name, ExitStack() as started:
        folder, waited_for, found = Path(name), [], {}
        if "job_endpoint" not in options:
            port = free_port()
            found["job_endpoint"] = f"{HOST}:{port}"
            command = _job_server(options, port, folder)
            waited_for.append(started.enter_context(Server("job server", command, port, folder)))
        if "environment_type" not in options:
            port = free_port()
            found |= {"environment_type": "EXTERNAL", "environment_config": f"{HOST}:{port}"}
            command = [*WORKER_POOL, str(port)]
            waited_for.append(started.enter_context(Server("worker pool", command, port, folder)))
        for server in waited_for:
            server.wait()
        yield options | found


def _job_server(options: dict[str, Any], port: int, folder: Path) -> list[str]:
    """Command of the job server: a Java one if a jar is named, else the one that is written in Python."""
    for runner, master in (("flink", "flink_master"), ("spark", "spark_master_url")):
        jar = options.get(f"{runner}_job_server_jar")
        if jar is not None and master in options:
            launcher = options.get("job_server_java_launcher", "java")
            java = shutil.which(launcher)
            if java is None:
                raise StageError(f"{runner} must find Java 17. Received: no {launcher} on the PATH. Install it.")
            embedded = options[master].startswith(("local", "[local]"))
            properties, flags = _bound(runner, folder) if embedded else ([], [])
            return [
                *(java, f"-Djava.io.tmpdir={folder}", *properties, *options.get("job_server_jvm_properties", [])),
                *("-jar", jar, f"--{master.replace('_', '-')}={options[master]}", f"--job-host={HOST}", *flags),
                *(f"--job-port={port}", "--artifact-port=0", "--expansion-port=-1"),
                f"--artifacts-dir={options.get('artifacts_dir', folder)}",
            ]
    return [*JOB_SERVER, f"--port={port}", f"--staging_dir={folder}"]


def _bound(runner: str, folder: Path) -> tuple[list[str], list[str]]:
    """Properties of Java and flags of the job server that keep the runner inside it to this machine."""
    if runner == "spark":
        return [f"-Dspark.driver.host={HOST}", f"-Dspark.driver.bindAddress={HOST}", "-Dspark.ui.enabled=false"], []
    names = ("jobmanager.bind-host", "taskmanager.bind-host", "taskmanager.host", "rest.address", "rest.bind-address")
    (folder / "config.yaml").write_text("".join(f"{name}: {HOST}\n" for name in names))
    return [], [f"--flink-conf-dir={folder}"]


class Server:
    """A guarded process that listens on a port."""

    def __init__(self, name: str, command: list[str], port: int, folder: Path) -> None:
        self.name, self.command, self.port, self.folder = name, command, port, folder
        self.log = folder / f"{name}.log"

    def __enter__(self) -> Self:
        environment = os.environ | {
            # a pool starts its workers as `python`, and they have to find what we import
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
                start_new_session=True,  # Ctrl-C is ours to handle
            )
        return self

    def __exit__(self, *_: object) -> None:
        with self.process as process:
            process.stdin.close()  # type: ignore[union-attr]  # a pipe

    def wait(self) -> None:
        """Until it listens.

        Raises:
            StageError: it ended, or took too long.
        """
        deadline = time.monotonic() + START_S
        while self.process.poll() is None and time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex((HOST, self.port)) == 0:
                    return
            time.sleep(POLL_S)
        said = "\n".join(self.log.read_text(errors="replace").splitlines()[-LAST_LINES:])
        raise StageError(f"Beam's {self.name} must start within {START_S} s. Received from it: {said or 'nothing'}.")


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.create_server((HOST, 0)) as probe:
        return int(probe.getsockname()[1])
