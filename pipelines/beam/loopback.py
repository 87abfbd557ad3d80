"""Beam's servers, on loopback alone.

Beam binds the servers between a job and its workers to every interface, without a password, and whoever
reaches a worker pool can have it run code.

    python -m pipelines.beam.loopback MODULE ARGUMENTS…
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

HOST = "127.0.0.1"


@contextmanager
def confined() -> Iterator[None]:
    """What this process serves by gRPC is served to this machine alone."""
    import grpc  # noqa: PLC0415 - heavy, as Beam is
    from apache_beam.runners.portability.fn_api_runner import worker_handlers  # noqa: PLC0415

    handler: Any = worker_handlers.ExternalWorkerHandler
    everywhere, by_name = grpc.server, handler.host_from_worker

    def server(*args: Any, **kwargs: Any) -> Any:
        made = everywhere(*args, **kwargs)
        bind = made.add_insecure_port
        made.add_insecure_port = lambda address: bind(f"{HOST}:{address.rpartition(':')[2]}")
        return made

    grpc.server = server
    handler.host_from_worker = lambda _: HOST  # instead of the machine's name
    try:
        yield
    finally:
        grpc.server = everywhere
        handler.host_from_worker = by_name


if __name__ == "__main__":
    del sys.argv[0]
    with confined():
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
