"""Time limit of a run: a stage starts only if it can finish in time, and is interrupted at the limit."""

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
    """Raised at the limit. A stage handles it like Ctrl-C, so its finished units are kept."""


class TimeLimit:
    """A time limit that starts when the object is created.

    Args:
        minutes: the limit; None means no limit.
    """

    def __init__(self, minutes: float | None = None) -> None:
        self.minutes = minutes
        self._end = None if minutes is None else time.monotonic() + 60 * minutes

    def require(self, stage: str, seconds: float) -> None:
        """Check that a stage can finish in time.

        Args:
            stage: name of the stage, for the message.
            seconds: duration of the stage in an earlier run; 0 if unknown.

        Raises:
            StageError: the remaining time is shorter.
        """
        if self._end is None:
            return
        remaining = self._end - time.monotonic()
        if remaining <= 0 or seconds > remaining:
            earlier = f", and the stage took {seconds:.0f} s last time" if seconds else ""
            raise StageError(
                f"stage {stage} must finish within --max-minutes {self.minutes:g}. Received: {max(remaining, 0):.0f} s "
                f"left{earlier}. {RESUME}"
            )

    @contextmanager
    def enforce(self, stage: str) -> Iterator[None]:
        """Interrupt a stage at the limit; do nothing in threads other than the main thread.

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
