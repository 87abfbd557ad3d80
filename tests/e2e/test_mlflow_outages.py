"""Outages of MLflow during each stage of a nightly run: its result, its errors, and the release in service.

A real tracking server behind a proxy that is interrupted when a stage is completed, and a real disk that is full.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
from mlflow import MlflowClient

from pipelines.context.progress import Progress
from pipelines.orchestration import report_files
from pipelines.orchestration.nightly import STAGES, Summary, run_nightly
from recsys.config.loading import load_config
from recsys.errors import TrackingError
from recsys.release import promotion
from recsys.release.mlflow_registry import Tracker
from recsys.testing import program, world
from tests.e2e import tracking_server
from tests.e2e.tcp_proxy import TcpProxy, proxy_to

pytestmark = pytest.mark.e2e

LENIENT = ["promote.tolerance=1", "promote.stratum_tolerance=1", "promote.overlap_floor=0", "promote.quality_floor=0"]
"""After one pass, it is chance which of two releases is better."""


class ProgressWithCallback(Progress):
    """Calls a function when a stage is completed."""

    def __init__(self, stage: str = "none", callback: Callable[[], object] = lambda: None) -> None:
        super().__init__(quiet=True)
        self.stage_line = re.compile(rf"  {stage} +\d")
        self.callback = callback

    def write(self, line: str) -> None:
        if self.stage_line.match(line):
            self.callback()


class Pipeline:
    """A workspace with new data for each nightly run, and its MLflow."""

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder, self.uri, self.num_data = folder, uri, 0
        self.write_new_data()
        assert self.run(ProgressWithCallback())["outcome"] == "promoted"

    def write_new_data(self) -> None:
        """Replace the data; the next nightly run has another run id."""
        path = world.write(self.folder, seed=self.num_data)
        path.write_text(f'{path.read_text()}\n[tracking]\nuri = "{self.uri}"\n')
        self.config = load_config(path, [*world.QUICK, *LENIENT])
        self.num_data += 1

    def run(self, progress: Progress, on_end: Callable[[Summary], object] = lambda _: None) -> Summary:
        return run_nightly(self.config, progress, on_end=on_end)

    @property
    def champion(self) -> str:
        champion = Tracker(self.config).champion()
        assert champion is not None
        return champion.release_id

    def stage_times(self, run_id: str) -> dict[str, int]:
        """Return when each stage of a run was completed."""
        manifests = (self.folder / "workspace" / "runs" / run_id).glob("*/_MANIFEST.json")
        return {path.parent.name: path.stat().st_mtime_ns for path in manifests}

    def require_complete_tracking(self, summary: Summary) -> None:
        """Require that MLflow has everything about a run exactly once."""
        run_id = summary["run_id"]
        client, config = MlflowClient(self.uri), self.config
        versions = client.search_model_versions(f"name = '{config.tracking.model}'")
        assert [version.tags["recsys.release_id"] for version in versions].count(run_id) == 1
        run = client.get_run(summary["mlflow_run"])
        assert run.info.status == "FINISHED"
        folder = self.folder / "workspace" / "runs" / run_id
        trained = json.loads((folder / "train" / "_MANIFEST.json").read_text())
        assert run.data.metrics["train_loss"] == trained["curve"][-1]["loss"]
        assert len(client.get_metric_history(run.info.run_id, "train_loss")) == len(trained["curve"])
        children = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
        assert sorted(child.info.run_name for child in children) == sorted(STAGES)
        assert {child.info.status for child in children} == {"FINISHED"}
        tracker = Tracker(config)
        for name in (report_files.PAGE, report_files.REPORT, "prepare/data_report.html"):
            assert tracker.read_artifact(run.info.run_id, name) == (folder / name).read_text()
        assert not (folder / "unsent.jsonl").exists()
        promoted = [event.after for event in tracker.events()]
        assert promoted == [event.after for event in promotion.events(tracker)]
        assert (promoted[-1], promoted.count(run_id)) == (run_id, 1)


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TcpProxy]:
    """A proxy to a tracking server."""
    folder = tmp_path_factory.mktemp("server")
    with tracking_server.serving(f"sqlite:///{folder}/mlflow.db", folder / "files") as url, proxy_to(url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def shared_pipeline(proxy: TcpProxy, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline(tmp_path_factory.mktemp("pipeline"), proxy.url)


@pytest.fixture
def pipeline(shared_pipeline: Pipeline) -> Pipeline:
    """A pipeline with a champion and new data."""
    shared_pipeline.write_new_data()
    return shared_pipeline


class Outage:
    """An outage of MLflow. Requests time out after a second during it, and as usual after it."""

    def __init__(self, proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch) -> None:
        self.proxy, self.monkeypatch = proxy, monkeypatch

    def begin(self, mode: Literal["closed", "hanging"]) -> None:
        self.monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        self.monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        self.proxy.interrupt(mode)

    def end(self) -> None:
        self.monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
        self.monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
        self.proxy.restore()


@pytest.fixture
def outage(proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Outage]:
    outage = Outage(proxy, monkeypatch)
    yield outage
    outage.end()


@contextmanager
def service_of(pipeline: Pipeline) -> Iterator[Callable[[], str]]:
    """Start a service on the champion; yield a function that returns the release that answers queries."""
    process = program.start(
        "serve", "--config", pipeline.folder / "recsys.toml", "--port", 0, "--set", "serve.poll_seconds=1"
    )
    try:
        assert process.stderr is not None
        url = next(
            match.group(1) for line in process.stderr if (match := re.search(r"running on (http://[\d.:]+)", line))
        )

        def served_release() -> str:
            body = httpx.get(f"{url}/v1/items/item-0-0/similar").raise_for_status().json()
            assert body["neighbors"]
            release_id: str = body["release_id"]
            return release_id

        yield served_release
    finally:
        process.terminate()
        process.communicate(timeout=program.TIMEOUT_S)


def run_fails(pipeline: Pipeline, progress: Progress) -> Summary:
    """Return the summary of a nightly run that fails because of MLflow."""
    summary: Summary = {}
    with pytest.raises(TrackingError, match=re.escape(f"MLflow at {pipeline.uri} must answer")):
        pipeline.run(progress, summary.update)
    assert summary["outcome"] == "failed"
    assert Path(summary["report"]).exists()
    return summary


@pytest.mark.parametrize(
    ("stage", "mode"),
    [
        ("prepare", "hanging"),
        ("train", "closed"),
        ("embed", "hanging"),
        ("index", "closed"),
        ("evaluate", "hanging"),
        ("calibrate", "closed"),
        ("publish", "hanging"),
    ],
)
def test_run_resumes_after_an_outage_without_repeating_stages(
    pipeline: Pipeline, outage: Outage, stage: str, mode: Literal["closed", "hanging"]
) -> None:
    """The run continues until it needs MLflow, and the next run repeats no stage."""
    before, champion = outage.proxy.silent_connections, pipeline.champion
    failed = run_fails(pipeline, ProgressWithCallback(stage, lambda: outage.begin(mode)))
    assert failed["stage"] == ("promote" if stage == "publish" else "publish")
    # MLflow is tried for the stages, for the request that cannot wait, and at the end
    assert outage.proxy.silent_connections - before <= 4
    outage.end()
    assert pipeline.champion == champion
    times = pipeline.stage_times(failed["run_id"])
    assert list(STAGES)[:-2] == sorted(times, key=lambda name: times[name])
    resumed = pipeline.run(ProgressWithCallback())
    assert (resumed["outcome"], resumed["run_id"]) == ("promoted", failed["run_id"])
    assert pipeline.stage_times(resumed["run_id"]) == times
    assert pipeline.champion == resumed["release_id"]
    pipeline.require_complete_tracking(resumed)


@pytest.mark.parametrize(
    ("method", "alias_moved"),
    [("version_tags", False), ("promote", True), ("record", True)],
    ids=["after reading tags", "after moving the alias", "before recording the event"],
)
def test_interrupted_promotion_is_completed_by_the_next_run(
    pipeline: Pipeline, outage: Outage, monkeypatch: pytest.MonkeyPatch, method: str, alias_moved: bool
) -> None:
    """The service answers during the outage, and the promotion history has every event after it."""
    champion, original = pipeline.champion, getattr(Tracker, method)

    def interrupted(*args: Any) -> Any:
        if method == "record":
            outage.begin("closed")
        result = original(*args)
        outage.begin("closed")
        return result

    with service_of(pipeline) as served_release, monkeypatch.context() as patch:
        patch.setattr(Tracker, method, interrupted)
        failed = run_fails(pipeline, ProgressWithCallback())
        assert failed["stage"] == "promote"
        assert served_release() in {champion, *([failed["run_id"]] if alias_moved else [])}
    release = pipeline.folder / "workspace" / "releases" / champion
    assert program.run("similar", "item-0-0", "--release", release, "--json").returncode == 0
    outage.end()
    assert (pipeline.champion != champion) == alias_moved
    resumed = pipeline.run(ProgressWithCallback())
    assert (resumed["outcome"], resumed["run_id"]) == ("promoted", failed["run_id"])
    pipeline.require_complete_tracking(resumed)
    assert [event.before for event in Tracker(pipeline.config).events()][-1] == champion


def test_outage_after_the_promotion_only_delays_tracking(pipeline: Pipeline, outage: Outage) -> None:
    summary = pipeline.run(ProgressWithCallback("promote", lambda: outage.begin("hanging")))
    assert summary["outcome"] == "promoted"
    outage.end()
    assert pipeline.champion == summary["release_id"]
    pipeline.require_complete_tracking(pipeline.run(ProgressWithCallback()))


# --- full disk


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of two megabytes; mounting it needs root."""
    folder = tmp_path_factory.mktemp("disk")
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if not mount or not umount:
        pytest.skip("needs mount")
    command = [mount, "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder]
    mounted = subprocess.run(command, check=False, capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"needs the right to mount: {mounted.stderr.strip()}")
    yield folder
    subprocess.run([umount, "--lazy", folder], check=True)


@pytest.fixture(scope="module")
def pipeline_on_disk(disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline(tmp_path_factory.mktemp("pipeline-on-disk"), f"sqlite:///{disk}/mlflow.db")


@pytest.mark.parametrize("stage", ["prepare", "publish"])
def test_run_resumes_after_the_disk_was_full(pipeline_on_disk: Pipeline, disk: Path, stage: str) -> None:
    filler = disk / "filler"

    def fill() -> None:
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(512)):
                pass

    pipeline_on_disk.write_new_data()
    champion = pipeline_on_disk.champion
    failed = run_fails(pipeline_on_disk, ProgressWithCallback(stage, fill))
    assert "disk" in failed["error"]
    assert failed["stage"] == ("promote" if stage == "publish" else "publish")
    assert pipeline_on_disk.champion == champion
    done = program.run("similar", "item-0-0", "--config", pipeline_on_disk.folder / "recsys.toml", "--json")
    assert json.loads(done.stdout)["release_id"] == champion
    filler.unlink()
    resumed = pipeline_on_disk.run(ProgressWithCallback())
    assert (resumed["outcome"], resumed["run_id"]) == ("promoted", failed["run_id"])
    pipeline_on_disk.require_complete_tracking(resumed)
