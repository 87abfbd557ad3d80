"""`recsys verify`: ask a release whether two items are the same. (Another thing than `recsys releases verify`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from recsys.cli.options import CONFIG_DEFAULT, ConfigFile, Json, ReleasePlace, show
from recsys.cli.similar import open_release

if TYPE_CHECKING:
    from recsys.retrieval.results import VerificationResult


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("verify")(verify)


def verify(
    item_a: Annotated[str, typer.Argument(metavar="ITEM", help="An item id.")],
    item_b: Annotated[str, typer.Argument(metavar="ITEM", help="Another item id.")],
    *,
    precision: Annotated[
        float | None, typer.Option("--precision", metavar="P", help="Take the threshold of this precision.")
    ] = None,
    false_positive_rate: Annotated[
        float | None,
        typer.Option("--false-positive-rate", metavar="F", help="Take the threshold of this false-positive rate."),
    ] = None,
    release: ReleasePlace = None,
    config: ConfigFile = CONFIG_DEFAULT,
    as_json: Json = False,
) -> None:
    """Tell whether two items are the same, by their similarity.

    Without a target, they are where the probability that they belong together is at least one half.
    To check a release for damage: `recsys releases verify`.
    """
    result = open_release(release, config).verify(
        item_a, item_b, precision=precision, false_positive_rate=false_positive_rate
    )
    plain = {
        **result._asdict(),
        "items": [item._asdict() for item in result.items],
        "threshold": result.threshold.model_dump(mode="json"),
    }
    show(plain, as_json, lambda: _tell(result))


def _tell(result: VerificationResult) -> None:
    threshold = result.threshold
    names = (f"{item.title} ({item.item_id})" if item.title else item.item_id for item in result.items)
    typer.echo(f"{'The same' if result.same else 'Not the same'}: {' and '.join(names)}")
    lines = {
        "similarity": f"{result.similarity:.9g}",
        "probability": f"{result.probability:.4f}, if as many pairs belong together as do not",
        "threshold": f"{threshold.similarity:.9g}, of {threshold.name}",
    }
    if threshold.measured:  # always, by the rules of a threshold that was reached
        measured = threshold.measured
        lines["measured"] = (
            f"precision {measured.precision or 'unknown, nothing was called the same'}, recall {measured.recall}, "
            f"false-positive rate {measured.false_positive_rate}"
        )
    for name, text in lines.items():
        typer.echo(f"  {name:<11}  {text}")
