"""The night as a job: what it is told to do, what it tells, and what it does when MLflow is away."""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime
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
from recsys.release.mlflow_registry import Tracker
from recsys.testing import program as programs
from recsys.testing import world

QUIET = Progress(quiet=True)
DAY = 86_400


def quick(folder: Path, *overrides: str) -> Config:
    """A night that is over soon."""
    return load_config(world.write(folder), [*world.QUICK, *overrides])


def of_days(folder: Path, days: int, *overrides: str) -> Config:
    """The world, its interactions spread over so many days from 2020-09-13 on."""
    path = world.write(folder)
    log = pl.read_parquet(folder / "interactions.parquet")
    shifted = log.with_columns(timestamp=pl.col("timestamp") + pl.int_range(pl.len()) % days * DAY)
    shifted.write_parquet(folder / "interactions.parquet")
    return load_config(path, [*world.QUICK, *overrides])


def everything_below(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


# --- --as-of


def test_as_of_is_the_night_of_then(tmp_path: Path) -> None:
    """The same as if nothing later were in the log, but for the account, which tells what was left out."""
    moment = datetime(2020, 9, 15, 12, 30, tzinfo=UTC)
    of_then = with_as_of(of_days(tmp_path / "one", 4), moment)
    log = pl.read_parquet(tmp_path / "one" / "interactions.parquet")
    earlier = log.filter(pl.col("timestamp") < moment.timestamp())
    assert 0 < earlier.height < log.height
    truncated = of_days(tmp_path / "other", 4)
    earlier.write_parquet(tmp_path / "other" / "interactions.parquet")

    nights = [RunContext.from_config(config) for config in (of_then, truncated)]
    one, other = (prepare(context.config, context.run, context.inputs, context.progress) for context in nights)
    accounts = [manifest["account"]["interactions"] for manifest in (one, other)]
    left_out = accounts[0]["filtered"].pop("after --as-of")
    assert left_out == log.height - earlier.height
    assert accounts[0] == accounts[1] | {"read": log.height}
    for name in ("catalog.parquet", "sequences", "pairs"):
        frames = [pl.read_parquet(context.run.path("prepare", name)) for context in nights]
        assert frames[0].equals(frames[1])


def test_a_moment_is_part_of_the_run_and_its_interaction_is_later(tmp_path: Path) -> None:
    config = of_days(tmp_path, 3)
    times = pl.read_parquet(tmp_path / "interactions.parquet")["timestamp"].to_list()
    last = max(times)
    runs = {RunContext.from_config(config).run.run_id}
    for moment, left_out in ((last, times.count(last)), (last + 1, 0)):
        context = RunContext.from_config(with_as_of(config, datetime.fromtimestamp(moment, UTC)))
        runs.add(context.run.run_id)
        assert (
            prepare(context.config, context.run, context.inputs, context.progress)["account"]["interactions"][
                "filtered"
            ].get("after --as-of", 0)
            == left_out
        )
    assert len(runs) == 3


def test_before_the_first_interaction_there_is_nothing_to_learn_from(tmp_path: Path) -> None:
    context = RunContext.from_config(with_as_of(of_days(tmp_path, 3), datetime(2019, 1, 1, tzinfo=UTC)))
    with pytest.raises(InputError, match=r"at least 2 users.*Filtered out: 900 rows: after --as-of"):
        prepare(context.config, context.run, context.inputs, context.progress)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("2020-09-15", "2020-09-15T00:00:00+00:00"),
        ("2020-09-15T12:30:00", "2020-09-15T12:30:00+00:00"),
        ("2020-09-15T12:30:00+02:00", "2020-09-15T10:30:00+00:00"),
    ],
)
def test_a_moment_without_a_zone_is_utc(tmp_path: Path, program: Any, given: str, meant: str) -> None:
    of_days(tmp_path, 3)
    outcome = program("nightly", "--config", tmp_path / "recsys.toml", "--as-of", given, "--dry-run", "--json")
    assert outcome.exit_code == 0
    told = json.loads(outcome.out)["as_of"]
    assert datetime.fromisoformat(told) == datetime.fromisoformat(meant)


def test_what_is_no_moment_is_refused(tmp_path: Path, program: Any) -> None:
    of_days(tmp_path, 3)
    outcome = program("nightly", "--config", tmp_path / "recsys.toml", "--as-of", "yesterday")
    assert outcome[:2] == (2, "")
    assert "prepare.as_of" in outcome.err
    assert "'yesterday'" in outcome.err


# --- --dry-run


def test_a_dry_run_writes_nothing_and_tells_what_is_to_do(tmp_path: Path, program: Any) -> None:
    config = quick(tmp_path)
    found = everything_below(tmp_path)
    planned = plan_run(config)
    assert everything_below(tmp_path) == found
    assert planned["interactions"] == [str(tmp_path / "interactions.parquet")]
    assert planned["items"] == [str(tmp_path / "items.csv")]
    assert set(planned["stages"].values()) == {"to do"}
    assert planned["champion"] is None
    context = RunContext.from_config(config)
    assert planned["run_id"] == context.run.run_id
    prepare(context.config, context.run, context.inputs, context.progress)
    assert plan_run(config)["stages"] == dict.fromkeys(STAGES, "to do") | {"prepare": "done"}
    for_people = program("nightly", "--config", tmp_path / "recsys.toml", "--dry-run")
    assert for_people.exit_code == 0
    assert str(tmp_path / "items.csv") in for_people.out


# --- --max-minutes


def test_no_stage_begins_that_cannot_fit(tmp_path: Path) -> None:
    """By what it took in another night of the workspace."""
    config = quick(tmp_path)
    other = tmp_path / "workspace" / "runs" / "0123456789ab"
    other.mkdir(parents=True)
    report = {"format": report_files.FORMAT, "run_id": "0123456789ab", "ended_at": "2026-01-01", "outcome": "promoted"}
    known = {"stage": None, "seconds": {"prepare": 1.0, "train": 601.0}, "quality": None}
    (other / report_files.REPORT).write_text(json.dumps(report | known))
    summary: Summary = {}
    with pytest.raises(StageError, match=r"stage train must finish within --max-minutes 10.*took 601 s last time"):
        run_nightly(config, QUIET, time_limit=TimeLimit(10), on_end=summary.update)
    assert (summary["outcome"], summary["stage"]) == ("failed", "train")
    context = RunContext.from_config(config)
    assert [context.run.done(stage) for stage in ("prepare", "train")] == [True, False]
    assert Path(summary["report"]).exists()


def test_a_stage_is_interrupted_when_the_time_is_over() -> None:
    """What it finished stays, as if a person had interrupted it."""
    ends = []

    def stage() -> None:
        with TimeLimit(0.001).enforce("train"):
            try:
                while True:
                    pass
            except KeyboardInterrupt:
                ends.append("interrupted")
                raise

    with pytest.raises(StageError, match=r"stage train must finish within --max-minutes"):
        stage()
    assert ends == ["interrupted"]


def test_without_a_limit_everything_fits() -> None:
    time_limit = TimeLimit()
    time_limit.require("train", 1e9)
    with time_limit.enforce("train"):
        pass


# --- what is told


def test_a_night_whose_input_is_missing_is_told_of(tmp_path: Path, program: Any) -> None:
    """To the command of the config, and as one line of JSON; the exit code says whose fault it is."""
    quick(tmp_path)
    (tmp_path / "interactions.parquet").unlink()
    code = f"import sys; open({str(tmp_path / 'told')!r}, 'w').write(sys.stdin.read())"
    command = f"notify.command={json.dumps([sys.executable, '-c', code])}"
    outcome = program("nightly", "--config", tmp_path / "recsys.toml", "--json", "--set", command)
    assert outcome.exit_code == 2
    (line,) = outcome.out.splitlines()
    summary = json.loads(line)
    assert (summary["outcome"], summary["run_id"]) == ("failed", None)
    assert "interactions.parquet" in summary["error"]
    assert summary["text"].startswith("item-tower: run failed: ")
    assert json.loads((tmp_path / "told").read_text()) == summary


# --- --resume


@pytest.mark.slow
def test_the_last_unfinished_night_is_gone_on_with_on_the_data_that_it_read(tmp_path: Path, program: Any) -> None:
    """The same command would begin another run, since the data are others by now."""
    command = ["nightly", "--config", tmp_path / "recsys.toml", "--json", "--resume"]
    command += [part for override in world.QUICK for part in ("--set", override)]
    config = quick(tmp_path)
    nothing = program(*command)
    assert nothing.exit_code == 2
    assert "error: --resume must find a run" in nothing.err
    with pytest.raises(StageError):
        run_nightly(config, QUIET, time_limit=TimeLimit(0.0001))
    assert program(*command).exit_code == 2  # it read nothing yet
    begun = RunContext.from_config(config)
    prepare(begun.config, begun.run, begun.inputs, begun.progress)
    done = (begun.run.folder / "prepare" / "_MANIFEST.json").stat().st_mtime_ns
    world.write(tmp_path, seed=1)
    other = RunContext.from_config(config)
    assert other.run.run_id != begun.run.run_id
    quality = "promote.quality_floor=0"
    resumed = json.loads(program(*command, "--set", quality).out)
    assert resumed["run_id"] == begun.run.run_id
    assert resumed["outcome"] == "promoted", resumed["error"]
    assert (begun.run.folder / "prepare" / "_MANIFEST.json").stat().st_mtime_ns == done
    assert not other.run.done("prepare")
    client = Tracker(config).client
    (data, _) = client.get_run(resumed["mlflow_run"]).inputs.dataset_inputs
    assert data.dataset.digest == begun.run.data_snapshot[:36]
    again = program(*command)  # it came to its end, which those before it must not undo
    assert again.exit_code == 2
    assert "no later run that finished" in again.err


# --- MLflow is away


@pytest.fixture
def closed() -> str:
    """URL of a port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def hanging() -> Iterator[str]:
    """URL of a server that takes every connection and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("server", ["closed", "hanging"])
def test_a_night_ends_before_its_work_where_mlflow_is_away(
    tmp_path: Path, program: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    quick(tmp_path)
    uri = request.getfixturevalue(server)
    outcome = program("nightly", "--config", tmp_path / "recsys.toml", "--json", "--set", f"tracking.uri={uri}")
    assert outcome.exit_code == 1
    assert f"error: MLflow at {uri} must answer" in outcome.err
    assert "Traceback" not in outcome.err
    summary = json.loads(outcome.out)
    assert (summary["outcome"], summary["stage"]) == ("failed", "mlflow")
    assert "ended in mlflow" in Path(summary["report"]).read_text()
    assert not [*tmp_path.glob("workspace/runs/*/prepare")]


@pytest.mark.slow
def test_figures_wait_for_mlflow_and_the_night_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow goes away while the tower is trained, is not back when the release is registered, and then is.

    That it is not told of the end costs nothing, and the same command tells it.
    """
    config = quick(tmp_path)
    log, register, away = Tracker.log_metrics, Tracker.register, True

    def gone(how: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            if away:
                raise TrackingError("MLflow must answer.")
            return how(*given, **named)

        return call

    monkeypatch.setattr(Tracker, "log_metrics", gone(log))
    monkeypatch.setattr(Tracker, "register", gone(register))
    summary: Summary = {}
    with pytest.raises(TrackingError):
        run_nightly(config, QUIET, promotes=False, on_end=summary.update)
    assert (summary["outcome"], summary["stage"]) == ("failed", "publish")
    context = RunContext.from_config(config)
    trained = (context.run.folder / "train" / "_MANIFEST.json").stat().st_mtime_ns
    away, night_run, finish = False, context.tracking.mlflow_run, Tracker.finish_run

    def untold(tracker: Tracker, run: str, status: str) -> None:
        if run == night_run:
            raise TrackingError("MLflow must answer.")
        finish(tracker, run, status)

    with monkeypatch.context() as patched:
        patched.setattr(Tracker, "finish_run", untold)
        assert run_nightly(config, QUIET, promotes=False)["outcome"] == "published"
    assert run_nightly(config, QUIET, promotes=False)["outcome"] == "published"
    assert context.tracking.tracker.client.get_run(night_run).info.status == "FINISHED"
    assert (context.run.folder / "train" / "_MANIFEST.json").stat().st_mtime_ns == trained
    metrics = context.tracking.tracker.client.get_run(context.tracking.mlflow_run).data.metrics
    curve = context.run.manifest("train")["curve"]
    assert metrics["train_loss"] == curve[-1]["loss"]
    assert metrics["interactions_read"] == 900
    assert not (context.run.folder / "unsent.jsonl").exists()
    for name in (report_files.PAGE, report_files.REPORT):
        kept = context.tracking.tracker.read_artifact(context.tracking.mlflow_run, name)
        assert kept == (context.run.folder / name).read_text()


def test_mlflow_tells_of_the_data_and_of_each_stage(tmp_path: Path) -> None:
    config = quick(tmp_path)
    run_nightly(config, QUIET, promotes=False)
    context = RunContext.from_config(config)
    client, run = context.tracking.tracker.client, context.tracking.tracker.client.get_run(context.tracking.mlflow_run)
    data = {put.dataset.name: (put.dataset.digest, put.dataset.source) for put in run.inputs.dataset_inputs}
    digest = context.run.data_snapshot[:36]
    assert data == {
        "interactions": (digest, json.dumps([str(tmp_path / "interactions.parquet")])),
        "items": (digest, json.dumps([str(tmp_path / "items.csv")])),
    }
    below = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
    stages = {child.info.run_name: child for child in below}
    assert set(stages) == set(STAGES) - {"promote"}
    assert len(below) == len(stages)
    assert {child.info.status for child in below} == {"FINISHED"}
    assert stages["prepare"].data.metrics["num_items"] == 49
    for child in below:
        assert child.data.metrics["seconds"] >= 0
        assert child.data.metrics["cpu_seconds"] >= 0
        assert child.data.metrics["peak_memory_mb"] > 1
    kept = {artifact.path for artifact in client.list_artifacts(run.info.run_id, "plots")}
    assert {f"plots/{name}.svg" for name in ("recall", "similarity", "exposure", "map")} <= kept
    assert not [name for name in run.data.metrics if name.startswith("system/")]
    run_nightly(config, QUIET, promotes=False)  # nothing is done again but registering
    again = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
    assert len(again) == len(below)


def test_what_goes_wrong_with_drawings_costs_no_night(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "draw", Mock(side_effect=ZeroDivisionError("no width")))
    report = Progress(quiet=True)
    said: list[str] = []
    monkeypatch.setattr(report, "write", said.append)
    assert run_nightly(quick(tmp_path), report, promotes=False)["outcome"] == "published"
    assert "  the end of the run could not be logged to MLflow: ZeroDivisionError: no width" in said


@pytest.mark.slow
def test_mlflow_measures_the_machine_where_its_own_variable_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    config = quick(tmp_path)
    summary = run_nightly(config, QUIET, promotes=False)
    measured = Tracker(config).client.get_run(summary["mlflow_run"]).data.metrics
    assert measured["system/system_memory_usage_megabytes"] > 0
    assert "SystemMetricsMonitor" not in {thread.name for thread in threading.enumerate()}


def test_a_night_that_ends_before_its_release_leaves_its_data_report_in_mlflow(tmp_path: Path) -> None:
    floor = ["index.n_trees=1", "index.recall_target=1.0", "index.recall_floor=1.0"]
    config = quick(tmp_path, *floor)
    summary: Summary = {}
    with pytest.raises(StageError, match=r"recall"):
        run_nightly(config, QUIET, on_end=summary.update)
    assert summary["stage"] == "index"
    context = RunContext.from_config(config)
    for name in ("data_report.json", "data_report.html"):
        kept = context.tracking.tracker.read_artifact(context.tracking.mlflow_run, f"prepare/{name}")
        assert kept == context.run.path("prepare", name).read_text()


@pytest.mark.slow
def test_a_disk_that_is_full_under_mlflow_is_told_and_the_night_goes_on_later(tmp_path: Path) -> None:
    """No file of the process may grow beyond MLflow's database as it is: SQLite is told that the disk is full."""
    config = quick(tmp_path)
    Tracker(config)
    size = (tmp_path / "workspace" / "mlflow.db").stat().st_size
    command = [programs.RECSYS, "nightly", "--config", tmp_path / "recsys.toml", "--json"]
    command += [part for override in world.QUICK for part in ("--set", override)]

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=programs.TIMEOUT_S,
        check=False,
        preexec_fn=full,
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
def test_past_nights_are_run_oldest_first_and_once(tmp_path: Path, program: Any) -> None:
    config = of_days(tmp_path, 4)
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
    again = program("backfill", *flags, "--config", tmp_path / "recsys.toml", *settings)
    assert again.exit_code == 0
    assert json.loads(again.out) == [
        {"as_of": f"2020-09-{day}", "run_id": run.run_id, "outcome": "published", "skipped": True}
        for day, run in zip((14, 15, 16), runs, strict=True)
    ]


def test_days_in_the_wrong_order_are_refused(tmp_path: Path, program: Any) -> None:
    quick(tmp_path)
    flags = ("--from", "2020-09-16", "--to", "2020-09-14")
    outcome = program("backfill", *flags, "--config", tmp_path / "recsys.toml")
    assert outcome[:2] == (2, "")
    assert "--from must not be after --to. Received: 2020-09-16 and 2020-09-14" in outcome.err


def test_an_end_that_there_is_not_cannot_be_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"notify\.on"):
        quick(tmp_path, 'notify.on=["succeeded"]')
