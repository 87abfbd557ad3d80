import json
import subprocess
import sys
from contextlib import suppress

import pytest

from recsys.config.loading import parse_config
from recsys.errors import InputError, StageError
from recsys.release import runs
from recsys.release.runs import Run, code_version, data_snapshot


def settings(folder, **tables):
    return parse_config({"data": {"interactions": "log.csv", "workspace": str(folder / "ws")}, **tables})


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp\na,b,1\n")
    return path


@pytest.fixture
def run(tmp_path, log):
    return Run.create(settings(tmp_path), {"interactions": [str(log)]})


# --- the id of a run


def test_the_same_input_is_the_same_run(tmp_path, log, run):
    again = Run.create(settings(tmp_path), {"interactions": [str(log)]})
    assert again == run
    assert run.folder == tmp_path / "ws" / "runs" / run.run_id
    assert run.folder.is_dir()


def test_a_copy_of_the_data_elsewhere_is_the_same_run(tmp_path, log, run):
    copy = tmp_path / "copy.csv"
    copy.write_bytes(log.read_bytes())
    assert Run.create(settings(tmp_path), {"interactions": [str(copy)]}).run_id == run.run_id


def test_other_data_are_another_run(tmp_path, log, run):
    log.write_text(log.read_text() + "a,c,2\n")
    assert Run.create(settings(tmp_path), {"interactions": [str(log)]}).run_id != run.run_id


@pytest.mark.parametrize("part", ["items", "labeled_pairs", "warm_start"])
def test_all_that_goes_in_is_part_of_the_data(tmp_path, log, run, part):
    assert Run.create(settings(tmp_path), {"interactions": [str(log)], part: []}).run_id == run.run_id
    more = Run.create(settings(tmp_path), {"interactions": [str(log)], part: [str(log)]})
    assert more.run_id != run.run_id
    (tmp_path / "other").write_text("other")
    other = Run.create(settings(tmp_path), {"interactions": [str(log)], part: [str(tmp_path / "other")]})
    assert other.run_id not in {run.run_id, more.run_id}


def test_another_config_is_another_run(tmp_path, log, run):
    assert Run.create(settings(tmp_path, train={"seed": 7}), {"interactions": [str(log)]}).run_id != run.run_id


def test_a_config_that_shapes_nothing_is_the_same_run(tmp_path, log, run):
    assert Run.create(settings(tmp_path, serve={"port": 1234}), {"interactions": [str(log)]}).run_id == run.run_id


def test_other_code_is_another_run(tmp_path, log, run, monkeypatch):
    monkeypatch.setattr(runs, "code_version", lambda: "9.9+0123456789ab")
    other = Run.create(settings(tmp_path), {"interactions": [str(log)]})
    assert other.run_id != run.run_id
    assert other.code_version == "9.9+0123456789ab"


def test_a_workspace_that_cannot_be_a_folder_is_refused(tmp_path, log):
    (tmp_path / "ws").write_text("a file")
    with pytest.raises(InputError, match=r"data\.workspace"):
        Run.create(settings(tmp_path), {"interactions": [str(log)]})


def test_a_snapshot_depends_on_content_order_and_role(tmp_path):
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    (tmp_path / "one").write_text("1")
    (tmp_path / "two").write_text("2")
    snapshots = [
        data_snapshot({"interactions": [one, two]}),
        data_snapshot({"interactions": [two, one]}),
        data_snapshot({"interactions": [one], "items": [two]}),
        data_snapshot({"interactions": [one], "labeled_pairs": [two]}),
        data_snapshot({"items": [one, two]}),
        data_snapshot({"interactions": [one]}),
        data_snapshot({}),
    ]
    assert len(set(snapshots)) == len(snapshots)
    assert data_snapshot({"interactions": [one, two]}) == snapshots[0]
    assert data_snapshot({"interactions": [one, two], "items": []}) == snapshots[0]


def test_the_code_version_is_stable_and_says_the_version_of_the_package():
    assert code_version() == code_version()
    package, _, digest = code_version().partition("+")
    assert package.count(".") == 2
    assert len(digest) == 12


@pytest.mark.parametrize("library", ["numpy", "annoy", "polars"])
def test_the_code_version_changes_with_a_library(monkeypatch, library):
    before = code_version()
    original = runs.version
    monkeypatch.setattr(runs, "version", lambda name: "0.0.0" if name == library else original(name))
    assert code_version() != before


def test_the_code_version_changes_with_the_source(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "module.py").write_text("x = 1\n")
    (tmp_path / "notes.txt").write_text("no source")
    monkeypatch.setattr(runs.resources, "files", lambda _: tmp_path)
    before = code_version()
    (tmp_path / "notes.txt").write_text("still none")
    assert code_version() == before
    (tmp_path / "deep" / "module.py").write_text("x = 2\n")
    assert code_version() != before


# --- stages


def test_a_finished_stage_has_its_files_and_its_manifest(run):
    assert not run.done("train")
    with run.stage("train") as (folder, manifest):
        (folder / "tower.txt").write_text("weights")
        manifest["passes"] = 3
        assert not run.done("train")
    assert run.done("train")
    assert run.path("train", "tower.txt").read_text() == "weights"
    assert run.manifest("train") == {"passes": 3}
    assert sorted(path.name for path in run.folder.iterdir()) == ["train"]


def test_a_stage_that_raises_leaves_nothing(run):
    def work():
        with run.stage("train") as (folder, manifest):
            (folder / "half.txt").write_text("half")
            manifest["passes"] = 3
            raise ValueError("midway")

    with pytest.raises(ValueError, match="midway"):
        work()
    assert list(run.folder.iterdir()) == []
    assert not run.done("train")


def test_a_manifest_that_cannot_be_written_leaves_nothing(run):
    def work():
        with run.stage("train") as (_, manifest):
            manifest["passes"] = object()

    with pytest.raises(TypeError):
        work()
    assert list(run.folder.iterdir()) == []


def test_a_stage_can_be_done_after_it_failed(run):
    with pytest.raises(KeyError), run.stage("train"):
        raise KeyError("first try")
    with run.stage("train") as (folder, _):
        (folder / "tower.txt").write_text("weights")
    assert run.path("train", "tower.txt").read_text() == "weights"


def test_what_a_killed_process_left_is_cleared_by_the_same_stage_only(run):
    for name in (".tmp-train-0badcafe", ".tmp-embed-0badcafe"):
        (run.folder / name).mkdir()
        (run.folder / name / "half.txt").write_text("half")
    with run.stage("train"):
        pass
    assert sorted(path.name for path in run.folder.iterdir()) == [".tmp-embed-0badcafe", "train"]


def interrupted(run, plan):
    """The folder of a stage that was interrupted after its first unit."""
    with suppress(KeyboardInterrupt), run.stage("embed", plan) as (folder, _):
        (folder / "unit-0").touch()
        raise KeyboardInterrupt
    return folder


def test_a_plan_finds_what_it_finished_before_it_was_interrupted(run):
    interrupted(run, "units of 7")
    with run.stage("embed", "units of 7") as (folder, manifest):
        assert (folder / "unit-0").exists()
        manifest["units"] = 1
    assert run.manifest("embed") == {"units": 1}


def test_another_plan_finds_nothing(run):
    earlier = interrupted(run, "units of 7")
    with run.stage("embed", "units of 9") as (folder, _):
        assert not [*folder.iterdir()]
    assert not earlier.exists()


def test_an_error_leaves_nothing_of_a_plan(run):
    with pytest.raises(StageError), run.stage("embed", "units of 7") as (folder, _):
        raise StageError("no")
    assert not folder.exists()


def test_a_file_of_a_stage_that_was_not_run_is_an_error_that_says_what_to_run(run):
    with pytest.raises(StageError, match="recsys train"):
        run.path("train", "tower.txt")
    with pytest.raises(StageError, match="recsys train"):
        run.manifest("train")


def test_a_folder_without_a_manifest_is_not_done(run):
    (run.folder / "train").mkdir()
    assert not run.done("train")


def test_manifests_are_json(run):
    with run.stage("train") as (_, manifest):
        manifest["rows"] = {"read": 5, "used": 4}
    (path,) = (run.folder / "train").iterdir()
    assert json.loads(path.read_text()) == {"rows": {"read": 5, "used": 4}}


# --- the lock


def test_a_run_is_worked_on_by_one_at_a_time(tmp_path, log, run):
    again = Run.create(settings(tmp_path), {"interactions": [str(log)]})
    with run.locked(), pytest.raises(StageError, match=run.run_id), again.locked():
        pass
    with again.locked():
        assert run.folder.is_dir()


def test_the_lock_goes_when_the_work_fails(run):
    with pytest.raises(KeyError), run.locked():
        raise KeyError("midway")
    with run.locked():
        assert run.folder.is_dir()


def test_another_process_that_holds_the_lock_is_respected_until_it_ends(run):
    program = (
        "import sys; from filelock import FileLock; lock = FileLock(sys.argv[1]); lock.acquire(); "
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(run.folder / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(StageError, match="Another process is already working on run"), run.locked():
            pass
        other.kill()
    with run.locked():
        assert run.folder.is_dir()
