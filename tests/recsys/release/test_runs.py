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


# --- run id


def test_equal_input_is_the_same_run(tmp_path, log, run):
    second = Run.create(settings(tmp_path), {"interactions": [str(log)]})
    assert second == run
    assert run.folder == tmp_path / "ws" / "runs" / run.run_id
    assert run.folder.is_dir()


def test_a_copy_of_the_data_elsewhere_is_the_same_run(tmp_path, log, run):
    copy = tmp_path / "copy.csv"
    copy.write_bytes(log.read_bytes())
    assert Run.create(settings(tmp_path), {"interactions": [str(copy)]}).run_id == run.run_id


def test_other_data_is_another_run(tmp_path, log, run):
    log.write_text(log.read_text() + "a,c,2\n")
    assert Run.create(settings(tmp_path), {"interactions": [str(log)]}).run_id != run.run_id


@pytest.mark.parametrize("part", ["items", "labeled_pairs", "warm_start"])
def test_run_id_depends_on_all_input_files(tmp_path, log, run, part):
    assert Run.create(settings(tmp_path), {"interactions": [str(log)], part: []}).run_id == run.run_id
    with_part = Run.create(settings(tmp_path), {"interactions": [str(log)], part: [str(log)]})
    assert with_part.run_id != run.run_id
    (tmp_path / "other").write_text("other")
    with_other_part = Run.create(settings(tmp_path), {"interactions": [str(log)], part: [str(tmp_path / "other")]})
    assert with_other_part.run_id not in {run.run_id, with_part.run_id}


def test_another_config_is_another_run(tmp_path, log, run):
    assert Run.create(settings(tmp_path, train={"seed": 7}), {"interactions": [str(log)]}).run_id != run.run_id


def test_settings_that_do_not_affect_a_release_are_the_same_run(tmp_path, log, run):
    assert Run.create(settings(tmp_path, serve={"port": 1234}), {"interactions": [str(log)]}).run_id == run.run_id


def test_other_code_is_another_run(tmp_path, log, run, monkeypatch):
    monkeypatch.setattr(runs, "code_version", lambda: "9.9+0123456789ab")
    changed = Run.create(settings(tmp_path), {"interactions": [str(log)]})
    assert changed.run_id != run.run_id
    assert changed.code_version == "9.9+0123456789ab"


def test_rejects_a_workspace_that_is_a_file(tmp_path, log):
    (tmp_path / "ws").write_text("a file")
    with pytest.raises(InputError, match=r"data\.workspace"):
        Run.create(settings(tmp_path), {"interactions": [str(log)]})


def test_data_snapshot_depends_on_content_order_and_role(tmp_path):
    first, second = str(tmp_path / "one"), str(tmp_path / "two")
    (tmp_path / "one").write_text("1")
    (tmp_path / "two").write_text("2")
    snapshots = [
        data_snapshot({"interactions": [first, second]}),
        data_snapshot({"interactions": [second, first]}),
        data_snapshot({"interactions": [first], "items": [second]}),
        data_snapshot({"interactions": [first], "labeled_pairs": [second]}),
        data_snapshot({"items": [first, second]}),
        data_snapshot({"interactions": [first]}),
        data_snapshot({}),
    ]
    assert len(set(snapshots)) == len(snapshots)
    assert data_snapshot({"interactions": [first, second]}) == snapshots[0]
    assert data_snapshot({"interactions": [first, second], "items": []}) == snapshots[0]


def test_code_version_is_stable_and_contains_the_package_version():
    assert code_version() == code_version()
    package, _, digest = code_version().partition("+")
    assert package.count(".") == 2
    assert len(digest) == 12


@pytest.mark.parametrize("library", ["numpy", "annoy", "polars"])
def test_code_version_changes_with_a_library(monkeypatch, library):
    unchanged = code_version()
    original = runs.version
    monkeypatch.setattr(runs, "version", lambda name: "0.0.0" if name == library else original(name))
    assert code_version() != unchanged


def test_code_version_changes_with_the_source(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "module.py").write_text("x = 1\n")
    (tmp_path / "notes.txt").write_text("not source")
    monkeypatch.setattr(runs.resources, "files", lambda _: tmp_path)
    unchanged = code_version()
    (tmp_path / "notes.txt").write_text("still not source")
    assert code_version() == unchanged
    (tmp_path / "deep" / "module.py").write_text("x = 2\n")
    assert code_version() != unchanged


# --- stages


def test_finished_stage_has_its_files_and_its_manifest(run):
    assert not run.done("train")
    with run.stage("train") as (folder, manifest):
        (folder / "tower.txt").write_text("weights")
        manifest["passes"] = 3
        assert not run.done("train")
    assert run.done("train")
    assert run.path("train", "tower.txt").read_text() == "weights"
    assert run.manifest("train") == {"passes": 3}
    assert sorted(path.name for path in run.folder.iterdir()) == ["train"]


def test_failed_stage_leaves_no_files(run):
    def work():
        with run.stage("train") as (folder, manifest):
            (folder / "half.txt").write_text("half")
            manifest["passes"] = 3
            raise ValueError("midway")

    with pytest.raises(ValueError, match="midway"):
        work()
    assert list(run.folder.iterdir()) == []
    assert not run.done("train")


def test_stage_with_an_invalid_manifest_leaves_no_files(run):
    def work():
        with run.stage("train") as (_, manifest):
            manifest["passes"] = object()

    with pytest.raises(TypeError):
        work()
    assert list(run.folder.iterdir()) == []


def test_failed_stage_can_be_repeated(run):
    with pytest.raises(KeyError), run.stage("train"):
        raise KeyError("first attempt")
    with run.stage("train") as (folder, _):
        (folder / "tower.txt").write_text("weights")
    assert run.path("train", "tower.txt").read_text() == "weights"


def test_stage_deletes_only_its_own_leftover_files(run):
    for name in (".tmp-train.0badcafe", ".tmp-train-similar.0badcafe", ".tmp-embed.0badcafe"):
        (run.folder / name).mkdir()
        (run.folder / name / "half.txt").write_text("half")
    with run.stage("train"):
        pass
    assert sorted(path.name for path in run.folder.iterdir()) == [
        ".tmp-embed.0badcafe",
        ".tmp-train-similar.0badcafe",
        "train",
    ]


def interrupted(run, plan):
    """Return the folder of a stage that was interrupted after its first unit."""
    with suppress(KeyboardInterrupt), run.stage("embed", plan) as (folder, _):
        (folder / "unit-0").touch()
        raise KeyboardInterrupt
    return folder


def test_interrupted_stage_keeps_finished_units(run):
    interrupted(run, "units of 7")
    with run.stage("embed", "units of 7") as (folder, manifest):
        assert (folder / "unit-0").exists()
        manifest["units"] = 1
    assert run.manifest("embed") == {"units": 1}


def test_another_plan_discards_finished_units(run):
    earlier = interrupted(run, "units of 7")
    with run.stage("embed", "units of 9") as (folder, _):
        assert not [*folder.iterdir()]
    assert not earlier.exists()


def test_failed_stage_keeps_no_units(run):
    with pytest.raises(StageError), run.stage("embed", "units of 7") as (folder, _):
        raise StageError("no")
    assert not folder.exists()


def test_error_names_the_command_of_an_unfinished_stage(run):
    with pytest.raises(StageError, match="recsys train"):
        run.path("train", "tower.txt")
    with pytest.raises(StageError, match="recsys train"):
        run.manifest("train")


def test_folder_without_a_manifest_is_not_finished(run):
    (run.folder / "train").mkdir()
    assert not run.done("train")


def test_manifests_are_json(run):
    with run.stage("train") as (_, manifest):
        manifest["rows"] = {"read": 5, "used": 4}
    (path,) = (run.folder / "train").iterdir()
    assert json.loads(path.read_text()) == {"rows": {"read": 5, "used": 4}}


# --- senses


def test_stages_of_a_sense_have_their_own_folders(run):
    """The stages of `next` have no suffix, and `prepare` is shared."""
    similar = run.of("similar")
    assert (similar.run_id, similar.folder) == (run.run_id, run.folder)
    for name, content in (("train", b"next"), ("prepare", b"shared")):
        with run.stage(name) as (folder, _):
            (folder / "file").write_bytes(content)
    assert not similar.done("train")
    with similar.stage("train") as (folder, manifest):
        (folder / "file").write_bytes(b"similar")
        manifest["passes"] = 4
    assert sorted(path.name for path in run.folder.iterdir()) == ["prepare", "train", "train-similar"]
    assert run.path("train", "file").read_bytes() == similar.of("next").path("train", "file").read_bytes() == b"next"
    assert similar.path("train", "file").read_bytes() == b"similar"
    assert (run.manifest("train"), similar.manifest("train")) == ({}, {"passes": 4})
    assert similar.path("prepare", "file").read_bytes() == b"shared"


@pytest.mark.parametrize("stage", runs.STAGES_OF_A_SENSE)
def test_error_names_the_command_of_an_unfinished_stage_of_a_sense(run, stage):
    with pytest.raises(StageError, match=rf"stage {stage}-similar must .*Run: recsys {stage} --sense similar$"):
        run.of("similar").path(stage)
    with pytest.raises(StageError, match=r"Run: recsys prepare$"):
        run.of("similar").path("prepare")


def test_stage_deletes_leftover_files_of_its_sense_only(run):
    for name in (".tmp-train.0badcafe", ".tmp-train-similar.0badcafe"):
        (run.folder / name).mkdir()
    with run.of("similar").stage("train"):
        pass
    assert sorted(path.name for path in run.folder.iterdir()) == [".tmp-train.0badcafe", "train-similar"]


# --- lock


def test_run_is_locked_by_one_process_at_a_time(tmp_path, log, run):
    same_run = Run.create(settings(tmp_path), {"interactions": [str(log)]})
    with run.locked(), pytest.raises(StageError, match=run.run_id), same_run.locked():
        pass
    with same_run.locked():
        assert run.folder.is_dir()


def test_lock_is_released_after_an_error(run):
    with pytest.raises(KeyError), run.locked():
        raise KeyError("midway")
    with run.locked():
        assert run.folder.is_dir()


def test_lock_of_another_process_is_released_when_it_ends(run):
    program = (
        "import sys; from filelock import FileLock; lock = FileLock(sys.argv[1]); lock.acquire(); "
        "print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(run.folder / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(StageError, match="Another process is already working on run"), run.locked():
            pass
        process.kill()
    with run.locked():
        assert run.folder.is_dir()
