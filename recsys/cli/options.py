"""Options that several commands share, and how results are printed."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

ConfigFile = Annotated[
    Path,
    typer.Option("--config", envvar="RECSYS_CONFIG", metavar="FILE", help="The TOML config."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Override a setting; repeatable."),
]
ReleasePlace = Annotated[
    str | None,
    typer.Option("--release", metavar="PLACE", help="A release's folder or URL; without it, the champion."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]

CONFIG_DEFAULT = Path("recsys.toml")


def show(result: Any, as_json: bool, text: Callable[[], None]) -> None:
    """Print a result as one line of JSON, or as text for a person."""
    if as_json:
        typer.echo(json.dumps(result))
    else:
        text()


def typed(program: str) -> str:
    """A program as the reader can type it: by its name where it is found, else beside the one that runs."""
    if shutil.which(program):
        return program
    return os.path.relpath(Path(sys.argv[0]).with_name(program))
