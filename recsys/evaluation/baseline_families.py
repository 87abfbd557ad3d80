"""The baselines by name, each with the settings to try: who tunes them need not know what they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import NamedTuple

from scipy import sparse

from recsys.evaluation.baselines import (
    Content,
    CoOccurrence,
    Counts,
    Ease,
    ItemKNN,
    Popularity,
    WindowedItemKNN,
    users_of_both,
)
from recsys.evaluation.metrics import Model
from recsys.evaluation.protocol import EvaluationProtocol


class Variant(NamedTuple):
    """A baseline with one choice of its settings."""

    settings: dict[str, float]
    """What to report, and to find the same variant by after another call of `families`."""
    fit: Callable[[], Model]
    """Makes the model."""


def families(
    touched: sparse.csr_array,
    pairs: Mapping[tuple[int, float], sparse.csr_array],
    bags: sparse.csr_array | None,
    popularity: Counts,
    protocol: EvaluationProtocol,
) -> dict[str, list[Variant]]:
    """Name of a baseline -> its variants, in the order of the protocol; at least one.

    Call it with what is known before the validation target to choose, and with what is known before the test
    target to measure: both give the same names and settings. Nothing is fitted before `fit` is called, and what
    variants share is made once.

    Args:
        touched: which user touched which item, 0 or 1, float32 [num_users, num_items].
        pairs: (window, decay) -> weights of the item pairs counted so, float32 [num_items, num_items].
        bags: attributes of the items, [num_items, num_attributes]; None leaves the content baselines out.
        popularity: interactions an item, [num_items].
        protocol: values to try; EASE is left out where the catalog has more than `ease_max_items` items.
    """

    @cache
    def shared() -> sparse.csr_array:
        return users_of_both(touched)

    found = {
        "popularity": [Variant({}, lambda: Popularity(popularity))],
        "co_occurrence": [Variant({}, lambda: CoOccurrence(shared()))],
        "item_knn": [Variant({"shrinkage": value}, partial(_item_knn, shared, value)) for value in protocol.shrinkages],
        "windowed_item_knn": [
            Variant({"window": window, "decay": decay, "shrinkage": value}, partial(WindowedItemKNN, counted, value))
            for (window, decay), counted in pairs.items()
            for value in protocol.shrinkages
        ],
    }
    if touched.shape[1] <= protocol.ease_max_items:
        found["ease"] = [
            Variant({"penalty": value}, partial(_ease, shared, value)) for value in protocol.ease_penalties
        ]
    if bags is not None:
        found["content"] = [Variant({}, partial(Content, bags))]
        found["content_popularity"] = [Variant({}, partial(Content, bags, popularity))]
    return found


def _item_knn(shared: Callable[[], sparse.csr_array], shrinkage: float) -> Model:
    return ItemKNN(shared(), shrinkage)


def _ease(shared: Callable[[], sparse.csr_array], penalty: float) -> Model:
    return Ease(shared(), penalty)
