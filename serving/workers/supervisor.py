"""Processes of the service: a supervisor, which also polls the champion, and workers, which answer requests.

Workers are spawned, not forked. They share the listening socket and the memory-mapped files of the index and the
embeddings. The supervisor replaces workers that end. If the supervisor ends or is killed, all workers end.
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
from typing import TYPE_CHECKING

from recsys.config.sections import ServeConfig
from recsys.errors import ConfigError
from serving.live.item_changes import ITEM_CHANGES_FILE, ItemChanges
from serving.middleware.api_keys import ApiKeys
from serving.middleware.environment import METRICS_FOLDER, is_tracing
from serving.middleware.logs import LOGGING_CONFIG
from serving.workers.backoff import backoff_delays
from serving.workers.champion_watcher import ChampionWatcher, Source
from serving.workers.target import LAST_SERVED_FILE, TARGET_FILE, read_target

if TYPE_CHECKING:
    from serving.live.live_release import Embed

logger = logging.getLogger(__name__)

BACKLOG = 2_048
SHUTDOWN_TIMEOUT_S = 30
"""Maximum seconds to complete running requests when the service stops."""
STABLE_AFTER_S = 10.0
"""Seconds that a worker must run; workers that end earlier are restarted with increasing delays."""
FIRST_DELAY_S = 0.1
"""Seconds before the first restart of a worker."""


@dataclass(frozen=True)
class WorkerSettings:
    """Settings that are sent to a worker process."""

    config: ServeConfig
    folder: Path
    is_persistent: bool
    """Whether the folder remains after the service stops; otherwise item changes are rejected."""
    embed: Embed | None


def run(source: Source, config: ServeConfig, folder: Path | None, embed: Embed | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then complete running requests.

    Args:
        source: returns the releases to serve.
        config: settings of the service.
        folder: folder of the target file and the item changes. If None, a temporary folder is used and item changes are
            rejected.
        embed: computes embeddings of new items from their features.

    Raises:
        RecsysError: there is no release to serve, or a setting is invalid.
    """
    logging.config.dictConfig(LOGGING_CONFIG)
    with tempfile.TemporaryDirectory(prefix="recsys-") as temporary:
        settings = WorkerSettings(config, folder or Path(temporary), folder is not None, embed)
        settings.folder.mkdir(parents=True, exist_ok=True)
        ApiKeys(keys_path(config))  # raises the error of an invalid setting here, not in each worker
        if is_tracing():
            from serving.middleware.tracing import create_tracer  # noqa: PLC0415 - slow to import

            create_tracer()
        metrics_folder = Path(temporary) / "metrics"
        metrics_folder.mkdir()
        os.environ[METRICS_FOLDER] = str(metrics_folder)
        if settings.is_persistent:
            ItemChanges(settings.folder / ITEM_CHANGES_FILE).close()  # create the file before several workers open it
        with _listening(config.host, config.port) as listener:
            watcher = ChampionWatcher(source, settings.folder, config.poll_seconds)
            watcher.start()

            def verify() -> None:
                _verify_target(settings.folder)
                host, port = listener.getsockname()[:2]
                logger.info("running on http://%s:%d", f"[{host}]" if ":" in host else host, port)

            _supervise(lambda: _start(settings, listener), config.workers, verify)
            watcher.stop()


def _verify_target(folder: Path) -> None:
    """Load the release to serve if none was served before, because then the workers cannot serve any other.

    Raises:
        ReleaseError: the release is invalid.
    """
    if not (folder / LAST_SERVED_FILE).exists():
        from recsys.release.bundle import Release  # noqa: PLC0415 - while the workers import the same libraries

        Release.load(read_target(folder / TARGET_FILE).champion)


def keys_path(config: ServeConfig) -> Path | None:
    """Return the file of API keys, if any."""
    return None if config.keys is None else Path(config.keys)


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """Listen on a socket before the workers run, so that early clients wait instead of failing."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"serve.host and serve.port must be a free address. Received: {host}:{port}: {error}."
            ) from None
        listener.listen(BACKLOG)
        yield listener


def _start(settings: WorkerSettings, listener: socket.socket) -> SpawnProcess:
    process = multiprocessing.get_context("spawn").Process(target=_work, args=(settings, listener))
    process.start()
    return process


def _work(settings: WorkerSettings, listener: socket.socket) -> None:
    from serving.workers.worker import work  # noqa: PLC0415 - in the process of the worker only

    work(settings, listener)


def _supervise(start: Callable[[], SpawnProcess], count: int, verify: Callable[[], None]) -> None:
    """Keep `count` processes running until SIGTERM or SIGINT, then stop them; also if `verify` raises an error."""
    wake_receiver, wake_sender = socket.socketpair()
    wake_sender.setblocking(False)
    stopped = threading.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, lambda *_: stopped.set())
    signal.set_wakeup_fd(wake_sender.fileno())
    started_at = {process: time.monotonic() for process in (start() for _ in range(count))}
    try:
        verify()
        _replace_ended(start, started_at, stopped, wake_receiver)
    finally:
        for process in started_at:
            process.terminate()
        for process in started_at:
            process.join(SHUTDOWN_TIMEOUT_S + 5)
            process.kill()
        signal.set_wakeup_fd(-1)
        wake_receiver.close()
        wake_sender.close()


def _replace_ended(
    start: Callable[[], SpawnProcess],
    started_at: dict[SpawnProcess, float],
    stopped: threading.Event,
    wake_receiver: socket.socket,
) -> None:
    """Replace processes that end, until the event is set."""
    delays = backoff_delays(FIRST_DELAY_S, STABLE_AFTER_S)
    while not stopped.is_set():
        wait([wake_receiver, *(process.sentinel for process in started_at)])
        if stopped.is_set():
            break
        for process in [process for process in started_at if process.exitcode is not None]:
            logger.error("a worker ended with exit code %s and is replaced", process.exitcode)
            if time.monotonic() - started_at.pop(process) > STABLE_AFTER_S:
                delays = backoff_delays(FIRST_DELAY_S, STABLE_AFTER_S)
            stopped.wait(next(delays))
            if not stopped.is_set():
                started_at[start()] = time.monotonic()
