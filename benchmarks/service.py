"""Measure throughput, latency and memory of the service, also during promotions and item changes.

    python -m benchmarks.service --json FILE [--requests N] [--swaps N] [--seconds S] [--soak-minutes M]

The service and the load generator run on the same machine. First, the throughput is compared with that of an endpoint
that returns `{}` from the same server (wrk generates the load if it is installed). The latency is measured at half of
the throughput, from the time when a query was due. Then several clients send queries while releases are promoted and
items are deleted and added; each response is checked. Finally, the memory of the workers is measured under a long load.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, cast
from urllib.parse import quote, urlsplit

import httpx
import uvloop
from fastapi import FastAPI

from benchmarks import command
from recsys.testing.service_load import ITEMS, WORKERS, create_service, run_load, usage
from recsys.testing.service_process import wait_until

CONNECTIONS = 32
"""Concurrent connections of the load."""
ROUNDS = 3
NUM_NEW_QUERIES = 200_000
SOAK_QUERIES_S = 500
"""Queries per second under the long load."""
NUM_SAMPLES = 30
"""Number of measurements of the workers' memory under the long load."""
WRK_SCRIPT = """
local paths, number = {}, 0
for path in io.lines(%s) do paths[#paths + 1] = path end
request = function()
  number = number %% #paths + 1
  return wrk.format("GET", paths[number])
end
"""
"""Script for wrk that requests the paths in turn."""

empty = FastAPI()


@empty.get("/empty")
async def get_empty() -> dict[str, str]:
    """Return an empty object."""
    return {}


class Load(NamedTuple):
    """Throughput and latency of repeated queries, which the cache answers, and of new queries, which it does not."""

    requests_s: float
    """Maximum number of repeated queries per second."""
    new_requests_s: float
    """Maximum number of new queries per second."""
    empty_requests_s: float
    """Maximum number of requests of the empty endpoint per second."""
    ratio: float
    """Throughput of repeated queries relative to the empty endpoint; median of several rounds."""
    new_ratio: float
    """Throughput of new queries relative to the empty endpoint."""
    p50_ms: float
    """Latency of repeated queries at half of their throughput."""
    p99_ms: float
    new_p50_ms: float
    """Latency of new queries at half of their throughput."""
    new_p99_ms: float


def load(folder: Path, seconds: float) -> Load:
    """Measure the throughput of queries and of the empty endpoint in turn, then the latency at half of it."""
    service, item_ids = create_service(folder, ITEMS)
    service.configure(workers=1)
    service.start()
    repeated, new = [_path(item_id) for item_id in item_ids], _new_queries(item_ids)
    try:
        with _empty_server() as url:
            targets = [(service.url, repeated), (service.url, new), (url, ["/empty"])]
            wait_until(lambda: service.get(_path(item_ids[0])).is_success)
            _throughput(*targets[0], 1.0)
            rounds = [[_throughput(*target, seconds) for target in targets] for _ in range(ROUNDS)]
        repeated_rate, new_rate, empty_rate = (statistics.median(side) for side in zip(*rounds, strict=True))
        latencies = [
            uvloop.run(_send(service.url, paths, rate / 2, seconds))
            for paths, rate in ((repeated, repeated_rate), (new, new_rate))
        ]
    finally:
        service.close()
    ratio, new_ratio = (statistics.median(rates[side] / rates[2] for rates in rounds) for side in (0, 1))
    cuts = [statistics.quantiles(times, n=100) for times in latencies]
    percentiles = [cut[percent - 1] * 1_000 for cut in cuts for percent in (50, 99)]
    return Load(repeated_rate, new_rate, empty_rate, ratio, new_ratio, *percentiles)


def _path(item_id: str) -> str:
    return f"/v1/items/{quote(item_id)}/similar"


def _new_queries(item_ids: list[str]) -> list[str]:
    """Return more different queries than the cache can store; those for the same item have the same result."""
    numbered = zip(itertools.cycle(item_ids), range(NUM_NEW_QUERIES), strict=False)
    return [f"{_path(item_id)}?min_similarity=-1.{number:06}" for item_id, number in numbered]


class Soak(NamedTuple):
    """Memory and open files of the workers under a long load."""

    answers: int
    memory_bytes: list[int]
    """Memory of all workers without shared pages, at equal intervals."""
    open_files: list[int]


def soak(folder: Path, seconds: float) -> Soak:
    """Send queries at a constant rate, each query twice."""
    service, item_ids = create_service(folder, ITEMS)
    service.configure(workers=WORKERS)
    service.start()
    paths = [path for path in _new_queries(item_ids) for _ in range(2)]
    samples: list[tuple[int, int]] = []
    try:
        wait_until(lambda: service.get(_path(item_ids[0])).is_success)
        latencies = uvloop.run(
            _send(service.url, paths, SOAK_QUERIES_S, seconds, lambda: samples.append(usage(service)))
        )
    finally:
        service.close()
    memory, files = (list(side) for side in zip(*samples, strict=True))
    return Soak(len(latencies), memory, files)


@contextmanager
def _empty_server() -> Iterator[str]:
    """Run the empty endpoint in another process with the server and the settings of the service, and yield its URL."""
    code = (
        "import socket, uvicorn; from benchmarks.service import empty; s = socket.create_server(('127.0.0.1', 0)); "
        "print(s.getsockname()[1], flush=True); "
        "uvicorn.Server(uvicorn.Config(empty, log_config=None, access_log=False, lifespan='off')).run([s])"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        try:
            url = f"http://127.0.0.1:{int(cast('IO[str]', process.stdout).readline())}"
            wait_until(lambda: _is_available(f"{url}/empty"))
            yield url
        finally:
            process.terminate()


def _is_available(url: str) -> bool:
    try:
        return httpx.get(url, timeout=10).is_success
    except httpx.TransportError:
        return False


def _throughput(url: str, paths: list[str], seconds: float) -> float:
    """Return the maximum number of responses per second."""
    wrk = shutil.which("wrk")
    if wrk is None:
        return len(uvloop.run(_send(url, paths, None, seconds))) / seconds
    with tempfile.TemporaryDirectory() as folder:
        path_list, script = Path(folder) / "paths.txt", Path(folder) / "paths.lua"
        path_list.write_text("\n".join(paths))
        script.write_text(WRK_SCRIPT % json.dumps(str(path_list)))
        wrk_command = [wrk, "-t1", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s", "-s", str(script), url]
        process = subprocess.run(wrk_command, capture_output=True, text=True, check=True)
    if "Non-2xx" in process.stdout:
        raise RuntimeError(process.stdout)
    return float(re.findall(r"Requests/sec:\s+([\d.]+)", process.stdout)[0])


async def _send(
    url: str, paths: list[str], rate: float | None, seconds: float, sample: Callable[[], None] | None = None
) -> list[float]:
    """Send queries at a rate per second and return their latencies in seconds, each from the time when it was due.

    If `rate` is None, send as many queries as possible. `sample` is called `NUM_SAMPLES` times at equal intervals.
    """
    address = urlsplit(url)
    cycled_paths = itertools.cycle(paths)
    latencies: list[float] = []
    started = time.perf_counter()
    number = itertools.count()

    async def client() -> None:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        while (due := started + next(number) / rate if rate else time.perf_counter()) < started + seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            writer.write(f"GET {next(cycled_paths)} HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(head.decode("latin-1"))
            await reader.readexactly(int(re.findall(rb"content-length: (\d+)", head)[0]))
            latencies.append(time.perf_counter() - due)
        writer.close()

    async def sampler(sample: Callable[[], None]) -> None:
        for number in range(1, NUM_SAMPLES + 1):
            await asyncio.sleep(max(0.0, started + seconds * number / NUM_SAMPLES - time.perf_counter()))
            sample()

    samplers = [] if sample is None else [sampler(sample)]
    await asyncio.gather(*(client() for _ in range(CONNECTIONS)), *samplers)
    return latencies


def main() -> None:
    """Run the benchmark as a program."""
    parser = command.parser(__doc__, command.FIGURES)
    parser.add_argument("--requests", type=int, default=10_000, metavar="N", help="queries during the promotions")
    parser.add_argument("--swaps", type=int, default=100, metavar="N", help="number of promotions")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="duration of each measurement")
    parser.add_argument("--soak-minutes", type=float, default=0.5, metavar="M", help="duration of the long load")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {"cores": os.cpu_count(), "load_generator": "wrk" if shutil.which("wrk") else "asyncio"}
    parts: dict[str, Callable[[Path], Any]] = {
        "throughput": lambda folder: load(folder, arguments.seconds),
        "concurrent_changes": lambda folder: run_load(folder, arguments.requests, arguments.swaps),
        "soak": lambda folder: soak(folder, 60 * arguments.soak_minutes),
    }
    for name, part in parts.items():
        with command.temporary_folder() as folder:
            figures[name] = part(folder)._asdict()
        print(name, figures[name], flush=True)
    command.write(figures, arguments.json)


if __name__ == "__main__":
    main()
