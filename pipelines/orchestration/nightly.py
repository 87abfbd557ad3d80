"""nightly: all stages in order, from the files to the champion."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from pipelines.context.libraries import quiet_libraries
from pipelines.context.progress import Progress
from pipelines.context.resources import measured
from pipelines.context.run_context import RunContext
from pipelines.context.time_limit import Budget
from pipelines.orchestration import run_report as night_page
from pipelines.orchestration.notify import notify
from pipelines.orchestration.run_report import End, Outcome
from pipelines.orchestration.stage_table import STAGES, Stage
from pipelines.prepare import stage as preparing
from pipelines.reports import data_report as data_page
from pipelines.reports import plots
from pipelines.stages import promote as promoting
from pipelines.stages.publish import keep_data_report
from recsys.config.sections import Config
from recsys.errors import InputError, RefusedError, TrackingError
from recsys.release.runs import Inputs, Run

LASTING = ("publish", "promote")
"""Stages that leave no folder, and that a time budget does not cut off: they change what others see."""
LONG = ("checks", "evaluation")
"""What of a summary is left to the report when somebody is told."""

DONE = {"promote": "asked before"}
"""How a plan calls it that a stage is done, where it is not "done"."""

Summary = dict[str, Any]


def tonight(
    config: Config,
    progress: Progress,
    *,
    budget: Budget | None = None,
    promotes: bool = True,
    resumes: bool = False,
    tell: Callable[[Summary], None] = lambda _: None,
) -> Summary:
    """A whole night: its stages under the lock of its run, its report, and word to whoever wants to know.

    Args:
        config: the whole of it.
        progress: where progress is shown.
        budget: the time that it may take.
        promotes: whether the gate is asked; else the release is registered, and nothing else.
        resumes: go on with the last night that did not come to its end, whatever the data are now.
        tell: gets the summary however the night ends, also where this raises.

    Raises:
        RecsysError: from the stage that could not do its work; the ones before stay done.
        InputError: there is no night to go on with.
    """
    quiet_libraries()
    summary: Summary = {"outcome": "failed", "run_id": None, "error": None}
    try:
        context = RunContext.from_config(config, progress, _unfinished if resumes else Run.create)
        summary["run_id"] = context.run.run_id
        with context.run.locked():
            nightly(context, summary, budget or Budget(), promotes=promotes)
    except BaseException as error:
        summary |= {"outcome": "refused" if isinstance(error, RefusedError) else "failed", "error": _words(error)}
        raise
    finally:
        summary["text"] = _sentence(summary, config.tracking.model)
        notify({key: value for key, value in summary.items() if key not in LONG}, config.notify, progress.write)
        tell(summary)
    return summary


def nightly(context: RunContext, summary: Summary, budget: Budget, *, promotes: bool = True) -> None:
    """Run what is not done yet of every stage, and write the report; all that is known goes into the summary.

    Raises:
        RecsysError: from the stage that could not do its work; the ones before stay done.
    """
    context.progress.write(f"Run {context.run.run_id}")
    at = "mlflow"
    seconds: dict[str, float] = {}
    mlflow_run = None
    took = {} if budget.minutes is None else _took_before(context)
    try:
        with context.progress.stage(at) as advance:  # before hours of work, not after them
            mlflow_run = context.tracking.mlflow_run
            context.tracking.metrics.send_queued()
            recorded = context.tracking.tracker.child_run_names(mlflow_run)
            advance(1, 1, f"run {mlflow_run}")
        with context.tracking.tracker.log_system_metrics(mlflow_run):
            for at, stage in STAGES.items():
                if at == promoting.STAGE and not promotes:
                    continue
                if not context.run.done(at):
                    budget.require(at, took.get(at, 0.0))
                told, taken = _do(context, at, stage, budget, seconds)
                summary |= _of_stage(at, told)
                if at not in recorded:
                    context.tracking.metrics.log(_figures({**told, **taken}), stage=at)
                if at == preparing.STAGE and not context.tracking.metrics.queued:
                    with suppress(TrackingError):  # `publish` does it then
                        keep_data_report(context.run, context.tracking)
    except BaseException as error:
        ended: Outcome = "refused" if isinstance(error, RefusedError) else "failed"
        _end(context, End(ended, _words(error), at, seconds, _decision(context)), summary, mlflow_run)
        raise
    outcome: Outcome = "published" if not promotes else "promoted" if summary["promoted"] else "passed"
    summary["outcome"] = outcome
    summary |= {"tracking_uri": context.tracking.tracker.display_uri, "seconds": seconds}
    decision = _decision(context) if promotes else None
    _end(context, End(outcome, seconds=seconds, decision=decision), summary, mlflow_run)


def _unfinished(config: Config, _: Inputs) -> Run:
    """The last night that read its data to the end and came to no end itself, if no later one did."""
    read = ("prepare",) if config.data.warm_start is None else ("prepare", "train")
    for run in _begun(config):
        known = night_page.read(run.folder)
        if known is not None and known["outcome"] != "failed":
            break
        if all(run.done(stage) for stage in read):
            return run
    raise InputError(
        f"--resume must find a night of these settings and this code that finished {' and '.join(read)} and did not "
        f"come to its end, nor did a later one. Received: none in {config.workspace}. Run it without --resume."
    )


def _begun(config: Config) -> Iterator[Run]:
    """The runs of a config and of this code, whatever data they are of; the one that read its data last first."""
    for folder in data_page.finished(config.workspace):
        with suppress(OSError, ValueError, KeyError):  # what another version left
            run = Run.from_snapshot(
                json.loads((folder / data_page.REPORT).read_text(encoding="utf-8"))["data_snapshot"], config
            )
            if run.folder == folder.parent:
                yield run


def plan(config: Config) -> dict[str, Any]:
    """What `tonight` would do; nothing is written.

    Raises:
        InputError: input files are missing.
        TrackingError: MLflow does not answer.
    """
    quiet_libraries()
    context = RunContext.from_config(config, find_run=Run.find)
    done = {name: _done(context, name) for name in STAGES}
    champion = context.tracking.tracker.champion() if _tracked(config) else None
    return {
        "run_id": context.run.run_id,
        "interactions": context.inputs.interactions,
        "items": context.inputs.items,
        "labeled_pairs": context.inputs.labeled_pairs,
        "as_of": config.prepare.as_of.isoformat() if config.prepare.as_of else None,
        "stages": {name: DONE.get(name, "done") if is_done else "to do" for name, is_done in done.items()},
        "seconds_last_time": {name: took for name, took in _took_before(context).items() if not done[name]},
        "champion": champion.release_id if champion else None,
    }


def _tracked(config: Config) -> bool:
    """Whether there is anything to ask: a database that is not there would be made."""
    database = config.tracking_uri.removeprefix("sqlite:///")
    return database == config.tracking_uri or Path(database).exists()


def _done(context: RunContext, stage: str) -> bool:
    """Whether a stage left what it leaves. `promote` is asked again all the same: of another champion, or limits."""
    left = {
        "publish": context.config.workspace / "releases" / context.run.run_id,
        "promote": context.run.folder / promoting.REPORT,
    }
    return left[stage].exists() if stage in left else context.run.done(stage)


def _do(
    context: RunContext, name: str, stage: Stage, budget: Budget, seconds: dict[str, float]
) -> tuple[dict[str, Any], dict[str, float]]:
    """A stage's manifest, and what it took: nothing where it was done before."""
    already, taken = context.run.done(name), dict[str, float]()
    try:
        with measured(taken), nullcontext() if name in LASTING else budget.enforced(name):
            told = stage(context)
    finally:
        if not already:
            seconds[name] = taken["seconds"]
    return told, {} if already else taken


def _figures(told: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in told.items() if type(value) in (int, float)}


def _of_stage(name: str, manifest: Mapping[str, Any]) -> Summary:
    """What a summary tells of a stage."""
    if name == "prepare":
        return {"account": manifest["account"]}
    if name == "evaluate":
        return {"evaluation": dict(manifest)}
    if name == "publish":
        return dict(manifest)
    return {key: manifest[key] for key in ("promoted", "checks")} if name == "promote" else {}


def _end(context: RunContext, end: End, summary: Summary, mlflow_run: str | None) -> None:
    """Write the report, and tell MLflow. What goes wrong with either costs no night."""
    failed = [check["name"] for check in (end.decision or {}).get("checks", []) if check["verdict"] == "failed"]
    summary |= {"failed_checks": failed, "stage": end.stage, "seconds": dict(end.seconds)}
    try:
        page = night_page.write(context, end)
        summary["report"] = str(page)
    except Exception as error:  # noqa: BLE001 - whatever it is: the release is what counts
        context.progress.write(f"  no report: {type(error).__name__}: {error}")
    if "report" in summary and end.error is not None:
        context.progress.write(f"Report {summary['report']}")
    if mlflow_run is None or end.stage == "mlflow":
        return
    try:  # the end first: where MLflow is away, that is found out once
        context.tracking.tracker.finish_run(mlflow_run, "FINISHED" if end.error is None else "FAILED")
        if "report" in summary:
            _keep(context, mlflow_run, page)
    except Exception as error:  # noqa: BLE001 - here too, and drawings may fail as the page may
        context.progress.write(f"  MLflow was not told of all of the night's end: {type(error).__name__}: {error}")


def _keep(context: RunContext, mlflow_run: str, page: Path) -> None:
    """Keep the report and its drawings with the MLflow run, unless this one, the last of them, is there already."""
    report = page.with_name(night_page.REPORT)
    told = report.read_text(encoding="utf-8")
    if context.tracking.tracker.read_artifact(mlflow_run, report.name) != told:
        context.tracking.tracker.log_artifact(mlflow_run, page)
        for name, svg in plots.draw(json.loads(told)).items():
            context.tracking.tracker.log_text(mlflow_run, svg, f"plots/{name}.svg")
        context.tracking.tracker.log_artifact(mlflow_run, report)


def _decision(context: RunContext) -> dict[str, Any] | None:
    """What the gate said of this run, None where it was not asked."""
    try:
        found: dict[str, Any] = json.loads((context.run.folder / promoting.REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def _took_before(context: RunContext) -> dict[str, float]:
    """Seconds of each stage in the last night that did it to its end."""
    took: dict[str, float] = {}
    for report in reversed(night_page.earlier_nights(context.config.workspace, context.run.run_id)):
        took |= {stage: seconds for stage, seconds in report["seconds"].items() if stage != report["stage"]}
    return took


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _sentence(summary: Summary, model: str) -> str:
    """For a chat: what happened, in one line."""
    outcome, run_id = summary["outcome"], summary["run_id"]
    told = {
        "promoted": "its release is in service",
        "passed": "its release passed the gate, but was in service before: the champion stays",
        "published": "its release is registered, the gate was not asked",
    }
    return f"{model}: night {run_id or 'without a run'} {outcome}: {told.get(outcome) or summary['error']}"
