"""`recsys data`: public data in our format, with a config that fits it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from recsys.cli.options import typed

app = typer.Typer(help="Fetch or convert public data.", no_args_is_help=True)

Output = Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder for the data and its config.")]


@app.command("movielens-100k")
def movielens_100k(output: Output) -> None:
    """Fetch MovieLens 100k: 943 users, 1,682 films, 100,000 ratings."""
    from recsys.data import datasets  # noqa: PLC0415

    with Console(stderr=True).status("Fetching MovieLens 100k"):
        config = datasets.movielens_100k(output)
    _next(config)


@app.command("sequences")
def sequences(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="One user a line: user item item …, oldest first.")],
    output: Output,
    attributes: Annotated[
        Path | None, typer.Option("--attributes", metavar="FILE", help="JSON: item id to a list of attribute ids.")
    ] = None,
) -> None:
    """Convert a file of item sequences."""
    from recsys.data import datasets  # noqa: PLC0415

    _next(datasets.sequences(file, attributes, output))


def _next(config: Path) -> None:
    typer.echo(f"Wrote interactions and items beside {config}")
    typer.echo(f"Next: {typed('recsys')} nightly --config {config}")
