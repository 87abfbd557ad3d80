"""Options that several commands share, and what they print."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from recsys.config.senses import Sense
from recsys.errors import ConfigError

ConfigFile = Annotated[
    Path,
    typer.Option("--config", envvar="RECSYS_CONFIG", metavar="FILE", help="The TOML config."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Override a setting; repeatable."),
]
ReleaseLocation = Annotated[
    str | None,
    typer.Option("--release", metavar="LOCATION", help="Folder or URL of a release; by default the champion."),
]
SenseOption = Annotated[
    Sense, typer.Option("--sense", help="Sense of similarity: items that are alike (similar), or used together (next).")
]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Reason to record in the promotion history.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]

CONFIG_DEFAULT = Path("recsys.toml")


def print_result(result: Any, as_json: bool, print_text: Callable[[], None]) -> None:
    """Print a result as one line of JSON, or as text."""
    if as_json:
        typer.echo(json.dumps(result))
    else:
        print_text()


@contextmanager
def extras(user: str, *names: str) -> Iterator[None]:
    """Name the extras to install where an import fails.

    Args:
        user: what needs them.
        names: extras of the distribution.

    Raises:
        ConfigError: a module is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{user} needs {error.name}, which is not installed. Install recsys[{','.join(names)}]."
        ) from None


def program_path(program: str) -> str:
    """Return a program as a user can type it: its name if it is on the PATH, else its path beside this program."""
    if shutil.which(program):
        return program
    return os.path.relpath(Path(sys.argv[0]).with_name(program))
