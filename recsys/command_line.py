"""The command line `recsys`.

Each package brings its own commands, which `pyproject.toml` lists as entry points of the group `recsys.commands`. A
command module is imported when its command is used or listed, and imports its libraries when the command runs.

Exit codes: 0 success; 1 the command failed, or the gate rejected the release; 2 the input, the config or the command
line is invalid.
"""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, distribution
from typing import Any

import typer
from typer.core import TyperGroup

from recsys.errors import RecsysError

ENTRY_POINTS = "recsys.commands"
PANELS = {"pipelines": "Pipeline", "recsys": "Releases and data", "serving": "Service"}
"""Heading of a command in the help, by its package."""


class CommandGroup(TyperGroup):
    """The installed commands."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands, ordered by heading."""
        del ctx
        return sorted(_entry_points(), key=lambda name: (*PANELS,).index(_package(_entry_points()[name])))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import a command, or return None if there is none of this name."""
        del ctx
        entry_point = _entry_points().get(cmd_name)
        return None if entry_point is None else _command(entry_point)


app = typer.Typer(
    cls=CommandGroup,
    name="recsys",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


@app.callback()
def recsys() -> None:
    """Similar-item recommendations: a nightly pipeline that trains a siamese tower, and a query service."""


def main() -> None:
    """Run a command; an expected error is printed as one message, without a traceback."""
    try:
        app()
    except RecsysError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:  # such as a full disk: the message of the operating system says enough
        typer.echo(f"error: {error}", err=True)
        sys.exit(RecsysError.exit_code)


def _entry_points() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in distribution("recsys").entry_points.select(group=ENTRY_POINTS)}


def _package(entry_point: EntryPoint) -> str:
    return entry_point.module.partition(".")[0]


def _command(entry_point: EntryPoint) -> Any:
    """Import a command: a function, or a `typer.Typer` with commands of its own."""
    loaded = entry_point.load()
    parent = typer.Typer(rich_markup_mode="markdown")
    panel = PANELS[_package(entry_point)]
    if isinstance(loaded, typer.Typer):
        parent.add_typer(loaded, name=entry_point.name, rich_help_panel=panel)
    else:
        parent.command(entry_point.name, rich_help_panel=panel)(loaded)
    parent.callback()(recsys)  # a single command would not be a group otherwise
    return typer.main.get_group(parent).commands[entry_point.name]
