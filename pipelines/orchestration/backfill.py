"""Backfill: run the pipeline for past days, oldest first, each with the interactions before that day.

Releases are not promoted by default, because the gate compares them with the current champion, which was trained on
more data.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

from pipelines.context.libraries import quiet_libraries
from pipelines.context.progress import Progress
from pipelines.context.run_context import RunContext
from pipelines.orchestration.nightly import Summary, run_nightly
from pipelines.orchestration.report_files import read_report
from recsys.config.sections import Config
from recsys.errors import InputError, RecsysError, StageError, TrackingError
from recsys.release.runs import Run


def backfill(config: Config, progress: Progress, first: date, last: date, *, promotes: bool = False) -> list[Summary]:
    """Run the pipeline for each day without a finished run.

    If a run fails or is rejected, the following days still run; if MLflow does not answer, the backfill ends.

    Args:
        config: the complete config.
        progress: receives the progress.
        first: the first day; its run uses the interactions before its midnight, UTC.
        last: the last day.
        promotes: whether each release is promoted if it passes the gate.

    Returns:
        One dictionary per day: `as_of` and the summary of its run. If the run was finished before: `as_of`, `run_id`,
        `outcome` and `skipped`.

    Raises:
        InputError: `first` is after `last`.
        TrackingError: MLflow does not answer.
        StageError: some runs failed or were rejected; all days were tried.
    """
    if first > last:
        raise InputError(f"--from must not be after --to. Received: {first} and {last}.")
    quiet_libraries()
    summaries, unsuccessful = [], []
    for day in range((last - first).days + 1):
        as_of = datetime.combine(first + timedelta(day), datetime.min.time(), UTC)
        name = as_of.date().isoformat()
        day_config = with_as_of(config, as_of)
        report = read_report(RunContext.from_config(day_config, find_run=Run.find).run.folder)
        if report and report["outcome"] != "failed" and not (promotes and report["outcome"] == "published"):
            progress.write(f"{name}: run {report['run_id']} is {report['outcome']}")
            summaries.append({"as_of": name, **{key: report[key] for key in ("run_id", "outcome")}, "skipped": True})
            continue
        progress.write(f"{name}:")
        summary: Summary = {}
        try:
            run_nightly(day_config, progress, promotes=promotes, on_end=summary.update)
        except TrackingError:
            raise
        except RecsysError as error:
            progress.write(f"{name}: {error}")
            unsuccessful.append(f"{name} ({summary['outcome']})")
        summaries.append({"as_of": name, **summary})
    if unsuccessful:
        raise StageError(
            f"every run must finish. Received: {len(unsuccessful)} of {len(summaries)} did not: "
            f"{', '.join(unsuccessful)}. The messages above give the reasons; the same command repeats these runs and "
            "skips the others."
        )
    return summaries


def with_as_of(config: Config, as_of: datetime) -> Config:
    """Return a copy of the config that uses only the interactions before a time."""
    values: dict[str, Any] = {"as_of": as_of}
    return config.model_copy(update={"prepare": config.prepare.model_copy(update=values)})
