"""MLflow model of a release: `mlflow models predict` and `serve` return the same results as the service.

MLflow calls `_load_pyfunc`. This module does not import MLflow.
"""

from __future__ import annotations

from typing import Any

from recsys.release.bundle import Release

DEFAULT_K = 10


class Similar:
    """Returns the neighbors of the items in a data frame."""

    def __init__(self, release: Release) -> None:
        self.release = release

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[dict[str, Any]]:  # noqa: ARG002 - MLflow passes it
        """Return the search result of each row of a pandas data frame with `item_id` and, optionally, `k`.

        Raises:
            UnknownItemError: an item is not in the catalog.
        """
        results = []
        for row in model_input.to_dict("records"):
            k = row.get("k")
            has_k = k is not None and k == k  # pandas marks missing values as NaN  # noqa: PLR0124
            results.append(self.release.similar(str(row["item_id"]), int(k) if has_k else DEFAULT_K).to_dict())
        return results


def _load_pyfunc(path: str) -> Similar:
    return Similar(Release.load(path))
