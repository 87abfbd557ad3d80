"""`recsys verify`: decide whether two items are the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from recsys.commands.options import CONFIG_DEFAULT, ConfigFile, Json, ReleaseLocation, SenseOption, print_result
from recsys.commands.similar import open_release

if TYPE_CHECKING:
    from recsys.retrieval.results import VerificationResult


def verify(
    item_a: Annotated[str, typer.Argument(metavar="ITEM", help="An item id.")],
    item_b: Annotated[str, typer.Argument(metavar="ITEM", help="Another item id.")],
    *,
    precision: Annotated[
        float | None, typer.Option("--precision", metavar="P", help="Use the threshold of this precision.")
    ] = None,
    false_positive_rate: Annotated[
        float | None,
        typer.Option("--false-positive-rate", metavar="F", help="Use the threshold of this false-positive rate."),
    ] = None,
    sense: SenseOption = "similar",
    release: ReleaseLocation = None,
    config: ConfigFile = CONFIG_DEFAULT,
    as_json: Json = False,
) -> None:
    """Decide whether two items are the same, by their similarity.

    By default they are the same if the probability that they belong together is at least 0.5. To check the files of
    a release, see `recsys releases check`.
    """
    verdict = open_release(release, config).verify(
        item_a, item_b, precision=precision, false_positive_rate=false_positive_rate, sense=sense
    )
    plain = {
        **verdict._asdict(),
        "items": [item._asdict() for item in verdict.items],
        "threshold": verdict.threshold.model_dump(mode="json"),
    }
    print_result(plain, as_json, lambda: _print(verdict))


def _print(verdict: VerificationResult) -> None:
    threshold = verdict.threshold
    names = (f"{item.title} ({item.item_id})" if item.title else item.item_id for item in verdict.items)
    typer.echo(f"{'The same' if verdict.same else 'Not the same'}: {' and '.join(names)}")
    lines = {
        "similarity": f"{verdict.similarity:.9g}",
        "probability": f"{verdict.probability:.4f}, if half of all pairs belong together",
        "threshold": f"{threshold.similarity:.9g}, for {threshold.name}",
    }
    if threshold.measured:  # always there for a threshold that is reached
        measured = threshold.measured
        lines["measured"] = (
            f"precision {measured.precision or 'unknown (no pair was above the threshold)'}, "
            f"recall {measured.recall}, false-positive rate {measured.false_positive_rate}"
        )
    for name, text in lines.items():
        typer.echo(f"  {name:<11}  {text}")
