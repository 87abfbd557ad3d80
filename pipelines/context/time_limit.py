"""The time that a night may take: no stage begins that cannot fit, and none goes on when the time is over."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from recsys.errors import StageError


class _OutOfTimeError(KeyboardInterrupt):
    """As if a person had interrupted the stage: what it finished of its units stays."""


class Budget:
    """Minutes from now on.

    Args:
        minutes: None is no limit.
    """

    def __init__(self, minutes: float | None = None) -> None:
        self.minutes = minutes
        self._end = None if minutes is None else time.monotonic() + 60 * minutes

    def require(self, stage: str, seconds: float) -> None:
        """Refuse to begin what took `seconds` last time, 0 where nobody knows.

        Raises:
            StageError: it would not fit.
        """
        if self._end is None:
            return
        left = self._end - time.monotonic()
        if left <= 0 or seconds > left:
            took = f", and it took {seconds:.0f} s last time" if seconds else ""
            raise StageError(
                f"stage {stage} must fit into --max-minutes {self.minutes:g}. Received: {max(left, 0):.0f} s "
                f"were left{took}. The stages before are kept: the same command goes on from here."
            )

    @contextmanager
    def enforced(self, stage: str) -> Iterator[None]:
        """Interrupt a stage when the time is over; only the main thread of a process can be.

        Raises:
            StageError: it was.
        """
        if self._end is None or threading.current_thread() is not threading.main_thread():
            yield
            return

        def ring(*_: Any) -> None:
            raise _OutOfTimeError

        before = signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, max(self._end - time.monotonic(), 0.001))
        try:
            yield
        except _OutOfTimeError:
            raise StageError(
                f"stage {stage} must end within --max-minutes {self.minutes:g}. Received: it was not done by then. "
                "What it finished is kept: the same command goes on from here."
            ) from None
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
