"""Rate limit of each API key, shared by all workers of a machine through a small memory-mapped file.

The file has one number per key, its theoretical arrival time ("generic cell rate algorithm"). Each request advances
it by the interval of one request. A request is rejected if that would put it more than one second ahead of the clock.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import struct
import time
from collections.abc import Callable
from pathlib import Path

RATE_LIMIT_FILE = "rate_limit"
SLOTS = 4_096
"""Number of slots in the file. Keys whose hash gives the same slot share a limit."""
NUMBER = struct.Struct("<d")
BURST_S = 1.0
"""A key may send the requests of this many seconds at once."""


class RateLimiter:
    """Limits the number of requests per second of each API key.

    Args:
        path: the file. Its content is valid until the machine restarts.
        rate: requests per second of each key.
        clock: returns seconds; the same for all processes of the machine.
    """

    def __init__(self, path: Path, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = 1 / rate
        self._burst_s = max(BURST_S, self._interval_s)
        self._clock = clock
        self._file = path.open("a+b")
        self._file.truncate(SLOTS * NUMBER.size)
        self._slots = mmap.mmap(self._file.fileno(), SLOTS * NUMBER.size)

    def acquire(self, key_name: str) -> float:
        """Count one request of a key.

        Returns:
            0 if the request is within the limit; otherwise the seconds until it would be. Then it is not counted.
        """
        slot = int.from_bytes(hashlib.sha256(key_name.encode()).digest()[:4], "big") % SLOTS * NUMBER.size
        fcntl.lockf(self._file, fcntl.LOCK_EX, NUMBER.size, slot)
        try:
            now = self._clock()
            (arrival,) = NUMBER.unpack_from(self._slots, slot)
            arrival = min(max(arrival, now), now + self._burst_s)  # after a restart of the machine it is meaningless
            wait_s = arrival + self._interval_s - now - self._burst_s
            NUMBER.pack_into(self._slots, slot, arrival if wait_s > 0 else arrival + self._interval_s)
            return max(0.0, float(wait_s))
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, NUMBER.size, slot)

    def close(self) -> None:
        """Close the file."""
        self._slots.close()
        self._file.close()
