"""What a person sees while a stage works: a bar on a terminal, one line a stage everywhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

Advance = Callable[..., None]
"""`advance(done, total=None, note="")`."""


class Reporter:
    """Writes to standard error, so that standard output stays for results.

    Args:
        quiet: write nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False)

    @contextmanager
    def stage(self, name: str) -> Iterator[Advance]:
        """Show a stage from its start to its end; the last note stays in its line."""
        started = time.monotonic()
        columns = (
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )
        last_note = ""
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bar:
            task = bar.add_task(name, total=None, note="")

            def advance(done: int, total: int | None = None, note: str = "") -> None:
                nonlocal last_note
                last_note = note or last_note
                bar.update(task, completed=done, total=total, note=last_note)

            yield advance
        self.say(f"  {name:<9} {time.monotonic() - started:6.1f} s  {last_note}")

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, markup=False, soft_wrap=True)
