"""Ends a server with whoever started it, however that ends: a killed night leaves no server behind.

    python -m pipelines.beam.process_guard COMMAND…

The server runs until standard input is closed, which the starter's death does too. Then its whole process
group, with the workers that it started, is asked to end, and soon after made to.
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
    """Run the command until standard input ends, or the command does; nothing of it is left."""
    with subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True) as server:
        threading.Thread(target=_end_with_starter, args=[server], daemon=True).start()
        server.wait()
    _signal(server, signal.SIGKILL)


def _end_with_starter(server: subprocess.Popen[bytes]) -> None:
    os.read(sys.stdin.fileno(), 1)  # nobody writes: it returns at the end
    _signal(server, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        server.wait(GRACE_S)
    _signal(server, signal.SIGKILL)


def _signal(server: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(server.pid, number)


if __name__ == "__main__":
    main()
