"""`recsys together`: what users interact with after an item, from the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from recsys.commands.options import CONFIG_DEFAULT, ConfigFile, Json, ReleaseLocation, print_result
from recsys.commands.similar import open_release

if TYPE_CHECKING:
    from recsys.retrieval.results import TogetherResult


def together(
    items: Annotated[list[str], typer.Argument(metavar="ITEM…", help="Item ids; each is a separate query.")],
    k: Annotated[int, typer.Option("--k", min=1, help="Number of neighbors of each item.")] = 10,
    *,
    min_users: Annotated[
        int,
        typer.Option(
            "--min-users", min=0, help="Smallest number of users who interacted with the item and then the neighbor."
        ),
    ] = 0,
    release: ReleaseLocation = None,
    config: ConfigFile = CONFIG_DEFAULT,
    as_json: Json = False,
) -> None:
    """Show what users interact with after each of the given items.

    Neighbors are ranked by their confidence, which the embeddings smooth where there are few users.
    """
    loaded = open_release(release, config)
    results = [loaded.together(item, k, min_users=min_users) for item in items]
    plain = [result.to_dict() for result in results]
    print_result(plain if len(plain) > 1 else plain[0], as_json, lambda: _print(results))


def _print(results: list[TogetherResult]) -> None:
    console = Console(highlight=False)
    for result in results:
        name = f"{result.title} ({result.item_id})" if result.title else result.item_id
        table = Table(title=f"After {name}, {result.users:,} users", title_justify="left")
        for column in ("rank", "users", "confidence", "lift", "score"):
            table.add_column(column, justify="right")
        table.add_column("item")
        table.add_column("title")
        for neighbor in result.neighbors:
            figures = (f"{neighbor.users:,}", f"{neighbor.confidence:.3f}", f"{neighbor.lift:.1f}")
            score = f"{neighbor.score:.4f}"
            table.add_row(str(neighbor.rank), *figures, score, neighbor.item_id, neighbor.title or "")
        console.print(table)
