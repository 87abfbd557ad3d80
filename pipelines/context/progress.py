"""Progress of the stages: a progress bar on a terminal, and one line per finished stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import rich.progress
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn

Advance = Callable[..., None]
"""Function that updates the progress bar: `advance(done, total=None, note="")`."""


class Progress:
    """Writes progress to standard error; standard output is reserved for results.

    Args:
        quiet: write nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False)

    @contextmanager
    def stage(self, name: str) -> Iterator[Advance]:
        """Show a progress bar while a stage runs, then write a line with its duration and its last note."""
        started = time.monotonic()
        columns = (
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )
        disabled = not self.console.is_terminal
        last_note = ""
        with rich.progress.Progress(*columns, console=self.console, transient=True, disable=disabled) as bar:
            task = bar.add_task(name, total=None, note="")

            def advance(done: int, total: int | None = None, note: str = "") -> None:
                nonlocal last_note
                last_note = note or last_note
                bar.update(task, completed=done, total=total, note=last_note)

            yield advance
        self.write(f"  {name:<9} {time.monotonic() - started:6.1f} s  {last_note}")

    def write(self, line: str) -> None:
        """Write one line."""
        self.console.print(line, markup=False, soft_wrap=True)
