"""`recsys data`: public data sets in the input format, with a config for each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from recsys.commands.options import program_path

app = typer.Typer(help="Download or convert public data sets.", no_args_is_help=True)

Output = Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder for the data and its config.")]


@app.command("movielens-100k")
def movielens_100k(output: Output) -> None:
    """Download MovieLens 100k: 943 users, 1,682 movies, 100,000 ratings."""
    from recsys.data import datasets  # noqa: PLC0415

    with Console(stderr=True).status("Downloading MovieLens 100k"):
        config = datasets.movielens_100k(output)
    _print_next_step(config)


@app.command("sequences")
def sequences(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="One line per user: USER ITEM ITEM …, oldest item first.")
    ],
    output: Output,
    attributes: Annotated[
        Path | None,
        typer.Option("--attributes", metavar="FILE", help="JSON object: item id -> list of attribute ids."),
    ] = None,
) -> None:
    """Convert a file of item sequences."""
    from recsys.data import datasets  # noqa: PLC0415

    _print_next_step(datasets.sequences(file, attributes, output))


def _print_next_step(config: Path) -> None:
    typer.echo(f"Wrote interactions and items to {config.parent}, and the config {config}")
    typer.echo(f"Next: {program_path('recsys')} nightly --config {config}")
