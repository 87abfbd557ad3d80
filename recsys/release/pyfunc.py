"""A release as a model that MLflow can load: `mlflow models predict` and `serve` answer as the service does.

MLflow calls `_load_pyfunc` by its name; nothing here needs MLflow.
"""

from __future__ import annotations

from typing import Any

from recsys.release.bundle import Release

DEFAULT_K = 10


class Similar:
    """Answers rows with `item_id` and, where given, `k`."""

    def __init__(self, release: Release) -> None:
        self.release = release

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[dict[str, Any]]:  # noqa: ARG002 - MLflow hands it over
        """The service's answer to each row of a pandas frame.

        Raises:
            UnknownItemError: the catalog does not hold an item.
        """
        answers = []
        for row in model_input.to_dict("records"):
            k = row.get("k")
            given = k is not None and k == k  # pandas fills what is missing with NaN  # noqa: PLR0124
            answers.append(self.release.similar(str(row["item_id"]), int(k) if given else DEFAULT_K).to_dict())
        return answers


def _load_pyfunc(path: str) -> Similar:
    return Similar(Release.load(path))
