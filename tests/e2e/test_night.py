"""A whole night on the made-up world, through the front doors: the program, HTTP, the library, MLflow."""

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
from recsys.release.formats import FILES
from recsys.release.mlflow_registry import Tracker
from recsys.testing import program, world

pytestmark = pytest.mark.e2e


class Night(NamedTuple):
    """A finished night."""

    config: Path
    summary: dict[str, Any]

    @property
    def workspace(self) -> Path:
        return self.config.parent / "workspace"


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Night:
    config = world.write(tmp_path_factory.mktemp("world"))
    done = program.run("nightly", "--config", config, "--json")
    assert done.returncode == 0, done.stderr
    return Night(config, json.loads(done.stdout))


@pytest.fixture(scope="module")
def server(night: Night) -> Iterator[str]:
    """Base URL of a server on the champion, on a free port."""
    process = program.start("serve", "--config", night.config, "--port", 0)
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if found := re.search(r"running on (http://127\.0\.0\.1:\d+)", line):
            yield found.group(1)
            break
    else:
        pytest.fail("".join(seen))
    process.terminate()
    process.communicate(timeout=program.TIMEOUT_S)


def similar(server: str, item_id: str, k: int) -> dict[str, Any]:
    answer = httpx.get(f"{server}/v1/items/{quote(item_id, safe='')}/similar", params={"k": k})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


@pytest.mark.parametrize("block", range(world.BLOCKS))
def test_neighbors_over_http_are_the_other_items_of_the_block(server: str, night: Night, block: int) -> None:
    """The true answer, in whatever order: all of the block before anything else."""
    item, *others = world.item_ids(block)
    touched = len(others) + (block == world.NEW_ITEM_BLOCK)
    answer = similar(server, item, k=touched)
    expected = {*others, world.NEW_ITEM} if block == world.NEW_ITEM_BLOCK else set(others)
    assert {neighbor["item_id"] for neighbor in answer["neighbors"]} == expected
    assert answer["release_id"] == night.summary["release_id"]
    assert [neighbor["rank"] for neighbor in answer["neighbors"]] == list(range(1, touched + 1))
    similarities = [neighbor["similarity"] for neighbor in answer["neighbors"]]
    assert similarities == sorted(similarities, reverse=True)


def test_new_item_finds_its_genre_by_features_alone(server: str) -> None:
    """It was never touched, and its id has to be encoded in the path."""
    answer = similar(server, world.NEW_ITEM, k=world.ITEMS_A_BLOCK)
    assert answer["title"] == "Just out"
    assert {n["item_id"] for n in answer["neighbors"]} == set(world.item_ids(world.NEW_ITEM_BLOCK))


def test_library_gives_the_answer_of_the_service(server: str, night: Night) -> None:
    """`Release.load(path).similar(id)` and HTTP agree to the last digit."""
    answer = Release.load(night.summary["path"]).similar("item-3-1", k=10)
    over_http = similar(server, "item-3-1", k=10)
    assert [neighbor._asdict() for neighbor in answer.neighbors] == over_http["neighbors"]


def test_program_gives_the_answer_of_the_service(server: str, night: Night) -> None:
    done = program.run("similar", "item-3-1", "--k", 4, "--release", night.summary["path"], "--json")
    over_http = similar(server, "item-3-1", k=4)
    assert over_http.pop("next_cursor")  # pages are the service's
    assert json.loads(done.stdout) == over_http


def test_service_tells_its_release_and_its_state(server: str, night: Night) -> None:
    release_id = night.summary["release_id"]
    assert httpx.get(f"{server}/v1/release").json()["release_id"] == release_id
    assert httpx.get(f"{server}/livez").status_code == 200
    ready = httpx.get(f"{server}/readyz").json()
    assert ready == {"status": "ready", "release_id": release_id, "loaded": [release_id], "errors": {}}
    httpx.get(f"{server}/v1/items/item-0-0/similar").raise_for_status()
    assert f'release="{release_id}"' in httpx.get(f"{server}/metrics").text


def test_mlflow_holds_the_night(night: Night) -> None:
    """A version with the release as artifact, the alias, parameters, figures, curves and the snapshot."""
    client = MlflowClient(night.summary["tracking_uri"])
    version = client.get_model_version_by_alias("item-tower", "champion")
    assert version.tags["recsys.release_id"] == night.summary["release_id"]
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["tower.dimension"] == "16"
    evaluation = night.summary["evaluation"]
    for prefix, figures in (("", evaluation), ("history_", evaluation["history"])):
        assert run.data.metrics[f"{prefix}ndcg_at_20"] == figures["model"]["ndcg_at_20"]
        for name in ("popularity", "windowed_item_knn", "content"):
            assert run.data.metrics[f"{prefix}{name}_hr_at_10"] == figures["baselines"][name]["hr_at_10"]
    assert run.data.metrics["interactions_read"] == world.BLOCKS * world.USERS_A_BLOCK * world.TOUCHED
    assert run.data.tags["recsys.data_snapshot"] == version.tags["recsys.data_snapshot"]
    curve = client.get_metric_history(version.run_id, "train_validation_ndcg_at_20")
    assert [point.step for point in curve] == list(range(1, len(curve) + 1))
    assert len(curve) > 1
    artifacts = {artifact.path for artifact in client.list_artifacts(version.run_id, "release")}
    assert {"release/manifest.json", "release/index.ann", "release/tower.keras"} <= artifacts
    artifacts = {artifact.path for artifact in client.list_artifacts(version.run_id, "prepare")}
    assert {"prepare/dead_letters.parquet", "prepare/data_report.json", "prepare/data_report.html"} <= artifacts


def test_release_comes_back_whole_from_mlflow(night: Night, tmp_path: Path) -> None:
    """A machine that has never seen the release gets it by the alias."""
    config = tmp_path / "recsys.toml"
    config.write_text(f'[data]\ninteractions = "none.csv"\n[tracking]\nuri = "{night.summary["tracking_uri"]}"\n')
    done = program.run("similar", "item-0-0", "--config", config, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["release_id"] == night.summary["release_id"]
    assert Release.load(tmp_path / "workspace" / "releases" / night.summary["release_id"])


def test_same_night_twice_does_the_work_once(night: Night) -> None:
    """The same release id, no file touched, no second version."""
    files = [path for path in night.workspace.rglob("*") if path.is_file() and "mlflow.db" not in path.name]
    before = {path: path.stat().st_mtime_ns for path in files if path.name != ".lock"}
    done = program.run("nightly", "--config", night.config, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["release_id"] == night.summary["release_id"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    client = MlflowClient(night.summary["tracking_uri"])
    versions = client.search_model_versions("name = 'item-tower'")
    assert [v.tags["recsys.release_id"] for v in versions].count(night.summary["release_id"]) == 1


def test_a_worse_release_is_refused_and_the_champion_stays(night: Night, tmp_path: Path) -> None:
    """Exit 1 says so, now and when asked again; the refused version stays registered.

    It knows no genres, by which alone an untrained tower finds the block.
    """
    config = copy_of(night, tmp_path)
    settings = ("train.passes=1", "train.learning_rate=1e-9", "items.categorical=[]")
    worse = ["nightly", "--config", config, *(part for setting in settings for part in ("--set", setting))]
    for _ in range(2):
        done = program.run(*worse)
        assert done.returncode == 1
        assert "ndcg_at_20" in done.stderr
        assert "Traceback" not in done.stderr
    client = MlflowClient(f"sqlite:///{tmp_path}/workspace/mlflow.db")
    champion = client.get_model_version_by_alias("item-tower", "champion")
    assert champion.tags["recsys.release_id"] == night.summary["release_id"]
    assert len(client.search_model_versions("name = 'item-tower'")) == 2


def test_a_release_that_is_not_worse_takes_over(night: Night, tmp_path: Path) -> None:
    """Another day, another release; the old champion is kept as `previous`.

    Within a block the order of the neighbors is chance, so equals may differ by more than the default allows.
    """
    config = copy_of(night, tmp_path)
    world.write(tmp_path, seed=1)
    done = program.run("nightly", "--config", config, "--json", "--set", "promote.tolerance=0.2")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    client = MlflowClient(summary["tracking_uri"])
    champion, previous = (client.get_model_version_by_alias("item-tower", a) for a in ("champion", "previous"))
    assert champion.tags["recsys.release_id"] == summary["release_id"] != night.summary["release_id"]
    assert previous.tags["recsys.release_id"] == night.summary["release_id"]
    assert Release.load(summary["path"]).manifest.parent_release == night.summary["release_id"]


def test_a_night_goes_on_from_the_release_of_another(night: Night, tmp_path: Path) -> None:
    """A warm start is another run, and what it starts from is in its id."""
    world.write(tmp_path, seed=4)
    start = f"data.warm_start={night.summary['path']}"
    done = program.run("nightly", "--config", tmp_path / "recsys.toml", "--set", start, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    cold = program.run("prepare", "--config", tmp_path / "recsys.toml")
    assert cold.returncode == 0, cold.stderr
    runs = {path.name for path in (tmp_path / "workspace" / "runs").iterdir()}
    assert len(runs) == 2
    assert summary["release_id"] in runs
    assert Release.load(summary["path"]).similar("item-3-1", k=7)


def copy_of(night: Night, folder: Path) -> Path:
    """The world and its workspace after that night, to go on with; the path of the config."""
    shutil.copytree(night.config.parent, folder, dirs_exist_ok=True)
    return folder / "recsys.toml"


MOMENTS = {
    "prepare": r"^Run ",
    "train": r"^  prepare ",
    "embed": r"^  train ",
    "index": r"^  embed ",
    "evaluate": r"^  index ",
    "calibrate": r"^  evaluate ",
    "publish": r"^  calibrate ",
    "promote": r"^  publish ",
}
"""What the program says right before a stage begins."""


SLOWLY = [
    *("--set", "index.n_trees=5000"),
    *("--set", "promote.tolerance=0.2"),
]
"""Work enough for the short stages of a small world to be met by a signal, and chance enough to be promoted."""


def test_a_night_killed_in_every_stage_is_completed_by_the_next(night: Night, tmp_path: Path) -> None:
    """SIGKILL in one stage after the other: no half stage, no half release, the champion always loadable."""
    config = copy_of(night, tmp_path)
    world.write(tmp_path, seed=2)
    go = ["nightly", "--config", config, *SLOWLY]
    killed_run = ""
    for stage, moment in MOMENTS.items():
        process = program.start(*go)
        said = kill_when(process, moment)
        if process.returncode == 0 and stage in {"calibrate", "publish", "promote"}:
            break  # they are short: on a busy machine the night may be over before the signal comes
        assert process.returncode == -9, f"{stage}: {said}"
        killed_run = re.search(r"^Run (\w+)", said, re.MULTILINE).group(1)  # type: ignore[union-attr]
        for folder in (tmp_path / "workspace" / "runs" / killed_run).glob("[!.]*"):
            assert (folder / "_MANIFEST.json").exists(), f"{stage} killed: half of {folder.name} under its name"
        for folder in (tmp_path / "workspace" / "releases").glob("[!.]*"):
            assert Release.load(folder), f"{stage} killed: half a release under its name"
        champion = Tracker(load_config(config)).champion()
        assert champion is not None
        assert Release.load(tmp_path / "workspace" / "releases" / champion.release_id)
    answer = program.run("similar", "item-0-0", "--config", config, "--json")
    assert answer.returncode == 0, answer.stderr
    done = program.run(*go, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["release_id"] == killed_run
    workspace = tmp_path / "workspace"
    assert not [*workspace.glob("releases/.tmp-*"), *workspace.glob(f"runs/{killed_run}/.tmp-*")]


def kill_when(process: subprocess.Popen[str], moment: str) -> str:
    """Kill a process as soon as it says something; all that it said."""
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if re.search(moment, line):
            process.kill()
            break
    process.stderr.close()
    process.wait(timeout=program.TIMEOUT_S)
    return "".join(said)


def test_two_nights_at_once_are_told_apart(night: Night, tmp_path: Path) -> None:
    """The second process on the same run reports that another process is working on it."""
    config = copy_of(night, tmp_path)
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


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip_a_byte, cut_in_half, Path.unlink], ids=["byte flipped", "truncated", "gone"])
@pytest.mark.parametrize("name", sorted([*FILES, INDEX_FILE]))
def test_a_damaged_release_does_not_load(night: Night, tmp_path: Path, name: str, damage: Any) -> None:
    """Whatever file is hurt, the error names it."""
    damaged = tmp_path / "release"
    shutil.copytree(night.summary["path"], damaged)
    damage(damaged / name)
    with pytest.raises(ReleaseError, match=name):
        Release.load(damaged)


def test_a_damaged_release_is_told_in_one_message(night: Night, tmp_path: Path) -> None:
    damaged = tmp_path / "release"
    shutil.copytree(night.summary["path"], damaged)
    flip_a_byte(damaged / "index.ann")
    done = program.run("releases", "check", damaged)
    assert done.returncode == 1
    assert "SHA-256 of index.ann" in done.stderr
    assert "Traceback" not in done.stderr
