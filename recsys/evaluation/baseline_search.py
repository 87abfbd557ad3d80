"""Baselines tuned on the validation target and measured on the test target: the bar for every release.

Each look-up is tuned by itself: a baseline that is best from one item need not be best from a history.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recsys.data.splits import Holdout
from recsys.evaluation.baseline_families import Variant
from recsys.evaluation.metrics import TARGET_METRIC, Model, choose_recency, metrics, ranks, report
from recsys.evaluation.protocol import EvaluationProtocol
from recsys.index.queries import Queries, default_recency

LookUp = Literal["last_item", "history"]
LOOK_UPS: tuple[LookUp, ...] = ("last_item", "history")

OnModel = Callable[[str], None]
"""Called before each baseline with what is done to it."""

Families = Mapping[str, Sequence[Variant]]


class Choice(NamedTuple):
    """What was best on the validation target."""

    settings: dict[str, float]
    """Of the variant; for a history also its `recency`."""
    validation: dict[str, float]
    """Its metrics there."""


def queries(holdout: Holdout, look_up: LookUp, recency: float | None, protocol: EvaluationProtocol) -> Queries:
    """The questions of a look-up; `recency` is of a history, the middle one of the protocol where none was chosen."""
    if look_up == "last_item":
        return Queries.from_items(holdout.queries)
    return Queries.from_histories(
        holdout, default_recency(protocol.recencies) if recency is None else recency, protocol.history_items
    )


def choose(
    families: Families, holdout: Holdout, protocol: EvaluationProtocol, on_model: OnModel = lambda _: None
) -> dict[str, dict[LookUp, Choice]]:
    """The best settings of each baseline for each look-up, by NDCG@20.

    For a history the variant is chosen at the middle recency, and the recency for that variant. Of equals the
    first is best; without questions that is the first variant, and the middle recency.

    Args:
        families: fitted on what is known before the validation target.
        holdout: the validation questions.
        protocol: recencies to try.
        on_model: called before each baseline.
    """
    asked = {look_up: queries(holdout, look_up, None, protocol) for look_up in LOOK_UPS}
    chosen: dict[str, dict[LookUp, Choice]] = {}
    for name, variants in families.items():
        on_model(f"{name}, {len(variants)} settings")
        best: dict[LookUp, tuple[Choice, Model]] = {}
        for variant in variants:
            model = variant.fit()
            for look_up in LOOK_UPS:
                figures = metrics(ranks(model, asked[look_up], holdout.targets))
                if look_up not in best or _score(figures) > _score(best[look_up][0].validation):
                    best[look_up] = Choice(variant.settings, figures), model
        chosen[name] = {look_up: choice for look_up, (choice, _) in best.items()}
        recency, figures = default_recency(protocol.recencies), chosen[name]["history"].validation
        if len(holdout):
            recency, figures = choose_recency(best["history"][1], holdout, protocol.recencies, protocol.history_items)
        settings = {**chosen[name]["history"].settings, "recency": recency}
        chosen[name]["history"] = Choice(settings, figures)
    return chosen


def _score(figures: Mapping[str, float]) -> float:
    """What is to be as large as possible; there are no figures without questions."""
    return figures.get(TARGET_METRIC, 0.0)


def measure(
    families: Families,
    chosen: Mapping[str, Mapping[LookUp, Choice]],
    holdout: Holdout,
    popularity: NDArray[np.integer[Any]],
    protocol: EvaluationProtocol,
    *,
    on_model: OnModel = lambda _: None,
) -> dict[LookUp, dict[str, dict[str, Any]]]:
    """`recsys.evaluation.metrics.report` of each baseline with its chosen settings, by look-up and name.

    Args:
        families: fitted on what is known before the test target.
        chosen: what `choose` gave.
        holdout: the test questions.
        popularity: interactions of each item that training saw, [num_items].
        protocol: resamples and history.
        on_model: called before each baseline.
    """
    found: dict[LookUp, dict[str, dict[str, Any]]] = {look_up: {} for look_up in LOOK_UPS}
    for name, variants in families.items():
        on_model(name)
        for model, look_ups in _fitted(variants, chosen[name]):
            for look_up in look_ups:
                asked = queries(holdout, look_up, chosen[name][look_up].settings.get("recency"), protocol)
                found[look_up][name] = report(model, asked, holdout.targets, popularity, protocol.resamples)
    return found


def _fitted(variants: Sequence[Variant], chosen: Mapping[LookUp, Choice]) -> Iterator[tuple[Model, list[LookUp]]]:
    """Each chosen variant, fitted once, and the look-ups that chose it."""
    for variant in variants:
        wanted = [
            look_up
            for look_up in LOOK_UPS
            if variant.settings == {key: value for key, value in chosen[look_up].settings.items() if key != "recency"}
        ]
        if wanted:
            yield variant.fit(), wanted
