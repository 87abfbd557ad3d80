"""`recsys keys`: API keys of the look-up service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recsys.errors import InputError

app = typer.Typer(help="Make API keys of the service.", no_args_is_help=True)


@app.callback()
def keys() -> None:
    """Make API keys of the service."""


@app.command("new")
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is; stands in the log.")],
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="Add its line to serve.keys; else print it.")
    ] = None,
    *,
    write: Annotated[bool, typer.Option("--write", help="The key may also change items and take them down.")] = False,
) -> None:
    """Make a key and show it, once. What is kept is a hash; remove its line, and the key is no longer let in."""
    from serving.middleware import api_keys as keys  # noqa: PLC0415

    secret, key = keys.new(name, "write" if write else "read")
    if file is None:
        typer.echo(f"line for the file of serve.keys, or for {keys.VARIABLE}: {key.line}", err=True)
    else:
        try:
            with file.open("a", encoding="utf-8") as lines:
                lines.write(f"{key.line}\n")
        except OSError as error:
            raise InputError(f"--file must be a file that we may write to. Received: {error}.") from None
    typer.echo(secret)
