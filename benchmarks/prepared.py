"""Prepared runs on a part of the interactions of a config."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from pipelines.context.progress import Progress
from pipelines.context.run_context import RunContext
from pipelines.prepare.stage import prepare
from recsys.config.sections import Config


def read_interactions(context: RunContext) -> pl.DataFrame:
    """Return all rows of the interactions, which are Parquet files."""
    return pl.concat([pl.read_parquet(path) for path in context.inputs.interactions])


def prepare_rows(config: Config, rows: pl.DataFrame, folder: Path) -> RunContext:
    """Run `prepare` with these interactions, in a new folder."""
    folder.mkdir()
    rows.write_parquet(folder / "interactions.parquet")
    data = config.data.model_copy(
        update={"interactions": str(folder / "interactions.parquet"), "workspace": str(folder / "workspace")}
    )
    context = RunContext.from_config(config.model_copy(update={"data": data}), Progress())
    prepare(context.config, context.run, context.inputs, context.progress)
    return context
