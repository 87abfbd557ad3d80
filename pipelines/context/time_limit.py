"""The time limit of a run: no stage starts that cannot finish in time, and a stage is interrupted at the limit."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from recsys.errors import StageError

RESUME = "Finished work is kept: the same command resumes."


class _TimeLimitError(KeyboardInterrupt):
    """Interrupts a stage as a user would, so that its finished units are kept."""


class TimeLimit:
    """A number of minutes, counted from now.

    Args:
        minutes: None is no limit.
    """

    def __init__(self, minutes: float | None = None) -> None:
        self.minutes = minutes
        self._end = None if minutes is None else time.monotonic() + 60 * minutes

    def require(self, stage: str, seconds: float) -> None:
        """Check that a stage can finish in time.

        Args:
            stage: its name, for the message.
            seconds: its duration in an earlier run; 0 if unknown.

        Raises:
            StageError: less time than that is left.
        """
        if self._end is None:
            return
        left = self._end - time.monotonic()
        if left <= 0 or seconds > left:
            earlier = f", and the stage took {seconds:.0f} s last time" if seconds else ""
            raise StageError(
                f"stage {stage} must finish within --max-minutes {self.minutes:g}. Received: {max(left, 0):.0f} s "
                f"left{earlier}. {RESUME}"
            )

    @contextmanager
    def enforce(self, stage: str) -> Iterator[None]:
        """Interrupt a stage at the limit. Only the main thread of a process can be interrupted.

        Raises:
            StageError: the stage was interrupted.
        """
        if self._end is None or threading.current_thread() is not threading.main_thread():
            yield
            return

        def interrupt(*_: Any) -> None:
            raise _TimeLimitError

        previous = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, max(self._end - time.monotonic(), 0.001))
        try:
            yield
        except _TimeLimitError:
            raise StageError(
                f"stage {stage} must finish within --max-minutes {self.minutes:g}. Received: it was interrupted at the "
                f"limit. {RESUME}"
            ) from None
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
