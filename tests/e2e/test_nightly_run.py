"""A nightly run on synthetic data, through the public interfaces: command line, HTTP, library and MLflow."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx
import pytest
from mlflow import MlflowClient

from recsys import Release
from recsys.config.loading import load_config
from recsys.errors import ReleaseError
from recsys.index.shards import INDEX_FILE
from recsys.release.formats import SHARED_FILES, SPACE_FILES
from recsys.release.mlflow_registry import Tracker
from recsys.testing import program, world

pytestmark = pytest.mark.e2e


class NightlyRun(NamedTuple):
    """A completed nightly run."""

    config: Path
    summary: dict[str, Any]

    @property
    def workspace(self) -> Path:
        return self.config.parent / "workspace"


@pytest.fixture(scope="module")
def nightly_run(tmp_path_factory: pytest.TempPathFactory) -> NightlyRun:
    config = world.write(tmp_path_factory.mktemp("world"))
    done = program.run("nightly", "--config", config, "--json")
    assert done.returncode == 0, done.stderr
    return NightlyRun(config, json.loads(done.stdout))


@pytest.fixture(scope="module")
def server(nightly_run: NightlyRun) -> Iterator[str]:
    """Base URL of a service on the champion, on a free port."""
    process = program.start("serve", "--config", nightly_run.config, "--port", 0)
    assert process.stderr is not None
    output = []
    for line in process.stderr:
        output.append(line)
        if match := re.search(r"running on (http://127\.0\.0\.1:\d+)", line):
            yield match.group(1)
            break
    else:
        pytest.fail("".join(output))
    process.terminate()
    process.communicate(timeout=program.TIMEOUT_S)


def similar(server: str, item_id: str, k: int) -> dict[str, Any]:
    response = httpx.get(f"{server}/v1/items/{quote(item_id, safe='')}/similar", params={"k": k})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


@pytest.mark.parametrize("block", range(world.BLOCKS))
def test_neighbors_over_http_are_the_other_items_of_the_block(server: str, nightly_run: NightlyRun, block: int) -> None:
    """All items of the block come first, in any order."""
    item, *expected = world.item_ids(block)
    if block == world.NEW_ITEM_BLOCK:
        expected.append(world.NEW_ITEM)
    result = similar(server, item, k=len(expected))
    assert {neighbor["item_id"] for neighbor in result["neighbors"]} == set(expected)
    assert result["release_id"] == nightly_run.summary["release_id"]
    assert [neighbor["rank"] for neighbor in result["neighbors"]] == list(range(1, len(expected) + 1))
    similarities = [neighbor["similarity"] for neighbor in result["neighbors"]]
    assert similarities == sorted(similarities, reverse=True)


def test_neighbors_of_a_new_item_have_its_genre(server: str) -> None:
    """The item has no interactions, and its id must be encoded in the path."""
    result = similar(server, world.NEW_ITEM, k=world.ITEMS_A_BLOCK)
    assert result["title"] == "Just out"
    assert {n["item_id"] for n in result["neighbors"]} == set(world.item_ids(world.NEW_ITEM_BLOCK))


def test_library_returns_the_same_neighbors_as_the_service(server: str, nightly_run: NightlyRun) -> None:
    """All digits of the similarities are equal."""
    result = Release.load(nightly_run.summary["path"]).similar("item-3-1", k=10)
    body = similar(server, "item-3-1", k=10)
    assert [neighbor._asdict() for neighbor in result.neighbors] == body["neighbors"]


def test_command_line_returns_the_same_neighbors_as_the_service(server: str, nightly_run: NightlyRun) -> None:
    done = program.run("similar", "item-3-1", "--k", 4, "--release", nightly_run.summary["path"], "--json")
    body = similar(server, "item-3-1", k=4)
    assert body.pop("next_cursor")  # only the service has pages
    assert json.loads(done.stdout) == body


def test_service_reports_its_release_and_its_state(server: str, nightly_run: NightlyRun) -> None:
    release_id = nightly_run.summary["release_id"]
    assert httpx.get(f"{server}/v1/release").json()["release_id"] == release_id
    assert httpx.get(f"{server}/livez").status_code == 200
    ready = httpx.get(f"{server}/readyz").json()
    assert ready == {"status": "ready", "release_id": release_id, "loaded": [release_id], "errors": {}}
    httpx.get(f"{server}/v1/items/item-0-0/similar").raise_for_status()
    assert f'release="{release_id}"' in httpx.get(f"{server}/metrics").text


def test_mlflow_has_version_metrics_and_artifacts_of_the_run(nightly_run: NightlyRun) -> None:
    client = MlflowClient(nightly_run.summary["tracking_uri"])
    version = client.get_model_version_by_alias("item-tower", "champion")
    assert version.tags["recsys.release_id"] == nightly_run.summary["release_id"]
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["tower.dimension"] == "16"
    evaluation = nightly_run.summary["evaluation"]
    for prefix, figures in (("", evaluation), ("history_", evaluation["history"])):
        assert run.data.metrics[f"{prefix}ndcg_at_20"] == figures["model"]["ndcg_at_20"]
        for name in ("popularity", "windowed_item_knn", "content"):
            assert run.data.metrics[f"{prefix}{name}_hr_at_10"] == figures["baselines"][name]["hr_at_10"]
    assert run.data.metrics["interactions_read"] == world.BLOCKS * world.USERS_A_BLOCK * world.ITEMS_A_USER
    assert run.data.tags["recsys.data_snapshot"] == version.tags["recsys.data_snapshot"]
    curve = client.get_metric_history(version.run_id, "train_validation_ndcg_at_20")
    assert [point.step for point in curve] == list(range(1, len(curve) + 1))
    assert len(curve) > 1
    artifacts = {
        artifact.path
        for folder in ("release", "release/next")
        for artifact in client.list_artifacts(version.run_id, folder)
    }
    assert {"release/manifest.json", "release/next/index.ann", "release/next/tower.keras"} <= artifacts
    artifacts = {artifact.path for artifact in client.list_artifacts(version.run_id, "prepare")}
    assert {"prepare/dead_letters.parquet", "prepare/data_report.json", "prepare/data_report.html"} <= artifacts


def test_other_machine_fetches_the_champion_from_mlflow(nightly_run: NightlyRun, tmp_path: Path) -> None:
    config = tmp_path / "recsys.toml"
    config.write_text(f'[data]\ninteractions = "none.csv"\n[tracking]\nuri = "{nightly_run.summary["tracking_uri"]}"\n')
    done = program.run("similar", "item-0-0", "--config", config, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["release_id"] == nightly_run.summary["release_id"]
    assert Release.load(tmp_path / "workspace" / "releases" / nightly_run.summary["release_id"])


def test_repeated_run_changes_no_file_and_adds_no_version(nightly_run: NightlyRun) -> None:
    files = [path for path in nightly_run.workspace.rglob("*") if path.is_file() and "mlflow.db" not in path.name]
    before = {path: path.stat().st_mtime_ns for path in files if path.name != ".lock"}
    done = program.run("nightly", "--config", nightly_run.config, "--json")
    assert done.returncode == 0, done.stderr
    assert "has nothing to do: its release is the champion" in done.stderr
    summary = json.loads(done.stdout)
    changed = {"seconds": {}, "skipped": True, "text": summary["text"]}
    assert summary == nightly_run.summary | changed
    assert {path: path.stat().st_mtime_ns for path in before} == before
    client = MlflowClient(nightly_run.summary["tracking_uri"])
    versions = client.search_model_versions("name = 'item-tower'")
    assert [v.tags["recsys.release_id"] for v in versions].count(nightly_run.summary["release_id"]) == 1


def test_worse_release_is_rejected_with_exit_code_1_and_the_champion_stays(
    nightly_run: NightlyRun, tmp_path: Path
) -> None:
    """A second run with the same settings is rejected again; the rejected version stays registered.

    The genres are left out, because even an untrained tower retrieves the block by them.
    """
    config = copy_of(nightly_run, tmp_path)
    settings = ("train.passes=1", "train.learning_rate=1e-9", "items.categorical=[]")
    worse = ["nightly", "--config", config, *(part for setting in settings for part in ("--set", setting))]
    for _ in range(2):
        done = program.run(*worse)
        assert done.returncode == 1
        assert "ndcg_at_20" in done.stderr
        assert "Traceback" not in done.stderr
    client = MlflowClient(f"sqlite:///{tmp_path}/workspace/mlflow.db")
    champion = client.get_model_version_by_alias("item-tower", "champion")
    assert champion.tags["recsys.release_id"] == nightly_run.summary["release_id"]
    assert len(client.search_model_versions("name = 'item-tower'")) == 2


def test_equally_good_release_becomes_champion_and_the_old_one_previous(
    nightly_run: NightlyRun, tmp_path: Path
) -> None:
    """The order of the neighbors within a block is chance, so the tolerance is larger than the default."""
    config = copy_of(nightly_run, tmp_path)
    world.write(tmp_path, seed=1)
    done = program.run("nightly", "--config", config, "--json", "--set", "promote.tolerance=0.2")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    client = MlflowClient(summary["tracking_uri"])
    champion, previous = (client.get_model_version_by_alias("item-tower", a) for a in ("champion", "previous"))
    assert champion.tags["recsys.release_id"] == summary["release_id"] != nightly_run.summary["release_id"]
    assert previous.tags["recsys.release_id"] == nightly_run.summary["release_id"]
    assert Release.load(summary["path"]).manifest.parent_release == nightly_run.summary["release_id"]


def test_warm_start_has_another_run_id(nightly_run: NightlyRun, tmp_path: Path) -> None:
    """The run id depends on the release that training starts from."""
    world.write(tmp_path, seed=4)
    warm_start = f"data.warm_start={nightly_run.summary['path']}"
    done = program.run("nightly", "--config", tmp_path / "recsys.toml", "--set", warm_start, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    cold = program.run("prepare", "--config", tmp_path / "recsys.toml")
    assert cold.returncode == 0, cold.stderr
    runs = {path.name for path in (tmp_path / "workspace" / "runs").iterdir()}
    assert len(runs) == 2
    assert summary["release_id"] in runs
    assert Release.load(summary["path"]).similar("item-3-1", k=7)


def copy_of(nightly_run: NightlyRun, folder: Path) -> Path:
    """Copy the data and the workspace of a run to a folder; return the path of the config."""
    shutil.copytree(nightly_run.config.parent, folder, dirs_exist_ok=True)
    return folder / "recsys.toml"


LINES_BEFORE = {
    "prepare": r"^Run ",
    "train": r"^  prepare ",
    "embed": r"^  train ",
    "index": r"^  embed ",
    "evaluate": r"^  index ",
    "calibrate": r"^  evaluate ",
    "publish": r"^  calibrate ",
    "promote": r"^  publish ",
}
"""Pattern of the line that is printed right before a stage starts."""


SLOW_SETTINGS = [
    *("--set", "index.n_trees=5000"),
    *("--set", "promote.tolerance=0.2"),
]
"""Short stages take long enough to be killed, and the release is promoted."""


def test_run_killed_in_every_stage_is_completed_by_the_next_run(nightly_run: NightlyRun, tmp_path: Path) -> None:
    """A killed run leaves no incomplete stage and no incomplete release, and the champion can be loaded."""
    config = copy_of(nightly_run, tmp_path)
    world.write(tmp_path, seed=2)
    command = ["nightly", "--config", config, *SLOW_SETTINGS]
    killed_run = ""
    for stage, pattern in LINES_BEFORE.items():
        process = program.start(*command)
        output = kill_at_line(process, pattern)
        if process.returncode == 0 and stage in {"calibrate", "publish", "promote"}:
            break  # these are short: on a busy machine, the run may end before the signal arrives
        assert process.returncode == -9, f"{stage}: {output}"
        killed_run = re.search(r"^Run (\w+)", output, re.MULTILINE).group(1)  # type: ignore[union-attr]
        for folder in (tmp_path / "workspace" / "runs" / killed_run).glob("[!.]*"):
            assert (folder / "_MANIFEST.json").exists(), f"{stage} killed: {folder.name} is incomplete"
        for folder in (tmp_path / "workspace" / "releases").glob("[!.]*"):
            assert Release.load(folder), f"{stage} killed: the release {folder.name} is incomplete"
        champion = Tracker(load_config(config)).champion()
        assert champion is not None
        assert Release.load(tmp_path / "workspace" / "releases" / champion.release_id)
    done = program.run("similar", "item-0-0", "--config", config, "--json")
    assert done.returncode == 0, done.stderr
    done = program.run(*command, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["release_id"] == killed_run
    workspace = tmp_path / "workspace"
    assert not [*workspace.glob("releases/.tmp-*"), *workspace.glob(f"runs/{killed_run}/.tmp-*")]


def kill_at_line(process: subprocess.Popen[str], pattern: str) -> str:
    """Kill a process when it prints a line that matches; return its output."""
    assert process.stderr is not None
    output = []
    for line in process.stderr:
        output.append(line)
        if re.search(pattern, line):
            process.kill()
            break
    process.stderr.close()
    process.wait(timeout=program.TIMEOUT_S)
    return "".join(output)


def test_second_process_on_a_run_reports_that_it_is_locked(nightly_run: NightlyRun, tmp_path: Path) -> None:
    config = copy_of(nightly_run, tmp_path)
    world.write(tmp_path, seed=3)
    process = program.start("nightly", "--config", config)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("Run "):
            break
    second = program.run("prepare", "--config", config)
    process.kill()
    process.communicate(timeout=program.TIMEOUT_S)
    assert second.returncode == 1
    assert "Another process is already working" in second.stderr


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip_a_byte, truncate, Path.unlink], ids=["flipped byte", "truncated", "missing"])
@pytest.mark.parametrize("name", sorted([*SHARED_FILES, *(f"next/{name}" for name in (*SPACE_FILES, INDEX_FILE))]))
def test_damaged_release_is_rejected_with_the_file_name(
    nightly_run: NightlyRun, tmp_path: Path, name: str, damage: Any
) -> None:
    damaged = tmp_path / "release"
    shutil.copytree(nightly_run.summary["path"], damaged)
    damage(damaged / name)
    with pytest.raises(ReleaseError, match=name):
        Release.load(damaged)


def test_check_reports_a_damaged_release_without_traceback(nightly_run: NightlyRun, tmp_path: Path) -> None:
    damaged = tmp_path / "release"
    shutil.copytree(nightly_run.summary["path"], damaged)
    flip_a_byte(damaged / "next" / "index.ann")
    done = program.run("releases", "check", damaged)
    assert done.returncode == 1
    assert "SHA-256 of next/index.ann" in done.stderr
    assert "Traceback" not in done.stderr
