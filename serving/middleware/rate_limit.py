"""How often each key may ask, counted over all workers of a machine in a small file that they map.

A key has one number, the time at which it will have used up what it is due (the "generic cell rate algorithm"). A
request moves it on by the time that one request is worth, and is refused where it would run a second ahead.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import struct
import time
from collections.abc import Callable
from pathlib import Path

RATES = "rates"
SLOTS = 4_096
"""Keys that fall into one slot share it."""
NUMBER = struct.Struct("<d")
AHEAD_S = 1.0
"""What a key may use at once."""


class Rates:
    """The rates of a service.

    Args:
        path: the file. Its content means nothing once the machine was started anew.
        rate: requests a second of each key.
        clock: seconds, the same for all processes of the machine.
    """

    def __init__(self, path: Path, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._cost_s = 1 / rate
        self._ahead_s = max(AHEAD_S, self._cost_s)
        self._clock = clock
        self._file = path.open("a+b")
        self._file.truncate(SLOTS * NUMBER.size)
        self._slots = mmap.mmap(self._file.fileno(), SLOTS * NUMBER.size)

    def wait_s(self, name: str) -> float:
        """Count one request of a key: 0 where it is due, else the seconds until it will be, and it is not counted."""
        slot = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % SLOTS * NUMBER.size
        fcntl.lockf(self._file, fcntl.LOCK_EX, NUMBER.size, slot)
        try:
            now = self._clock()
            (used,) = NUMBER.unpack_from(self._slots, slot)
            used = min(max(used, now), now + self._ahead_s)  # the clock of another start is nonsense
            early = used + self._cost_s - now - self._ahead_s
            NUMBER.pack_into(self._slots, slot, used if early > 0 else used + self._cost_s)
            return max(0.0, float(early))
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, NUMBER.size, slot)

    def close(self) -> None:
        """Close the file."""
        self._slots.close()
        self._file.close()
