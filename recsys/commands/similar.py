"""`recsys similar`: query a release from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from recsys.commands.options import CONFIG_DEFAULT, ConfigFile, Json, ReleaseLocation, SenseOption, print_result

if TYPE_CHECKING:
    from recsys.release.bundle import Release
    from recsys.retrieval.results import SearchResult


def similar(
    items: Annotated[list[str], typer.Argument(metavar="ITEM…", help="Item ids; each is a separate query.")],
    k: Annotated[int, typer.Option("--k", min=1, help="Number of neighbors of each item.")] = 10,
    *,
    sense: SenseOption = "similar",
    release: ReleaseLocation = None,
    config: ConfigFile = CONFIG_DEFAULT,
    as_json: Json = False,
) -> None:
    """Show the nearest neighbors of each of the given items."""
    loaded = open_release(release, config)
    results = [loaded.similar(item, k, sense) for item in items]
    plain = [result.to_dict() for result in results]
    print_result(plain if len(plain) > 1 else plain[0], as_json, lambda: _print(results))


def open_release(location: str | None, config_file: Path) -> Release:
    """Load the release at a location, or the champion of a config.

    Raises:
        ReleaseError: the release is damaged, or there is no champion yet.
        InputError: the store of a URL does not answer.
    """
    from recsys.release import remote  # noqa: PLC0415

    if location is not None:
        return remote.load(location)
    from recsys.config.loading import load_config  # noqa: PLC0415
    from recsys.config.urls import Address  # noqa: PLC0415
    from recsys.errors import ReleaseError  # noqa: PLC0415
    from recsys.release import aliases  # noqa: PLC0415
    from recsys.release.versions import CHAMPION  # noqa: PLC0415

    config = load_config(config_file)
    champion = aliases.fetch(config, CHAMPION)
    if champion is None:
        raise ReleaseError(
            f"model {config.tracking.model} must have a champion. Received: none at "
            f"{Address(config.tracking_uri).shown}. Run: recsys nightly --config {config_file}"
        )
    return remote.load(str(champion))


def _print(results: list[SearchResult]) -> None:
    console = Console(highlight=False)
    for result in results:
        name = f"{result.title} ({result.item_id})" if result.title else result.item_id
        table = Table(title=f"Neighbors of {name}", title_justify="left")
        table.add_column("rank", justify="right")
        table.add_column("similarity", justify="right")
        table.add_column("item")
        table.add_column("title")
        for neighbor in result.neighbors:
            table.add_row(str(neighbor.rank), f"{neighbor.similarity:.3f}", neighbor.item_id, neighbor.title or "")
        console.print(table)
