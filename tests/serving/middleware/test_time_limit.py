"""The time limit of requests, which many tasks enter at once."""

from __future__ import annotations

import asyncio

import pytest

from serving.middleware.time_limit import TimeLimit


def test_task_that_exceeds_the_limit_is_cancelled_and_the_others_continue() -> None:
    """The first task has finished when its time is over, so the timer is set again for the second."""
    limit = TimeLimit(0.02)
    ended = []

    async def run(name: str, event: asyncio.Event) -> None:
        try:
            with limit:
                await event.wait()
        except TimeoutError:
            ended.append(f"{name} timed out")
        else:
            ended.append(name)
        await asyncio.sleep(0)  # the task itself is not cancelled

    async def main() -> None:
        short, never = asyncio.Event(), asyncio.Event()
        short.set()
        await run("short", short)
        await asyncio.gather(run("long", never), run("short", short), run("longer", never))
        await run("again", never)

    asyncio.run(main())
    assert ended == ["short", "short", "long timed out", "longer timed out", "again timed out"]


def test_limit_applies_in_another_event_loop() -> None:
    limit = TimeLimit(0.01)

    async def enter(*, waits: bool) -> None:
        with limit:
            if waits:
                await asyncio.Event().wait()

    asyncio.run(enter(waits=False))
    with pytest.raises(TimeoutError):
        asyncio.run(enter(waits=True))


def test_other_errors_and_cancellations_are_not_changed() -> None:
    async def main() -> None:
        limit = TimeLimit(60)
        with pytest.raises(ValueError, match="own"), limit:
            raise ValueError("own")

        async def wait() -> None:
            with limit:
                await asyncio.Event().wait()

        task = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
