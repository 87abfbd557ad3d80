"""backfill: the nights of past days, each from the interactions before that day, oldest first.

Nothing is put into service unless asked for: the gate compares with the champion of today, whom an old day's data
cannot match.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

from pipelines.context.libraries import quiet_libraries
from pipelines.context.progress import Progress
from pipelines.context.run_context import RunContext
from pipelines.orchestration import run_report as night_page
from pipelines.orchestration.nightly import Summary, tonight
from recsys.config.sections import Config
from recsys.errors import InputError, RecsysError, StageError, TrackingError
from recsys.release.runs import Run


def backfill(config: Config, progress: Progress, first: date, last: date, *, promotes: bool = False) -> list[Summary]:
    """Run the night of each day that is not finished.

    A day that fails, or is refused, does not keep the others from theirs, unless MLflow is away.

    Args:
        config: the whole of it.
        progress: where progress is shown.
        first: day whose midnight, UTC, ends the data of the first night.
        last: the same of the last night.
        promotes: whether the gate is asked each time.

    Returns:
        For each day its `as_of` and the summary of its night; of one that was finished before only `run_id`,
        `outcome` and `skipped`.

    Raises:
        InputError: the days are in the wrong order.
        TrackingError: MLflow does not answer.
        StageError: nights failed or were refused; all were tried.
    """
    if first > last:
        raise InputError(f"--from must not be after --to. Received: {first} and {last}.")
    quiet_libraries()
    told, wrong = [], []
    for day in range((last - first).days + 1):
        as_of = datetime.combine(first + timedelta(day), datetime.min.time(), UTC)
        of_then = before(config, as_of)
        known = night_page.read(RunContext.from_config(of_then, find_run=Run.find).run.folder)
        name = as_of.date().isoformat()
        if known and known["outcome"] != "failed" and not (promotes and known["outcome"] == "published"):
            progress.write(f"{name}: run {known['run_id']} is {known['outcome']}")
            told.append({"as_of": name, **{key: known[key] for key in ("run_id", "outcome")}, "skipped": True})
            continue
        progress.write(f"{name}:")
        summary: Summary = {}
        try:
            tonight(of_then, progress, promotes=promotes, tell=summary.update)
        except TrackingError:
            raise
        except RecsysError as error:
            progress.write(f"{name}: {error}")
            wrong.append(f"{name} ({summary['outcome']})")
        told.append({"as_of": name, **summary})
    if wrong:
        raise StageError(
            f"every night must come to its end. Received: {len(wrong)} of {len(told)} did not: {', '.join(wrong)}. "
            "What went wrong is told above; the same command tries these again, and skips the others."
        )
    return told


def before(config: Config, as_of: datetime) -> Config:
    """The same config, on the interactions before a moment."""
    values: dict[str, Any] = {"as_of": as_of}
    return config.model_copy(update={"prepare": config.prepare.model_copy(update=values)})
