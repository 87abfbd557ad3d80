"""Beam's worker pool, bound to loopback: starts a process for each worker of a job on this machine.

`python -m pipelines.beam.worker_pool PORT`
"""

from __future__ import annotations

import sys
import threading
from typing import Any

from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer

from pipelines.beam.loopback import bind_loopback_only


class Pool(BeamFnExternalWorkerPoolServicer):
    """Beam's worker pool without stopping workers by name: a worker ends when the connection to its job ends.

    Two task managers on one machine use the same worker names, and would stop the workers of each other.
    """

    def StopWorker(self, *_: Any) -> Any:  # noqa: N802 - Beam's name
        """Report success without stopping the worker."""
        return beam_fn_api_pb2.StopWorkerResponse()


if __name__ == "__main__":
    with bind_loopback_only():
        Pool.start(use_process=True, port=int(sys.argv[1]))
        threading.Event().wait()
