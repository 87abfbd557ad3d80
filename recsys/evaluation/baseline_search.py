"""The baselines by name, tuned on the validation targets and evaluated on the test targets.

To add a baseline, write its class in `recsys.evaluation.baselines` and list its settings in `baseline_variants`.
Each kind of query is tuned separately: the best settings for one item need not be the best for a history.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recsys.data.splits import Holdout
from recsys.evaluation.baselines import (
    Content,
    CoOccurrence,
    Ease,
    ItemKNN,
    Popularity,
    WindowedItemKNN,
    shared_users,
)
from recsys.evaluation.metrics import (
    TARGET_METRIC,
    Recommender,
    choose_recency,
    evaluation_report,
    ranking_metrics,
    target_ranks,
)
from recsys.evaluation.protocol import EvaluationProtocol
from recsys.evaluation.scoring import Counts
from recsys.index.queries import Queries, default_recency

QueryKind = Literal["last_item", "history"]
QUERY_KINDS: tuple[QueryKind, ...] = ("last_item", "history")

OnModel = Callable[[str], None]
"""Called before each baseline with a description of the step."""


class Variant(NamedTuple):
    """A baseline with one choice of its settings."""

    settings: dict[str, float]
    """Reported, and used to find the same variant in another result of `baseline_variants`."""
    fit: Callable[[], Recommender]


Variants = Mapping[str, Sequence[Variant]]
"""Name of a baseline -> its variants, at least one."""


class ChosenSettings(NamedTuple):
    """The best settings on the validation targets."""

    settings: dict[str, float]
    """Of the variant; for history queries also their `recency`."""
    validation: dict[str, float]
    """Metrics on the validation queries of the protocol."""


def baseline_variants(
    interactions: sparse.csr_array,
    pairs: Mapping[tuple[int, float], sparse.csr_array],
    attributes: sparse.csr_array | None,
    popularity: Counts,
    protocol: EvaluationProtocol,
) -> Variants:
    """Return the variants of each baseline, in the order of the protocol.

    Call it with the training data for validation to choose settings, and with those for the test to evaluate them:
    both results have the same names and settings. Nothing is computed before `fit` is called, and
    what variants share is computed once.

    Args:
        interactions: whether a user interacted with an item, 0 or 1, float32 [num_users, num_items].
        pairs: (window, decay) -> weights of the item pairs counted with them, float32 [num_items, num_items].
        attributes: TF-IDF weights of the items' attributes, [num_items, num_attributes]; None omits the content
            baseline.
        popularity: interactions of each item, [num_items].
        protocol: values to try; EASE is omitted if the catalog has more than `ease_max_items` items.
    """

    @cache
    def shared() -> sparse.csr_array:
        return shared_users(interactions)

    variants = {
        "popularity": [Variant({}, lambda: Popularity(popularity))],
        "co_occurrence": [Variant({}, lambda: CoOccurrence(shared()))],
        "item_knn": [Variant({"shrinkage": value}, partial(_item_knn, shared, value)) for value in protocol.shrinkages],
        "windowed_item_knn": [
            Variant({"window": window, "decay": decay, "shrinkage": value}, partial(WindowedItemKNN, weights, value))
            for (window, decay), weights in pairs.items()
            for value in protocol.shrinkages
        ],
    }
    if interactions.shape[1] <= protocol.ease_max_items:
        variants["ease"] = [
            Variant({"penalty": value}, partial(_ease, shared, value)) for value in protocol.ease_penalties
        ]
    if attributes is not None:
        variants["content"] = [Variant({}, partial(Content, attributes, popularity))]
    return variants


def _item_knn(shared: Callable[[], sparse.csr_array], shrinkage: float) -> Recommender:
    return ItemKNN(shared(), shrinkage)


def _ease(shared: Callable[[], sparse.csr_array], penalty: float) -> Recommender:
    return Ease(shared(), penalty)


def make_queries(holdout: Holdout, kind: QueryKind, recency: float | None, protocol: EvaluationProtocol) -> Queries:
    """Return the queries of one kind; history queries use `recency`, or the default of the protocol if it is None."""
    if kind == "last_item":
        return Queries.from_items(holdout.queries)
    if recency is None:
        recency = default_recency(protocol.recencies)
    return Queries.from_histories(holdout, recency, protocol.history_items)


def choose_settings(
    variants: Variants, holdout: Holdout, protocol: EvaluationProtocol, on_model: OnModel = lambda _: None
) -> dict[str, dict[QueryKind, ChosenSettings]]:
    """Return the settings of each baseline with the best NDCG@20 for each kind of query, for a sample of the users.

    For history queries the variant is chosen with the default recency, and then the recency for that variant. Ties
    go to the first; without queries the first variant and the default recency are chosen.

    Args:
        variants: fitted to the training data for validation.
        holdout: validation targets.
        protocol: recencies to try, and number of users.
        on_model: called before each baseline.
    """
    holdout = holdout.subsample(protocol.settings_queries)
    queries = {kind: make_queries(holdout, kind, None, protocol) for kind in QUERY_KINDS}
    chosen: dict[str, dict[QueryKind, ChosenSettings]] = {}
    for name, candidates in variants.items():
        on_model(f"{name}, {len(candidates)} settings")
        best: dict[QueryKind, tuple[ChosenSettings, Recommender]] = {}
        for variant in candidates:
            model = variant.fit()
            for kind in QUERY_KINDS:
                metrics = ranking_metrics(target_ranks(model, queries[kind], holdout.targets))
                if kind not in best or _score(metrics) > _score(best[kind][0].validation):
                    best[kind] = ChosenSettings(variant.settings, metrics), model
        chosen[name] = {kind: settings for kind, (settings, _) in best.items()}
        recency, metrics = default_recency(protocol.recencies), chosen[name]["history"].validation
        if len(holdout):
            recency, metrics = choose_recency(best["history"][1], holdout, protocol)
        settings = {**chosen[name]["history"].settings, "recency": recency}
        chosen[name]["history"] = ChosenSettings(settings, metrics)
    return chosen


def _score(metrics: Mapping[str, float]) -> float:
    """Return the metric to maximize; without queries there are no metrics."""
    return metrics.get(TARGET_METRIC, 0.0)


def evaluate_baselines(
    variants: Variants,
    chosen: Mapping[str, Mapping[QueryKind, ChosenSettings]],
    holdout: Holdout,
    popularity: NDArray[np.integer[Any]],
    protocol: EvaluationProtocol,
    *,
    on_model: OnModel = lambda _: None,
) -> dict[QueryKind, dict[str, dict[str, Any]]]:
    """Return the `evaluation_report` of each baseline with its chosen settings, by query kind and name.

    Args:
        variants: of the data before the test target.
        chosen: from `choose_settings`.
        holdout: users with the test target.
        popularity: interactions of each item in the training data, [num_items].
        protocol: number of resamples and length of a history.
        on_model: called before each baseline.
    """
    reports: dict[QueryKind, dict[str, dict[str, Any]]] = {kind: {} for kind in QUERY_KINDS}
    for name, candidates in variants.items():
        on_model(name)
        for model, kinds in _fit_chosen(candidates, chosen[name]):
            for kind in kinds:
                queries = make_queries(holdout, kind, chosen[name][kind].settings.get("recency"), protocol)
                reports[kind][name] = evaluation_report(model, queries, holdout.targets, popularity, protocol.resamples)
    return reports


def _fit_chosen(
    variants: Sequence[Variant], chosen: Mapping[QueryKind, ChosenSettings]
) -> Iterator[tuple[Recommender, list[QueryKind]]]:
    """Fit each chosen variant once, and yield it with the query kinds that it was chosen for."""
    for variant in variants:
        kinds = [
            kind
            for kind in QUERY_KINDS
            if variant.settings == {key: value for key, value in chosen[kind].settings.items() if key != "recency"}
        ]
        if kinds:
            yield variant.fit(), kinds
