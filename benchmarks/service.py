"""The service under load, and through a day in which everything happens at once.

    python -m benchmarks.service --json FILE [--requests N] [--swaps N] [--seconds S] [--soak-minutes M]

Server and load share the machine. First throughput beside an endpoint that answers `{}` under the same server, by wrk
where it is installed, and latency at half of the throughput, counted from when a question was due. Then the day:
questions from several callers while releases are swapped, items are taken down and others are put; every answer is
checked. At last a long time under load, and what it does to the memory of the workers.
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
"""At a time, of the load."""
ROUNDS = 3
NEW = 200_000
SOAK_S = 500
"""Questions a second of the long load."""
LOOKS = 30
"""At the workers in that time."""
EACH = """
local paths, number = {}, 0
for path in io.lines(%s) do paths[#paths + 1] = path end
request = function()
  number = number %% #paths + 1
  return wrk.format("GET", paths[number])
end
"""
"""For wrk: one path after the other."""

empty = FastAPI()


@empty.get("/empty")
async def nothing() -> dict[str, str]:
    """What any answer costs."""
    return {}


class Load(NamedTuple):
    """What the load showed. Questions are asked again, and answered from those that were given, or all are new."""

    requests_s: float
    """Questions that are asked again and answered in a second, as many as can be."""
    new_requests_s: float
    """The same of new questions."""
    empty_requests_s: float
    """The same of the empty endpoint."""
    ratio: float
    """Of questions asked again to the empty endpoint: median of the ratios of both, in turn."""
    new_ratio: float
    """The same of new questions."""
    p50_ms: float
    """At half of the throughput."""
    p99_ms: float
    new_p50_ms: float
    """Of new questions, at half of theirs."""
    new_p99_ms: float


def load(folder: Path, seconds: float) -> Load:
    """Throughput beside the empty endpoint in turn, then latency at half of it."""
    service, item_ids = create_service(folder, ITEMS)
    service.configure(workers=1)
    service.start()
    again, new = [_path(item_id) for item_id in item_ids], _new(item_ids)
    try:
        with _serving_nothing() as url:
            asked = [(service.url, again), (service.url, new), (url, ["/empty"])]
            wait_until(lambda: service.get(_path(item_ids[0])).is_success)
            _throughput(*asked[0], 1.0)
            rounds = [[_throughput(*each, seconds) for each in asked] for _ in range(ROUNDS)]
        ours, other, plain = (statistics.median(side) for side in zip(*rounds, strict=True))
        latencies = [
            uvloop.run(_paced(service.url, paths, rate / 2, seconds)) for paths, rate in ((again, ours), (new, other))
        ]
    finally:
        service.close()
    ratio, new_ratio = (statistics.median(each[side] / each[2] for each in rounds) for side in (0, 1))
    cuts = [statistics.quantiles(each, n=100) for each in latencies]
    percentiles = [cut[percent - 1] * 1_000 for cut in cuts for percent in (50, 99)]
    return Load(ours, other, plain, ratio, new_ratio, *percentiles)


def _path(item_id: str) -> str:
    return f"/v1/items/{quote(item_id)}/similar"


def _new(item_ids: list[str]) -> list[str]:
    """Different questions with the same answers, more than a server keeps answers of."""
    asked = zip(itertools.cycle(item_ids), range(NEW), strict=False)
    return [f"{_path(item_id)}?min_similarity=-1.{number:06}" for item_id, number in asked]


class Soak(NamedTuple):
    """What a long time under load did to the workers."""

    answers: int
    memory_bytes: list[int]
    """Of the workers together, at even intervals; what they map and share is left out."""
    open_files: list[int]


def soak(folder: Path, seconds: float) -> Soak:
    """So many questions a second, each asked twice, and nothing else."""
    service, item_ids = create_service(folder, ITEMS)
    service.configure(workers=WORKERS)
    service.start()
    paths = [path for path in _new(item_ids) for _ in range(2)]
    seen: list[tuple[int, int]] = []
    try:
        wait_until(lambda: service.get(_path(item_ids[0])).is_success)
        latencies = uvloop.run(_paced(service.url, paths, SOAK_S, seconds, lambda: seen.append(usage(service))))
    finally:
        service.close()
    memory, files = (list(side) for side in zip(*seen, strict=True))
    return Soak(len(latencies), memory, files)


@contextmanager
def _serving_nothing() -> Iterator[str]:
    """The URL of the empty endpoint, by the same server with the same settings, in a process of its own."""
    code = (
        "import socket, uvicorn; from benchmarks.service import empty; s = socket.create_server(('127.0.0.1', 0)); "
        "print(s.getsockname()[1], flush=True); "
        "uvicorn.Server(uvicorn.Config(empty, log_config=None, access_log=False, lifespan='off')).run([s])"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        try:
            url = f"http://127.0.0.1:{int(cast('IO[str]', process.stdout).readline())}"
            wait_until(lambda: _answers(f"{url}/empty"))
            yield url
        finally:
            process.terminate()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=10).is_success
    except httpx.TransportError:
        return False


def _throughput(url: str, paths: list[str], seconds: float) -> float:
    """Answers a second, as many as can be."""
    wrk = shutil.which("wrk")
    if wrk is None:
        return len(uvloop.run(_paced(url, paths, None, seconds))) / seconds
    with tempfile.TemporaryDirectory() as folder:
        listed, script = Path(folder) / "paths.txt", Path(folder) / "paths.lua"
        listed.write_text("\n".join(paths))
        script.write_text(EACH % json.dumps(str(listed)))
        told = [wrk, "-t1", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s", "-s", str(script), url]
        done = subprocess.run(told, capture_output=True, text=True, check=True)
    if "Non-2xx" in done.stdout:
        raise RuntimeError(done.stdout)
    return float(re.findall(r"Requests/sec:\s+([\d.]+)", done.stdout)[0])


async def _paced(
    url: str, paths: list[str], rate: float | None, seconds: float, watch: Callable[[], None] | None = None
) -> list[float]:
    """Latencies in seconds of questions at a rate, each from when it was due; without a rate as many as can be.

    What is to be watched is, so often as `LOOKS` says.
    """
    where = urlsplit(url)
    asked = itertools.cycle(paths)
    latencies: list[float] = []
    begun = time.perf_counter()
    number = itertools.count()

    async def caller() -> None:
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        while (due := begun + next(number) / rate if rate else time.perf_counter()) < begun + seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            writer.write(f"GET {next(asked)} HTTP/1.1\r\nHost: {where.netloc}\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(head.decode("latin-1"))
            await reader.readexactly(int(re.findall(rb"content-length: (\d+)", head)[0]))
            latencies.append(time.perf_counter() - due)
        writer.close()

    async def watcher(watch: Callable[[], None]) -> None:
        for look in range(1, LOOKS + 1):
            await asyncio.sleep(max(0.0, begun + seconds * look / LOOKS - time.perf_counter()))
            watch()

    watchers = [] if watch is None else [watcher(watch)]
    await asyncio.gather(*(caller() for _ in range(CONNECTIONS)), *watchers)
    return latencies


def main() -> None:
    """Run all, and write what they showed."""
    parser = command.parser(__doc__, command.FIGURES)
    parser.add_argument("--requests", type=int, default=10_000, metavar="N", help="questions of the day")
    parser.add_argument("--swaps", type=int, default=100, metavar="N", help="swaps of the day")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="of each measurement")
    parser.add_argument("--soak-minutes", type=float, default=0.5, metavar="M", help="under load, watching memory")
    asked = parser.parse_args()
    figures: dict[str, Any] = {"cores": os.cpu_count(), "by": "wrk" if shutil.which("wrk") else "asyncio"}
    parts: dict[str, Callable[[Path], Any]] = {
        "load": lambda folder: load(folder, asked.seconds),
        "day": lambda folder: run_load(folder, asked.requests, asked.swaps),
        "soak": lambda folder: soak(folder, 60 * asked.soak_minutes),
    }
    for name, part in parts.items():
        with command.working() as folder:
            figures[name] = part(folder)._asdict()
        print(name, figures[name], flush=True)
    command.write(figures, asked.json)


if __name__ == "__main__":
    main()
