"""A Flink session cluster with two task managers on loopback, started from the jars of the job server."""

import json
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.error import URLError

from pipelines.beam import job_servers, options
from pipelines.beam.job_servers import Server
from pipelines.beam.loopback import HOST

TASK_MANAGERS = 2
TIMEOUT_S = 120

ADD_OPENS = [f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in options.JAVA_17]
JAVA = ["java", "-Xmx512m", *ADD_OPENS]
JOB_MANAGER = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
TASK_MANAGER = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"

# Flink's start scripts compute these values; without them a task manager does not start
MEMORY = """
taskmanager.cpu.cores: 1
taskmanager.memory.task.heap.size: 256m
taskmanager.memory.task.off-heap.size: 0
taskmanager.memory.managed.size: 64m
taskmanager.memory.network.min: 64m
taskmanager.memory.network.max: 64m
taskmanager.memory.framework.heap.size: 128m
taskmanager.memory.framework.off-heap.size: 128m
taskmanager.memory.jvm-metaspace.size: 256m
taskmanager.memory.jvm-overhead.min: 192m
taskmanager.memory.jvm-overhead.max: 192m
"""


@contextmanager
def session_cluster(jars: Path, folder: Path) -> Iterator[str]:
    """Start the cluster and yield the address to which jobs are submitted."""
    rest, rpc = job_servers.free_port(), job_servers.free_port()
    settings = {
        "jobmanager.rpc.address": HOST,
        "jobmanager.rpc.port": rpc,
        "jobmanager.bind-host": HOST,
        "rest.address": HOST,
        "rest.bind-address": HOST,
        "rest.port": rest,
        "taskmanager.host": HOST,
        "taskmanager.bind-host": HOST,
        "taskmanager.numberOfTaskSlots": 1,
        "io.tmp.dirs": folder,
        # each job submits the same jars again
        "classloader.resolve-order": "parent-first",
    }
    (folder / "config.yaml").write_text("".join(f"{key}: {value}\n" for key, value in settings.items()) + MEMORY)
    java = [*JAVA, "-cp", f"{jars}/*"]
    with ExitStack() as stack:
        command = [*java, JOB_MANAGER, f"--configDir={folder}"]
        job_manager = stack.enter_context(Server("job manager", command, rest, folder))
        for number in range(TASK_MANAGERS):
            command = [*java, TASK_MANAGER, f"--configDir={folder}"]
            stack.enter_context(Server(f"task manager {number}", command, 0, folder))
        job_manager.wait()
        deadline = time.monotonic() + TIMEOUT_S
        while _count(rest, "taskmanagers") < TASK_MANAGERS:
            assert time.monotonic() < deadline, "the task managers did not register"
            time.sleep(0.1)
        yield f"{HOST}:{rest}"


def finished_jobs(address: str) -> int:
    """Return the number of jobs that the cluster completed."""
    with urllib.request.urlopen(f"http://{address}/jobs/overview") as response:
        return sum(job["state"] == "FINISHED" for job in json.load(response)["jobs"])


def _count(port: int, resource: str) -> int:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/{resource}") as response:
            return len(json.load(response)[resource])
    except URLError:  # not ready yet
        return 0
