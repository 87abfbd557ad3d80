"""MLflow goes away at each stage of a night: what the night does, what it says, and what is served meanwhile.

A real tracking server behind a line that is cut as soon as a stage is done, and a real disk that is full.
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
from tests.e2e.line import Line, line_to

pytestmark = pytest.mark.e2e

LENIENT = ["promote.tolerance=1", "promote.stratum_tolerance=1", "promote.overlap_floor=0", "promote.quality_floor=0"]
"""After one pass it is chance which release is the better one."""


class Watching(Progress):
    """Does something as soon as a stage is done."""

    def __init__(self, stage: str = "none", then: Callable[[], object] = lambda: None) -> None:
        super().__init__(quiet=True)
        self.stage_line = re.compile(rf"  {stage} +\d")
        self.then = then

    def write(self, line: str) -> None:
        if self.stage_line.match(line):
            self.then()


class Place:
    """A workspace whose nights are of other data each, and their MLflow."""

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder, self.uri, self.nights = folder, uri, 0
        self.new_data()
        assert self.run(Watching())["outcome"] == "promoted"

    def new_data(self) -> None:
        """The next night is another run."""
        path = world.write(self.folder, seed=self.nights)
        path.write_text(f'{path.read_text()}\n[tracking]\nuri = "{self.uri}"\n')
        self.config = load_config(path, [*world.QUICK, *LENIENT])
        self.nights += 1

    def run(self, report: Progress, tell: Callable[[Summary], object] = lambda _: None) -> Summary:
        return run_nightly(self.config, report, on_end=tell)

    @property
    def champion(self) -> str:
        found = Tracker(self.config).champion()
        assert found is not None
        return found.release_id

    def stages(self, run_id: str) -> dict[str, int]:
        """When each stage of a run was done."""
        manifests = (self.folder / "workspace" / "runs" / run_id).glob("*/_MANIFEST.json")
        return {path.parent.name: path.stat().st_mtime_ns for path in manifests}

    def require_whole(self, summary: Summary) -> None:
        """Everything of a night is in MLflow, and once."""
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
        below = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
        assert sorted(child.info.run_name for child in below) == sorted(STAGES)
        assert {child.info.status for child in below} == {"FINISHED"}
        tracker = Tracker(config)
        for name in (report_files.PAGE, report_files.REPORT, "prepare/data_report.html"):
            assert tracker.read_artifact(run.info.run_id, name) == (folder / name).read_text()
        assert not (folder / "unsent.jsonl").exists()
        told = [event.after for event in tracker.events()]
        assert told == [event.after for event in promotion.events(tracker)]
        assert (told[-1], told.count(run_id)) == (run_id, 1)


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    """A line to a tracking server."""
    folder = tmp_path_factory.mktemp("server")
    with tracking_server.serving(f"sqlite:///{folder}/mlflow.db", folder / "files") as url, line_to(url) as found:
        yield found


@pytest.fixture(scope="module")
def shared(line: Line, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("place"), line.url)


@pytest.fixture
def place(shared: Place) -> Place:
    """A champion, and a night that is still to be done."""
    shared.new_data()
    return shared


class Outage:
    """MLflow away, and back. Nobody waits long for what will not come, and a busy server is waited for."""

    def __init__(self, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
        self.line, self.monkeypatch = line, monkeypatch

    def begin(self, how: Literal["closed", "hanging"]) -> None:
        self.monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        self.monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        self.line.cut(how)

    def end(self) -> None:
        self.monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
        self.monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
        self.line.mend()


@pytest.fixture
def outage(line: Line, monkeypatch: pytest.MonkeyPatch) -> Iterator[Outage]:
    found = Outage(line, monkeypatch)
    yield found
    found.end()


@contextmanager
def service_of(place: Place) -> Iterator[Callable[[], str]]:
    """A service on the champion; gives which release answers."""
    process = program.start(
        "serve", "--config", place.folder / "recsys.toml", "--port", 0, "--set", "serve.poll_seconds=1"
    )
    try:
        assert process.stderr is not None
        url = next(
            found.group(1) for said in process.stderr if (found := re.search(r"running on (http://[\d.:]+)", said))
        )

        def answering() -> str:
            answer = httpx.get(f"{url}/v1/items/item-0-0/similar").raise_for_status().json()
            assert answer["neighbors"]
            release_id: str = answer["release_id"]
            return release_id

        yield answering
    finally:
        process.terminate()
        process.communicate(timeout=program.TIMEOUT_S)


def fails(place: Place, report: Progress) -> Summary:
    """A night that MLflow stops."""
    summary: Summary = {}
    with pytest.raises(TrackingError, match=re.escape(f"MLflow at {place.uri} must answer")):
        place.run(report, summary.update)
    assert summary["outcome"] == "failed"
    assert Path(summary["report"]).exists()
    return summary


@pytest.mark.parametrize(
    ("stage", "how"),
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
def test_a_night_goes_on_later_from_where_mlflow_went_away(
    place: Place, outage: Outage, stage: str, how: Literal["closed", "hanging"]
) -> None:
    """Cut when a stage is done: the work goes on to where MLflow must answer, and none of it is done again."""
    tried, champion = outage.line.tried, place.champion
    failed = fails(place, Watching(stage, lambda: outage.begin(how)))
    assert failed["stage"] == ("promote" if stage == "publish" else "publish")
    assert outage.line.tried - tried <= 4  # it is found out for the stages, for what must not wait, and at the end
    outage.end()
    assert place.champion == champion
    done = place.stages(failed["run_id"])
    assert list(STAGES)[:6] == sorted(done, key=lambda name: done[name])
    again = place.run(Watching())
    assert (again["outcome"], again["run_id"]) == ("promoted", failed["run_id"])
    assert place.stages(again["run_id"]) == done
    assert place.champion == again["release_id"]
    place.require_whole(again)


@pytest.mark.parametrize(
    ("last", "moved"), [("version_tags", False), ("promote", True), ("record", True)], ids=["asked", "moved", "told"]
)
def test_a_promotion_that_is_cut_off_is_told_later(
    place: Place, outage: Outage, monkeypatch: pytest.MonkeyPatch, last: str, moved: bool
) -> None:
    """MLflow goes away right after a request of it. The champion is served, and in the end the history is whole."""
    champion, ask = place.champion, getattr(Tracker, last)

    def ask_and_cut(*given: Any) -> Any:
        if last == "record":
            outage.begin("closed")
        answer = ask(*given)
        outage.begin("closed")
        return answer

    with service_of(place) as served, monkeypatch.context() as patched:
        patched.setattr(Tracker, last, ask_and_cut)
        failed = fails(place, Watching())
        assert failed["stage"] == "promote"
        assert served() in {champion, *([failed["run_id"]] if moved else [])}
    release = place.folder / "workspace" / "releases" / champion
    assert program.run("similar", "item-0-0", "--release", release, "--json").returncode == 0
    outage.end()
    assert (place.champion != champion) == moved
    again = place.run(Watching())
    assert (again["outcome"], again["run_id"]) == ("promoted", failed["run_id"])
    place.require_whole(again)
    assert [event.before for event in Tracker(place.config).events()][-1] == champion


def test_a_night_ends_well_that_mlflow_is_not_told_of_and_told_later(place: Place, outage: Outage) -> None:
    summary = place.run(Watching("promote", lambda: outage.begin("hanging")))
    assert summary["outcome"] == "promoted"
    outage.end()
    assert place.champion == summary["release_id"]
    place.require_whole(place.run(Watching()))


# --- a disk that is full


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A disk of two megabytes; only root can have one."""
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
def small(disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("small"), f"sqlite:///{disk}/mlflow.db")


@pytest.mark.parametrize("stage", ["prepare", "publish"])
def test_a_night_goes_on_later_from_where_the_disk_was_full(small: Place, disk: Path, stage: str) -> None:
    ballast = disk / "ballast"

    def fill() -> None:
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(512)):
                pass

    small.new_data()
    champion = small.champion
    failed = fails(small, Watching(stage, fill))
    assert "disk" in failed["error"]
    assert failed["stage"] == ("promote" if stage == "publish" else "publish")
    assert small.champion == champion
    answer = program.run("similar", "item-0-0", "--config", small.folder / "recsys.toml", "--json")
    assert json.loads(answer.stdout)["release_id"] == champion
    ballast.unlink()
    again = small.run(Watching())
    assert (again["outcome"], again["run_id"]) == ("promoted", failed["run_id"])
    small.require_whole(again)
