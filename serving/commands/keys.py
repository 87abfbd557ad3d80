"""`recsys keys`: API keys of the service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recsys.errors import InputError

app = typer.Typer(help="Create API keys for the service.", no_args_is_help=True)


@app.callback()
def keys() -> None:
    """Create API keys for the service."""


@app.command("new")
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Owner of the key, as written to the log.")],
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", metavar="FILE", help="Append the line of the key to this file; see the setting serve.keys."
        ),
    ] = None,
    *,
    write: Annotated[bool, typer.Option("--write", help="Allow the key to change and remove items.")] = False,
) -> None:
    """Create a key and print it once.

    Only a hash of the key is stored. To revoke the key, remove its line.
    """
    from serving.middleware import api_keys  # noqa: PLC0415

    secret, key = api_keys.create_key(name, "write" if write else "read")
    if file is None:
        typer.echo(f"line for the file of serve.keys, or for {api_keys.VARIABLE}: {key.line}", err=True)
    else:
        try:
            with file.open("a", encoding="utf-8") as lines:
                lines.write(f"{key.line}\n")
        except OSError as error:
            raise InputError(f"--file must be a writable file. Received: {error}.") from None
    typer.echo(secret)
