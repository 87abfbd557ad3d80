"""A worker process, which answers requests. The supervisor does not import this module, which takes a second."""

from __future__ import annotations

import gc
import logging.config
import multiprocessing
import os
import signal
import socket
import threading
from multiprocessing.connection import wait
from typing import Any

import uvicorn

from serving.app import create_app
from serving.live.item_changes import ITEM_CHANGES_FILE, ItemChanges
from serving.live.loaded_releases import LoadedReleases
from serving.live.state import State
from serving.middleware.api_keys import ApiKeys
from serving.middleware.logs import LOGGING_CONFIG
from serving.middleware.metrics import Metrics
from serving.middleware.rate_limit import RATE_LIMIT_FILE, RateLimiter
from serving.workers.release_loader import ReleaseLoader
from serving.workers.supervisor import BACKLOG, SHUTDOWN_TIMEOUT_S, WorkerSettings, keys_path

MAX_CHECK_INTERVAL_S = 1.0
"""Maximum seconds between two checks of the target file."""


def work(settings: WorkerSettings, listener: socket.socket) -> None:
    """Answer requests until SIGTERM or SIGINT."""
    logging.config.dictConfig(LOGGING_CONFIG)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    config = settings.config
    item_changes = ItemChanges(settings.folder / ITEM_CHANGES_FILE) if settings.is_persistent else None
    rate_limiter = None if config.rate is None else RateLimiter(settings.folder / RATE_LIMIT_FILE, config.rate)
    state = State(LoadedReleases(config.keep_seconds), config, Metrics(), item_changes, settings.embed)
    ReleaseLoader(state, settings.folder, min(MAX_CHECK_INTERVAL_S, config.poll_seconds)).start()
    app = create_app(state, ApiKeys(keys_path(config)), rate_limiter)
    gc.collect()
    gc.freeze()  # modules and the release live long; visiting them would stop the worker for tens of milliseconds
    options: dict[str, Any] = {"log_config": None, "access_log": False, "lifespan": "off", "backlog": BACKLOG}
    uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S, **options)).run([listener])


def _end_with_parent() -> None:
    """Stop this worker when its parent process ends, because nothing else would stop it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
