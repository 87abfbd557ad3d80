"""Bind Beam's gRPC servers to loopback only.

By default, the servers between a job and its workers bind to all interfaces without authentication, and any client of
a worker pool can run code.

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
def bind_loopback_only() -> Iterator[None]:
    """Bind all gRPC servers that are created in the `with` block to loopback."""
    import grpc  # noqa: PLC0415 - heavy, as Beam is
    from apache_beam.runners.portability.fn_api_runner import worker_handlers  # noqa: PLC0415

    handler: Any = worker_handlers.ExternalWorkerHandler
    original_server, original_host = grpc.server, handler.host_from_worker

    def server(*args: Any, **kwargs: Any) -> Any:
        created = original_server(*args, **kwargs)
        bind = created.add_insecure_port
        created.add_insecure_port = lambda address: bind(f"{HOST}:{address.rpartition(':')[2]}")
        return created

    grpc.server = server
    handler.host_from_worker = lambda _: HOST  # instead of the host name
    try:
        yield
    finally:
        grpc.server = original_server
        handler.host_from_worker = original_host


if __name__ == "__main__":
    del sys.argv[0]
    with bind_loopback_only():
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
