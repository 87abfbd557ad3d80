"""Time limit of requests."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

Task = asyncio.Task[Any]


class TimeLimit:
    """Context manager that cancels the current task after a time and raises `TimeoutError`, as `asyncio.timeout` does.

    It may be entered by many tasks of an event loop at once, and has one timer for all of them: a timer for each would
    take a tenth of the time of a cached response.

    Args:
        seconds: the time.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._deadlines: dict[Task, float] = {}
        """Task -> deadline on the clock of the event loop, earliest first."""
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def __enter__(self) -> None:
        task = _current_task()
        loop = task.get_loop()
        if self._loop is not loop:
            self._loop, self._timer = loop, None
            self._deadlines.clear()
        self._deadlines[task] = deadline = loop.time() + self._seconds
        if self._timer is None:
            self._timer = loop.call_at(deadline, self._cancel_expired, loop)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        task = _current_task()
        is_expired = self._deadlines.pop(task, None) is None
        if is_expired and task.uncancel() == 0 and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _cancel_expired(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        self._timer = None
        for task, deadline in list(self._deadlines.items()):
            if deadline > now:
                self._timer = loop.call_at(deadline, self._cancel_expired, loop)
                return
            del self._deadlines[task]
            task.cancel()


def _current_task() -> Task:
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("a time limit must be entered by a task")
    return task
