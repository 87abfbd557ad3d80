"""Files that make a release folder an MLflow model."""

from __future__ import annotations

import warnings
from pathlib import Path

from recsys.release.bundle import Release


def write_model_files(release: Release, folder: Path) -> None:
    """Write the signature, the input example and the loader of the MLflow model of a release."""
    with warnings.catch_warnings(action="ignore"):  # MLflow warns about its own type hints
        import mlflow.pyfunc  # noqa: PLC0415 - slow to import
        from mlflow.models import ModelSignature  # noqa: PLC0415
        from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Object, Property, Schema  # noqa: PLC0415

    string, double, integer = DataType.string, DataType.double, DataType.long
    neighbor = Object(
        [
            Property("item_id", string),
            Property("title", string, required=False),
            Property("similarity", double),
            Property("rank", integer),
            Property("probability", double, required=False),
            Property("explanation", AnyType(), required=False),  # type: ignore[no-untyped-call] # null: no parameter `explain`
        ]
    )
    inputs = Schema(
        [ColSpec(string, "item_id"), ColSpec(integer, "k", required=False), ColSpec(string, "sense", required=False)]
    )
    outputs = Schema(
        [
            ColSpec(string, "release_id"),
            ColSpec(string, "sense"),
            ColSpec(string, "item_id"),
            ColSpec(string, "title", required=False),
            ColSpec(Array(neighbor), "neighbors"),
            ColSpec(Array(string), "unknown_item_ids"),
            ColSpec(DataType.boolean, "fallback"),
            ColSpec(DataType.boolean, "has_more"),
            ColSpec(string, "incomplete_reason", required=False),
        ]
    )
    mlflow.pyfunc.save_model(
        folder,
        loader_module="recsys.release.pyfunc",
        signature=ModelSignature(inputs, outputs),
        input_example={"item_id": release.catalog.item_ids[:2], "k": [5, 5]},
        pip_requirements=["recsys"],
    )
