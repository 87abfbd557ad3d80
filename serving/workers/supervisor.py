"""The processes of the service: one that watches and answers nothing, and the workers that answer.

Workers are started anew, not forked: they share the socket, and the files of index and embeddings by mapping them.
One that ends is replaced; all end with the first process, however that one ends.
"""

from __future__ import annotations

import logging
import logging.config
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import uvicorn

from recsys import Release
from recsys.config.sections import ServeConfig
from recsys.errors import ConfigError
from serving.app import over
from serving.live.item_changes import JOURNAL, Journal
from serving.live.live_release import Embed
from serving.live.loaded_releases import Shelf
from serving.live.state import State
from serving.middleware import logs, tracing
from serving.middleware.api_keys import Keys
from serving.middleware.metrics import MULTIPROCESS, Telemetry
from serving.middleware.rate_limit import RATES, Rates
from serving.workers import target as wanted
from serving.workers.backoff import delays
from serving.workers.champion_watcher import Source, Watch
from serving.workers.release_loader import Follower
from serving.workers.target import SERVED, WANTED

logger = logging.getLogger(__name__)

BACKLOG = 2_048
LOOK_S = 1.0
"""Seconds between two looks of a worker at what is wanted, at most."""
GRACE_S = 30
"""For requests that were begun when the service is told to stop."""
SOON_S = 10.0
"""A worker that ends sooner is started again later and later."""


@dataclass(frozen=True)
class Service:
    """What a worker has to know."""

    config: ServeConfig
    folder: Path
    durable: bool
    """Whether the folder stays; changes are refused where it does not."""
    embed: Embed | None


def run(source: Source, config: ServeConfig, folder: Path | None, embed: Embed | None = None) -> None:
    """Serve until a signal says stop; requests that were begun are finished.

    Args:
        source: tells which releases.
        config: how.
        folder: where journal and memory of the service lie; without one, nothing may be changed.
        embed: gives new items their place.

    Raises:
        RecsysError: there is no release, or a setting is wrong.
    """
    logging.config.dictConfig(logs.CONFIG)
    with tempfile.TemporaryDirectory(prefix="recsys-") as temporary:
        service = Service(config, folder or Path(temporary), folder is not None, embed)
        service.folder.mkdir(parents=True, exist_ok=True)
        Keys(_keys(config)), tracing.tracer()  # a mistake in them is told now, rather than by each worker
        figures = Path(temporary) / "metrics"
        figures.mkdir()
        os.environ[MULTIPROCESS] = str(figures)
        if service.durable:
            Journal(service.folder / JOURNAL).close()  # made once, before several workers open it
        with _listening(config.host, config.port) as listener:
            watch = Watch(source, service.folder, config.poll_s)
            watch.start()
            if not (service.folder / SERVED).exists():
                Release.load(wanted.read(service.folder / WANTED).champion)  # a first start fails plainly
            host, port = listener.getsockname()[:2]
            logger.info("running on http://%s:%d", f"[{host}]" if ":" in host else host, port)
            _supervise(lambda: _start(service, listener), config.workers)
            watch.stop()


def work(service: Service, listener: socket.socket) -> None:
    """One worker, until a signal says stop."""
    logging.config.dictConfig(logs.CONFIG)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    config = service.config
    journal = Journal(service.folder / JOURNAL) if service.durable else None
    rates = None if config.rate is None else Rates(service.folder / RATES, config.rate)
    state = State(Shelf(config.keep_s), config, Telemetry(), journal, service.embed)
    follower = Follower(state, service.folder, min(LOOK_S, config.poll_s))
    follower.start()
    app = over(state, Keys(_keys(config)), rates)
    settings: dict[str, Any] = {"log_config": None, "access_log": False, "lifespan": "off", "backlog": BACKLOG}
    uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=GRACE_S, **settings)).run([listener])


def _keys(config: ServeConfig) -> Path | None:
    return None if config.keys is None else Path(config.keys)


def _end_with_parent() -> None:
    """Nobody would replace, or stop, a worker whose parent was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that takes connections before there is a worker: callers wait, rather than fail."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"serve.host and serve.port must be free to listen on. Received: {host}:{port}: {error}."
            ) from None
        listener.listen(BACKLOG)
        yield listener


def _start(service: Service, listener: socket.socket) -> SpawnProcess:
    process = multiprocessing.get_context("spawn").Process(target=work, args=(service, listener))
    process.start()
    return process


def _supervise(start: Callable[[], SpawnProcess], count: int) -> None:
    """Keep so many processes running until a signal says stop, then end them."""
    woken, waker = socket.socketpair()
    waker.setblocking(False)
    stopped = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stopped.set())
    signal.set_wakeup_fd(waker.fileno())
    started = {process: time.monotonic() for process in (start() for _ in range(count))}
    waits = delays(0.1, SOON_S)
    while not stopped.is_set():
        wait([woken, *(process.sentinel for process in started)])
        if stopped.is_set():
            break
        for process in [process for process in started if process.exitcode is not None]:
            logger.error("a worker ended with exit code %s, and is replaced", process.exitcode)
            if time.monotonic() - started.pop(process) > SOON_S:
                waits = delays(0.1, SOON_S)
            stopped.wait(next(waits))
            if not stopped.is_set():
                started[start()] = time.monotonic()
    for process in started:
        process.terminate()
    for process in started:
        process.join(GRACE_S + 5)
        process.kill()
    signal.set_wakeup_fd(-1)
    woken.close()
    waker.close()
