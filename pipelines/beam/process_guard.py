"""Run a server that ends with its parent process, even if the parent is killed.

    python -m pipelines.beam.process_guard COMMAND…

The server runs until standard input is closed, which also happens when the parent process dies. Then its process
group, including the workers that it started, receives SIGTERM, and SIGKILL after a grace period.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

GRACE_S = 5


def main() -> None:
    """Run the command until it ends or standard input is closed, then kill its process group."""
    with subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True) as server:
        threading.Thread(target=_end_with_parent, args=[server], daemon=True).start()
        server.wait()
    _signal(server, signal.SIGKILL)


def _end_with_parent(server: subprocess.Popen[bytes]) -> None:
    os.read(sys.stdin.fileno(), 1)  # nothing is written to standard input, so this returns when it is closed
    _signal(server, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        server.wait(GRACE_S)
    _signal(server, signal.SIGKILL)


def _signal(server: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(server.pid, number)


if __name__ == "__main__":
    main()
