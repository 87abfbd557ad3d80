"""The nightly run: all stages in order, from the input files to the champion."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from pipelines.context.libraries import quiet_libraries
from pipelines.context.progress import Progress
from pipelines.context.resources import measure
from pipelines.context.run_context import RunContext
from pipelines.context.time_limit import TimeLimit
from pipelines.orchestration import finished_run, report_files
from pipelines.orchestration.notify import notify
from pipelines.orchestration.run_report import Outcome, RunEnd, write_report
from pipelines.orchestration.stage_table import STAGES, Stage
from pipelines.prepare import stage as prepare
from pipelines.reports import data_report, plots
from pipelines.reports.figures import better_baselines
from pipelines.stages import promote
from pipelines.stages.publish import log_data_report
from recsys.config.sections import Config
from recsys.errors import InputError, RejectedError, TrackingError
from recsys.release.runs import Inputs, Run

START = "mlflow"
"""Name of the step before the first stage, in the progress and in the report."""
UNINTERRUPTED = ("publish", "promote")
"""Stages that the time limit does not interrupt, because they change other systems. They have no folder."""
NOT_IN_NOTIFICATIONS = ("checks", "evaluation")
"""Parts of a summary that notifications omit because of their size; the report contains them."""
TEXTS = {
    "promoted": "its release is the champion",
    "passed": "its release passed the gate, but was the champion before: the current champion stays",
    "published": "its release is registered; the run was started without promotion",
}
"""Explanation of each successful outcome; other outcomes are explained by their error."""

Summary = dict[str, Any]


def run_nightly(
    config: Config,
    progress: Progress,
    *,
    time_limit: TimeLimit | None = None,
    promotes: bool = True,
    resumes: bool = False,
    on_end: Callable[[Summary], None] = lambda _: None,
) -> Summary:
    """Run all stages under the lock of the run, write the report and send the notifications.

    Args:
        config: the complete config.
        progress: receives the progress.
        time_limit: limits the duration of the run; unlimited by default.
        promotes: whether the release is promoted if it passes the gate; otherwise it is only registered.
        resumes: resume the last unfinished run, even if the input has changed since.
        on_end: called with the summary when the run ends, also if this function raises.

    Raises:
        RecsysError: a stage failed; the stages before it stay finished.
        InputError: there is no run to resume.
    """
    quiet_libraries()
    summary: Summary = {"outcome": "failed", "run_id": None, "error": None}
    try:
        context = RunContext.from_config(config, progress, _last_unfinished_run if resumes else Run.create)
        summary["run_id"] = context.run.run_id
        finished = finished_run.find(config, context.run) if promotes and not resumes else None
        if finished is not None:
            summary |= {**finished, "seconds": {}, "skipped": True}
            progress.write(f"Run {context.run.run_id} has nothing to do: its release is the champion")
            return summary
        with context.run.locked():
            run_stages(context, summary, time_limit or TimeLimit(), promotes=promotes)
    except BaseException as error:
        summary |= {"outcome": _outcome_of(error), "error": _message(error)}
        raise
    finally:
        summary["text"] = _text(summary, config.tracking.model)
        notification = {key: value for key, value in summary.items() if key not in NOT_IN_NOTIFICATIONS}
        notify(notification, config.notify, progress.write)
        on_end(summary)
    return summary


def run_stages(context: RunContext, summary: Summary, time_limit: TimeLimit, *, promotes: bool = True) -> None:
    """Run the stages that are not finished, and write the report.

    Args:
        context: the run.
        summary: updated with the results, also if this function raises.
        time_limit: see `run_nightly`.
        promotes: see `run_nightly`.

    Raises:
        RecsysError: a stage failed; the stages before it stay finished.
    """
    context.progress.write(f"Run {context.run.run_id}")
    name = START
    seconds: dict[str, float] = {}
    mlflow_run = None
    expected_seconds = {} if time_limit.minutes is None else _seconds_last_time(context)
    tracking = context.tracking
    try:
        with context.progress.stage(START) as advance:  # an unreachable MLflow must fail before hours of work
            mlflow_run = tracking.mlflow_run
            tracking.metrics.send_queued()
            logged_stages = tracking.tracker.child_run_names(mlflow_run)
            advance(1, 1, f"run {mlflow_run}")
        with tracking.tracker.log_system_metrics(mlflow_run):
            for name, stage in STAGES.items():
                if name == promote.STAGE and not promotes:
                    continue
                if not context.run.done(name):
                    time_limit.require(name, expected_seconds.get(name, 0.0))
                manifest, usage = _run_stage(context, name, stage, time_limit, seconds)
                summary |= _summarize_stage(name, manifest)
                if name not in logged_stages:
                    tracking.metrics.log(_numbers({**manifest, **usage}), stage=name)
                if name == prepare.STAGE and not tracking.metrics.queued:
                    with suppress(TrackingError):  # publish tries again
                        log_data_report(context.run, tracking)
    except BaseException as error:
        end = RunEnd(_outcome_of(error), _message(error), name, seconds, _gate_decision(context))
        _finish(context, end, summary, mlflow_run)
        raise
    outcome: Outcome = "published" if not promotes else "promoted" if summary["promoted"] else "passed"
    summary |= {"outcome": outcome, "tracking_uri": tracking.tracker.display_uri, "seconds": seconds}
    decision = _gate_decision(context) if promotes else None
    _finish(context, RunEnd(outcome, seconds=seconds, decision=decision), summary, mlflow_run)


def plan_run(config: Config) -> dict[str, Any]:
    """Return what `run_nightly` would do, without writing anything.

    Raises:
        InputError: input files are missing.
        TrackingError: MLflow does not answer.
    """
    quiet_libraries()
    context = RunContext.from_config(config, find_run=Run.find)
    done = {name: _is_done(context, name) for name in STAGES}
    champion = context.tracking.tracker.champion() if _has_tracking_database(config) else None
    return {
        "run_id": context.run.run_id,
        "interactions": context.inputs.interactions,
        "items": context.inputs.items,
        "labeled_pairs": context.inputs.labeled_pairs,
        "as_of": config.prepare.as_of.isoformat() if config.prepare.as_of else None,
        "stages": {name: "done" if is_done else "to do" for name, is_done in done.items()},
        "seconds_last_time": {name: seconds for name, seconds in _seconds_last_time(context).items() if not done[name]},
        "champion": champion.release_id if champion else None,
    }


def _last_unfinished_run(config: Config, _: Inputs) -> Run:
    """Return the last unfinished run that has read all its input.

    Raises:
        InputError: there is no such run, or a later run finished.
    """
    input_stages = ("prepare",) if config.data.warm_start is None else ("prepare", "train")
    for run in _earlier_runs(config):
        report = report_files.read_report(run.folder)
        if report is not None and report["outcome"] != "failed":
            break
        if all(run.done(stage) for stage in input_stages):
            return run
    raise InputError(
        f"--resume must find a run of this config and this code that finished {' and '.join(input_stages)} but not the "
        f"later stages, and no later run that finished. Received: none in {config.workspace}. Run without --resume."
    )


def _earlier_runs(config: Config) -> Iterator[Run]:
    """Yield the runs of this config and this code with any input, the last one that read its input first."""
    for folder in data_report.finished(config.workspace):
        with suppress(OSError, ValueError, KeyError):  # files of another version
            report = json.loads((folder / data_report.REPORT).read_text(encoding="utf-8"))
            run = Run.from_snapshot(report["data_snapshot"], config)
            if run.folder == folder.parent:
                yield run


def _has_tracking_database(config: Config) -> bool:
    """Return whether MLflow can be queried without creating a database file."""
    database = config.tracking_uri.removeprefix("sqlite:///")
    return database == config.tracking_uri or Path(database).exists()


def _is_done(context: RunContext, stage: str) -> bool:
    """Return whether the result of a stage exists.

    `promote` runs again even if it does, because the champion and the limits may have changed.
    """
    results = {
        "publish": context.config.workspace / "releases" / context.run.run_id,
        "promote": context.run.folder / promote.REPORT,
    }
    return results[stage].exists() if stage in results else context.run.done(stage)


def _run_stage(
    context: RunContext, name: str, stage: Stage, time_limit: TimeLimit, seconds: dict[str, float]
) -> tuple[dict[str, Any], dict[str, float]]:
    """Run a stage; return its manifest and the resources it used, {} if the stage was finished before."""
    was_done, usage = context.run.done(name), dict[str, float]()
    try:
        with measure(usage), nullcontext() if name in UNINTERRUPTED else time_limit.enforce(name):
            manifest = stage(context)
    finally:
        if not was_done:
            seconds[name] = usage["seconds"]
    return manifest, {} if was_done else usage


def _numbers(manifest: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in manifest.items() if type(value) in (int, float)}


def _summarize_stage(name: str, manifest: Mapping[str, Any]) -> Summary:
    """Return the part of a stage's manifest that goes into the summary."""
    if name == "prepare":
        return {"account": manifest["account"]}
    if name == "evaluate":
        space = manifest["likeness"]["space"]
        return {
            "evaluation": dict(manifest),
            "similar_space": space,
            "better_baselines": better_baselines(manifest),
        }
    if name == "publish":
        return dict(manifest)
    return {key: manifest[key] for key in ("promoted", "checks")} if name == "promote" else {}


def _finish(context: RunContext, end: RunEnd, summary: Summary, mlflow_run: str | None) -> None:
    """Write the report and end the MLflow run; an error in either does not fail the run."""
    failed = [check["name"] for check in (end.decision or {}).get("checks", []) if check["verdict"] == "failed"]
    summary |= {"failed_checks": failed, "stage": end.stage, "seconds": dict(end.seconds)}
    try:
        page = write_report(context, end)
        summary["report"] = str(page)
    except Exception as error:  # noqa: BLE001 - no error of the report may fail the run
        context.progress.write(f"  the report could not be written: {type(error).__name__}: {error}")
    if "report" in summary and end.error is not None:
        context.progress.write(f"Report {summary['report']}")
    if mlflow_run is None or end.stage == START:
        return
    try:  # the status first: if MLflow does not answer, the report is not read
        context.tracking.tracker.finish_run(mlflow_run, "FINISHED" if end.error is None else "FAILED")
        if "report" in summary:
            _log_report(context, mlflow_run, page)
            if end.outcome == "promoted" and not context.tracking.metrics.queued:
                finished_run.save(context.config, context.run, summary)
    except Exception as error:  # noqa: BLE001 - as above; drawing a plot may fail too
        context.progress.write(f"  the end of the run could not be logged to MLflow: {type(error).__name__}: {error}")


def _log_report(context: RunContext, mlflow_run: str, page: Path) -> None:
    """Log the report and its plots to MLflow, unless the same report was logged before.

    The JSON report is logged last: if it is in MLflow, so are the page and the plots.
    """
    tracker, report = context.tracking.tracker, page.with_name(report_files.REPORT)
    content = report.read_text(encoding="utf-8")
    if tracker.read_artifact(mlflow_run, report.name) != content:
        tracker.log_artifact(mlflow_run, page)
        for name, svg in plots.draw(json.loads(content)).items():
            tracker.log_text(mlflow_run, svg, f"plots/{name}.svg")
        tracker.log_artifact(mlflow_run, report)


def _gate_decision(context: RunContext) -> dict[str, Any] | None:
    """Return the decision of the gate on this run, or None if the gate has not decided."""
    try:
        decision: dict[str, Any] = json.loads((context.run.folder / promote.REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return decision


def _seconds_last_time(context: RunContext) -> dict[str, float]:
    """Return the duration of each stage in the last run that finished it."""
    seconds_by_stage: dict[str, float] = {}
    for report in reversed(report_files.earlier_reports(context.config.workspace, context.run.run_id)):
        finished = {stage: seconds for stage, seconds in report["seconds"].items() if stage != report["stage"]}
        seconds_by_stage |= finished
    return seconds_by_stage


def _outcome_of(error: BaseException) -> Outcome:
    return "rejected" if isinstance(error, RejectedError) else "failed"


def _message(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _text(summary: Summary, model: str) -> str:
    """Return a summary of one line, for chat messages."""
    outcome = summary["outcome"]
    run = f"run {summary['run_id']}" if summary["run_id"] else "run"
    nothing = "nothing to do, " if "skipped" in summary else ""
    return f"{model}: {run} {outcome}: {nothing}{TEXTS.get(outcome) or summary['error']}"
