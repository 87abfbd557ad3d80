"""A pool that starts a worker process for whoever runs a job on this machine; it listens to this machine alone.

`python -m pipelines.beam.worker_pool PORT`
"""

from __future__ import annotations

import sys
import threading
from typing import Any

from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer

from pipelines.beam.loopback import confined


class Pool(BeamFnExternalWorkerPoolServicer):
    """Beam's pool, but nobody stops a worker by its name: it ends with the connection to its job.

    Two task managers of one machine give their workers the same names, and stopped each other's.
    """

    def StopWorker(self, *_: Any) -> Any:  # noqa: N802 - Beam's name
        """Agree."""
        return beam_fn_api_pb2.StopWorkerResponse()


if __name__ == "__main__":
    with confined():
        Pool.start(use_process=True, port=int(sys.argv[1]))
        threading.Event().wait()
