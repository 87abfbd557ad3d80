"""The nightly run as a job: its options, its notifications, and its behavior while MLflow is unreachable."""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import polars as pl
import pytest

from pipelines.context.progress import Progress
from pipelines.context.run_context import RunContext
from pipelines.context.time_limit import TimeLimit
from pipelines.orchestration import report_files
from pipelines.orchestration.backfill import backfill, with_as_of
from pipelines.orchestration.nightly import STAGES, Summary, plan_run, run_nightly
from pipelines.prepare.stage import prepare
from pipelines.reports import plots
from recsys.config.loading import load_config
from recsys.config.sections import Config
from recsys.errors import ConfigError, InputError, StageError, TrackingError
from recsys.index.recall import tune_search_k
from recsys.release.mlflow_registry import Tracker
from recsys.testing import program as programs
from recsys.testing import world

QUIET = Progress(quiet=True)
DAY = 86_400


def quick_config(folder: Path, *overrides: str) -> Config:
    """Return the config of a short run."""
    return load_config(world.write(folder), [*world.QUICK, *overrides])


def config_with_days(folder: Path, days: int, *overrides: str) -> Config:
    """Write the test world with its interactions spread over `days` days from 2020-09-13."""
    path = world.write(folder)
    log = pl.read_parquet(folder / "interactions.parquet")
    shifted = log.with_columns(timestamp=pl.col("timestamp") + pl.int_range(pl.len()) % days * DAY)
    shifted.write_parquet(folder / "interactions.parquet")
    return load_config(path, [*world.QUICK, *overrides])


def modification_times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


# --- --as-of


@pytest.mark.slow
def test_as_of_equals_a_run_on_the_truncated_log(tmp_path: Path) -> None:
    """Stage results are equal; the account additionally counts the interactions that were filtered out."""
    as_of = datetime(2020, 9, 15, 12, 30, tzinfo=UTC)
    as_of_config = with_as_of(config_with_days(tmp_path / "one", 4), as_of)
    log = pl.read_parquet(tmp_path / "one" / "interactions.parquet")
    earlier = log.filter(pl.col("timestamp") < as_of.timestamp())
    assert 0 < earlier.height < log.height
    truncated = config_with_days(tmp_path / "other", 4)
    earlier.write_parquet(tmp_path / "other" / "interactions.parquet")

    contexts = [RunContext.from_config(config) for config in (as_of_config, truncated)]
    manifests = [prepare(context.config, context.run, context.inputs, context.progress) for context in contexts]
    accounts = [manifest["account"]["interactions"] for manifest in manifests]
    num_filtered = accounts[0]["filtered"].pop("after --as-of")
    assert num_filtered == log.height - earlier.height
    assert accounts[0] == accounts[1] | {"read": log.height}
    for name in ("catalog.parquet", "sequences", "pairs"):
        frames = [pl.read_parquet(context.run.path("prepare", name)) for context in contexts]
        assert frames[0].equals(frames[1])


@pytest.mark.slow
def test_as_of_is_part_of_the_run_id_and_excludes_its_own_second(tmp_path: Path) -> None:
    config = config_with_days(tmp_path, 3)
    times = pl.read_parquet(tmp_path / "interactions.parquet")["timestamp"].to_list()
    last = max(times)
    runs = {RunContext.from_config(config).run.run_id}
    for as_of, num_filtered in ((last, times.count(last)), (last + 1, 0)):
        context = RunContext.from_config(with_as_of(config, datetime.fromtimestamp(as_of, UTC)))
        runs.add(context.run.run_id)
        manifest = prepare(context.config, context.run, context.inputs, context.progress)
        assert manifest["account"]["interactions"]["filtered"].get("after --as-of", 0) == num_filtered
    assert len(runs) == 3


def test_as_of_before_the_first_interaction_is_rejected(tmp_path: Path) -> None:
    context = RunContext.from_config(with_as_of(config_with_days(tmp_path, 3), datetime(2019, 1, 1, tzinfo=UTC)))
    with pytest.raises(InputError, match=r"at least 2 users.*Filtered out: 900 rows: after --as-of"):
        prepare(context.config, context.run, context.inputs, context.progress)


@pytest.mark.parametrize(
    ("as_of", "expected"),
    [
        ("2020-09-15", "2020-09-15T00:00:00+00:00"),
        ("2020-09-15T12:30:00", "2020-09-15T12:30:00+00:00"),
        ("2020-09-15T12:30:00+02:00", "2020-09-15T10:30:00+00:00"),
    ],
)
def test_as_of_without_a_time_zone_is_utc(tmp_path: Path, program: Any, as_of: str, expected: str) -> None:
    config_with_days(tmp_path, 3)
    outcome = program("nightly", "--config", tmp_path / "recsys.toml", "--as-of", as_of, "--dry-run", "--json")
    assert outcome.exit_code == 0
    received = json.loads(outcome.out)["as_of"]
    assert datetime.fromisoformat(received) == datetime.fromisoformat(expected)


def test_invalid_as_of_is_rejected(tmp_path: Path, program: Any) -> None:
    config_with_days(tmp_path, 3)
    outcome = program("nightly", "--config", tmp_path / "recsys.toml", "--as-of", "yesterday")
    assert outcome[:2] == (2, "")
    assert "prepare.as_of" in outcome.err
    assert "'yesterday'" in outcome.err


# --- --dry-run


def test_dry_run_writes_nothing_and_lists_the_stages_to_do(tmp_path: Path, program: Any) -> None:
    config = quick_config(tmp_path)
    before = modification_times(tmp_path)
    planned = plan_run(config)
    assert modification_times(tmp_path) == before
    assert planned["interactions"] == [str(tmp_path / "interactions.parquet")]
    assert planned["items"] == [str(tmp_path / "items.csv")]
    assert set(planned["stages"].values()) == {"to do"}
    assert planned["champion"] is None
    context = RunContext.from_config(config)
    assert planned["run_id"] == context.run.run_id
    prepare(context.config, context.run, context.inputs, context.progress)
    assert plan_run(config)["stages"] == dict.fromkeys(STAGES, "to do") | {"prepare": "done"}
    table = program("nightly", "--config", tmp_path / "recsys.toml", "--dry-run")
    assert table.exit_code == 0
    assert str(tmp_path / "items.csv") in table.out


# --- --max-minutes


def test_stage_that_exceeds_the_remaining_time_is_not_started(tmp_path: Path) -> None:
    """The estimate is the duration of the stage in another run of the workspace."""
    config = quick_config(tmp_path)
    other = tmp_path / "workspace" / "runs" / "0123456789ab"
    other.mkdir(parents=True)
    report = {"format": report_files.FORMAT, "run_id": "0123456789ab", "ended_at": "2026-01-01", "outcome": "promoted"}
    details = {"stage": None, "seconds": {"prepare": 1.0, "train": 601.0}, "quality": None}
    (other / report_files.REPORT).write_text(json.dumps(report | details))
    summary: Summary = {}
    with pytest.raises(StageError, match=r"stage train must finish within --max-minutes 10.*took 601 s last time"):
        run_nightly(config, QUIET, time_limit=TimeLimit(10), on_end=summary.update)
    assert (summary["outcome"], summary["stage"]) == ("failed", "train")
    context = RunContext.from_config(config)
    assert [context.run.done(stage) for stage in ("prepare", "train")] == [True, False]
    assert Path(summary["report"]).exists()


def test_stage_is_interrupted_at_the_time_limit() -> None:
    """The stage receives KeyboardInterrupt, as from Ctrl-C."""
    interrupts = []

    def stage() -> None:
        with TimeLimit(0.001).enforce("train"):
            try:
                while True:
                    pass
            except KeyboardInterrupt as interrupt:
                interrupts.append(interrupt)
                raise

    with pytest.raises(StageError, match=r"stage train must finish within --max-minutes"):
        stage()
    assert len(interrupts) == 1


def test_default_time_limit_is_unlimited() -> None:
    time_limit = TimeLimit()
    time_limit.require("train", 1e9)
    with time_limit.enforce("train"):
        pass


# --- notifications


def test_missing_input_is_reported(tmp_path: Path, program: Any) -> None:
    """The command of `notify.command` and standard output receive the same summary; the exit code is 2."""
    quick_config(tmp_path)
    (tmp_path / "interactions.parquet").unlink()
    code = f"import sys; open({str(tmp_path / 'summary')!r}, 'w').write(sys.stdin.read())"
    command = f"notify.command={json.dumps([sys.executable, '-c', code])}"
    outcome = program("nightly", "--config", tmp_path / "recsys.toml", "--json", "--set", command)
    assert outcome.exit_code == 2
    (line,) = outcome.out.splitlines()
    summary = json.loads(line)
    assert (summary["outcome"], summary["run_id"]) == ("failed", None)
    assert "interactions.parquet" in summary["error"]
    assert summary["text"].startswith("item-tower: run failed: ")
    assert json.loads((tmp_path / "summary").read_text()) == summary


# --- --resume


@pytest.mark.slow
def test_resume_continues_the_last_unfinished_run_on_its_own_data(tmp_path: Path, program: Any) -> None:
    """Without --resume the command would start another run, because the data have changed."""
    command = ["nightly", "--config", tmp_path / "recsys.toml", "--json", "--resume"]
    command += [part for override in world.QUICK for part in ("--set", override)]
    config = quick_config(tmp_path)
    outcome = program(*command)
    assert outcome.exit_code == 2
    assert "error: --resume must find a run" in outcome.err
    with pytest.raises(StageError):
        run_nightly(config, QUIET, time_limit=TimeLimit(0.0001))
    assert program(*command).exit_code == 2  # the run has not read any data yet
    started = RunContext.from_config(config)
    prepare(started.config, started.run, started.inputs, started.progress)
    written = (started.run.folder / "prepare" / "_MANIFEST.json").stat().st_mtime_ns
    world.write(tmp_path, seed=1)
    not_started = RunContext.from_config(config)
    assert not_started.run.run_id != started.run.run_id
    quality = "promote.quality_floor=0"
    resumed = json.loads(program(*command, "--set", quality).out)
    assert resumed["run_id"] == started.run.run_id
    assert resumed["outcome"] == "promoted", resumed["error"]
    assert (started.run.folder / "prepare" / "_MANIFEST.json").stat().st_mtime_ns == written
    assert not not_started.run.done("prepare")
    client = Tracker(config).client
    (data, _) = client.get_run(resumed["mlflow_run"]).inputs.dataset_inputs
    assert data.dataset.digest == started.run.data_snapshot[:36]
    outcome = program(*command)  # the run has finished, and no earlier run may be resumed after it
    assert outcome.exit_code == 2
    assert "no later run that finished" in outcome.err


# --- MLflow is unreachable


@pytest.fixture
def closed_server() -> str:
    """URL of a closed port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def hanging_server() -> Iterator[str]:
    """URL of a server that accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("server", ["closed_server", "hanging_server"])
def test_unreachable_mlflow_fails_the_run_before_its_first_stage(
    tmp_path: Path, program: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    quick_config(tmp_path)
    uri = request.getfixturevalue(server)
    outcome = program("nightly", "--config", tmp_path / "recsys.toml", "--json", "--set", f"tracking.uri={uri}")
    assert outcome.exit_code == 1
    assert f"error: MLflow at {uri} must answer" in outcome.err
    assert "Traceback" not in outcome.err
    summary = json.loads(outcome.out)
    assert (summary["outcome"], summary["stage"]) == ("failed", "mlflow")
    assert "failed in stage mlflow" in Path(summary["report"]).read_text()
    assert not [*tmp_path.glob("workspace/runs/*/prepare")]


@pytest.mark.slow
def test_metrics_are_sent_later_when_mlflow_was_unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow is unreachable from training until after publish, and reachable in the next run.

    A failure to record the end of the run is not an error; the next run of the same command records it.
    """
    config = quick_config(tmp_path)
    log_metrics, register, unreachable = Tracker.log_metrics, Tracker.register, True

    def failing(method: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if unreachable:
                raise TrackingError("MLflow must answer.")
            return method(*args, **kwargs)

        return call

    monkeypatch.setattr(Tracker, "log_metrics", failing(log_metrics))
    monkeypatch.setattr(Tracker, "register", failing(register))
    summary: Summary = {}
    with pytest.raises(TrackingError):
        run_nightly(config, QUIET, promotes=False, on_end=summary.update)
    assert (summary["outcome"], summary["stage"]) == ("failed", "publish")
    context = RunContext.from_config(config)
    trained = (context.run.folder / "train" / "_MANIFEST.json").stat().st_mtime_ns
    unreachable, mlflow_run, finish = False, context.tracking.mlflow_run, Tracker.finish_run

    def fail_to_finish(tracker: Tracker, run: str, status: str) -> None:
        if run == mlflow_run:
            raise TrackingError("MLflow must answer.")
        finish(tracker, run, status)

    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "finish_run", fail_to_finish)
        assert run_nightly(config, QUIET, promotes=False)["outcome"] == "published"
    assert run_nightly(config, QUIET, promotes=False)["outcome"] == "published"
    assert context.tracking.tracker.client.get_run(mlflow_run).info.status == "FINISHED"
    assert (context.run.folder / "train" / "_MANIFEST.json").stat().st_mtime_ns == trained
    metrics = context.tracking.tracker.client.get_run(context.tracking.mlflow_run).data.metrics
    curve = context.run.manifest("train")["curve"]
    assert metrics["train_loss"] == curve[-1]["loss"]
    assert metrics["interactions_read"] == 900
    assert not (context.run.folder / "unsent.jsonl").exists()
    for name in (report_files.PAGE, report_files.REPORT):
        artifact = context.tracking.tracker.read_artifact(context.tracking.mlflow_run, name)
        assert artifact == (context.run.folder / name).read_text()


@pytest.mark.slow
def test_mlflow_records_the_data_and_each_stage(tmp_path: Path) -> None:
    config = quick_config(tmp_path)
    run_nightly(config, QUIET, promotes=False)
    context = RunContext.from_config(config)
    client, run = context.tracking.tracker.client, context.tracking.tracker.client.get_run(context.tracking.mlflow_run)
    data = {entry.dataset.name: (entry.dataset.digest, entry.dataset.source) for entry in run.inputs.dataset_inputs}
    digest = context.run.data_snapshot[:36]
    assert data == {
        "interactions": (digest, json.dumps([str(tmp_path / "interactions.parquet")])),
        "items": (digest, json.dumps([str(tmp_path / "items.csv")])),
    }
    children = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
    stages = {child.info.run_name: child for child in children}
    assert set(stages) == set(STAGES) - {"promote"}
    assert len(children) == len(stages)
    assert {child.info.status for child in children} == {"FINISHED"}
    assert stages["prepare"].data.metrics["num_items"] == 49
    for child in children:
        assert child.data.metrics["seconds"] >= 0
        assert child.data.metrics["cpu_seconds"] >= 0
        assert child.data.metrics["peak_memory_mb"] > 1
    artifacts = {artifact.path for artifact in client.list_artifacts(run.info.run_id, "plots")}
    assert {f"plots/{name}.svg" for name in ("recall", "similarity", "exposure", "map")} <= artifacts
    assert not [name for name in run.data.metrics if name.startswith("system/")]
    run_nightly(config, QUIET, promotes=False)  # repeats only the registration
    repeated = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
    assert len(repeated) == len(children)


@pytest.mark.slow
def test_failing_plots_do_not_fail_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "draw", Mock(side_effect=ZeroDivisionError("no width")))
    progress = Progress(quiet=True)
    lines: list[str] = []
    monkeypatch.setattr(progress, "write", lines.append)
    assert run_nightly(quick_config(tmp_path), progress, promotes=False)["outcome"] == "published"
    assert "  the end of the run could not be logged to MLflow: ZeroDivisionError: no width" in lines


@pytest.mark.slow
def test_mlflow_environment_variable_enables_system_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    config = quick_config(tmp_path)
    summary = run_nightly(config, QUIET, promotes=False)
    metrics = Tracker(config).client.get_run(summary["mlflow_run"]).data.metrics
    assert metrics["system/system_memory_usage_megabytes"] > 0
    assert "SystemMetricsMonitor" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.slow
def test_run_that_fails_before_publish_logs_its_data_report_to_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.stages.index.tune_search_k", partial(tune_search_k, max_search_k=3))
    floor = ["index.n_trees=1", "index.recall_target=1.0", "index.recall_floor=1.0"]
    config = quick_config(tmp_path, *floor)
    summary: Summary = {}
    with pytest.raises(StageError, match=r"recall"):
        run_nightly(config, QUIET, on_end=summary.update)
    assert summary["stage"] == "index"
    context = RunContext.from_config(config)
    for name in ("data_report.json", "data_report.html"):
        artifact = context.tracking.tracker.read_artifact(context.tracking.mlflow_run, f"prepare/{name}")
        assert artifact == context.run.path("prepare", name).read_text()


@pytest.mark.slow
def test_full_disk_under_mlflow_is_reported_and_the_run_can_continue_later(tmp_path: Path) -> None:
    """SQLite reports a full disk because the database of MLflow has reached the file size limit of the process."""
    config = quick_config(tmp_path)
    Tracker(config)
    size = (tmp_path / "workspace" / "mlflow.db").stat().st_size
    command = [programs.RECSYS, "nightly", "--config", tmp_path / "recsys.toml", "--json"]
    command += [part for override in world.QUICK for part in ("--set", override)]

    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=programs.TIMEOUT_S,
        check=False,
        preexec_fn=limit_file_size,
    )
    assert done.returncode == 1, done.stderr
    assert "error: MLflow at sqlite:///" in done.stderr
    assert "disk" in done.stderr
    assert "Traceback" not in done.stderr
    summary = json.loads(done.stdout)
    assert summary["outcome"] == "failed"
    assert Path(summary["report"]).exists()
    assert run_nightly(config, QUIET, promotes=False)["outcome"] == "published"


# --- backfill


@pytest.mark.slow
def test_backfill_runs_days_in_order_and_only_once(tmp_path: Path, program: Any) -> None:
    config = config_with_days(tmp_path, 4)
    first, last = date(2020, 9, 12), date(2020, 9, 16)
    with pytest.raises(StageError, match=r"2 of 5 did not: 2020-09-12 \(failed\), 2020-09-13 \(failed\)"):
        backfill(config, QUIET, first, last)  # the log begins on the 13th, at 12:26
    runs = [RunContext.from_config(with_as_of(config, datetime(2020, 9, day, tzinfo=UTC))).run for day in (14, 15, 16)]
    reports = [report_files.read_report(run.folder) for run in runs]
    assert [report["outcome"] for report in reports if report] == ["published"] * 3
    assert [report["as_of"][:10] for report in reports if report] == ["2020-09-14", "2020-09-15", "2020-09-16"]
    assert [report["ended_at"] for report in reports if report] == sorted(
        report["ended_at"] for report in reports if report
    )
    tracker = Tracker(config)
    assert tracker.champion() is None
    assert all(tracker.version_of(run.run_id) for run in runs)

    flags = ("--from", "2020-09-14", "--to", "2020-09-16", "--json")
    settings = [part for override in world.QUICK for part in ("--set", override)]
    outcome = program("backfill", *flags, "--config", tmp_path / "recsys.toml", *settings)
    assert outcome.exit_code == 0
    assert json.loads(outcome.out) == [
        {"as_of": f"2020-09-{day}", "run_id": run.run_id, "outcome": "published", "skipped": True}
        for day, run in zip((14, 15, 16), runs, strict=True)
    ]


def test_backfill_rejects_from_after_to(tmp_path: Path, program: Any) -> None:
    quick_config(tmp_path)
    flags = ("--from", "2020-09-16", "--to", "2020-09-14")
    outcome = program("backfill", *flags, "--config", tmp_path / "recsys.toml")
    assert outcome[:2] == (2, "")
    assert "--from must not be after --to. Received: 2020-09-16 and 2020-09-14" in outcome.err


def test_unknown_outcome_in_notify_on_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"notify\.on"):
        quick_config(tmp_path, 'notify.on=["succeeded"]')
