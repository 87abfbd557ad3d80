"""`recsys similar`: ask a release from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from recsys.cli.options import CONFIG_DEFAULT, ConfigFile, Json, ReleasePlace, show

if TYPE_CHECKING:
    from recsys.release.bundle import Release
    from recsys.retrieval.results import SearchResult


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("similar")(similar)


def similar(
    items: Annotated[list[str], typer.Argument(metavar="ITEM…", help="Item ids.")],
    k: Annotated[int, typer.Option("--k", min=1, help="Neighbors of each.")] = 10,
    release: ReleasePlace = None,
    config: ConfigFile = CONFIG_DEFAULT,
    as_json: Json = False,
) -> None:
    """Show the items most like one item or several, each by itself."""
    loaded = open_release(release, config)
    results = [loaded.similar(item, k) for item in items]
    plain = [result.to_dict() for result in results]
    show(plain if len(plain) > 1 else plain[0], as_json, lambda: _tell(results))


def open_release(place: str | None, config: Path) -> Release:
    """A given release, or the champion of a config.

    Raises:
        ReleaseError: it does not verify, or there is no champion yet.
        InputError: the store of a URL is away, or refuses.
    """
    from recsys.release import remote as depot  # noqa: PLC0415

    if place is not None:
        return depot.load(place)
    from recsys.config.loading import load_config  # noqa: PLC0415
    from recsys.errors import ReleaseError  # noqa: PLC0415
    from recsys.release.mlflow_registry import Tracker  # noqa: PLC0415

    checked = load_config(config)
    tracker = Tracker(checked)
    champion = tracker.champion()
    if champion is None:
        raise ReleaseError(
            f"model {checked.tracking.model} must have a champion. Received: none at {tracker.shown_uri}. "
            f"Run: recsys nightly --config {config}"
        )
    return depot.load(str(tracker.fetch(champion, checked.workspace / "releases")))


def _tell(results: list[SearchResult]) -> None:
    console = Console(highlight=False)
    for result in results:
        name = result.title or result.item_id
        table = Table(title=f"More like {name} ({result.item_id})", title_justify="left")
        table.add_column("", justify="right")
        table.add_column("similarity", justify="right")
        table.add_column("item")
        table.add_column("title")
        for neighbor in result.neighbors:
            table.add_row(str(neighbor.rank), f"{neighbor.similarity:.3f}", neighbor.item_id, neighbor.title or "")
        console.print(table)
