"""MLflow model of a release: `mlflow models predict` and `serve` return the same results as the service.

MLflow calls `_load_pyfunc`. This module does not import MLflow.
"""

from __future__ import annotations

from typing import Any

from recsys.release.bundle import Release
from recsys.retrieval.query import Query

DEFAULT_K = 10


class Similar:
    """Returns the neighbors of the items in a data frame."""

    def __init__(self, release: Release) -> None:
        self.release = release

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[dict[str, Any]]:  # noqa: ARG002 - MLflow passes it
        """Return the search result of each row of a pandas data frame with `item_id` and, optionally, `k` and `sense`.

        Raises:
            UnknownItemError: an item is not in the catalog.
            InputError: `k` is below 1, or there is no such sense.
        """
        results = []
        for row in model_input.to_dict("records"):
            # pandas marks missing values as NaN
            options = {name: value for name, value in row.items() if value is not None and value == value}  # noqa: PLR0124
            query = Query.from_item(str(row["item_id"]), int(options.get("k", DEFAULT_K)), options.get("sense"))
            results.append(self.release.search(query).to_dict())
        return results


def _load_pyfunc(path: str) -> Similar:
    return Similar(Release.load(path))
