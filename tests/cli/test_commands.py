"""The commands: help, text and JSON output, exit codes."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import typer

from recsys import Release
from recsys.command_line import app
from recsys.index.shards import INDEX_FILE
from recsys.release.formats import SHARED_FILES, SPACE_FILES
from tests import GOLDEN_RELEASES

REQUIRED_PACKAGES = ["apache-beam", "keras", "mlflow", "polars", "tensorflow"]


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command and group of the program with its path."""
    yield path, command
    if hasattr(command, "list_commands"):
        for name in command.list_commands(None):
            yield from commands(command.get_command(None, name), (*path, name))


COMMANDS = dict(commands(typer.main.get_command(app)))


def test_program_has_exactly_these_commands() -> None:
    stages = {"prepare", "train", "embed", "index", "evaluate", "calibrate", "publish", "promote", "nightly"}
    other_commands = {"backfill", "data", "doctor", "export", "keys", "releases", "rollback", "serve", "similar"}
    other_commands |= {"together", "tune", "verify"}
    assert {path[0] for path in COMMANDS if path} == stages | other_commands


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_names_the_purpose_and_every_option(program: Any, path: tuple[str, ...]) -> None:
    outcome = program(*path, "--help")
    assert (outcome.exit_code, outcome.err) == (0, "")
    command = COMMANDS[path]
    summary = (command.help or "").splitlines()[0]
    assert len(summary) > 10
    assert summary.replace("`", "") in outcome.out
    for parameter in command.params:
        assert (parameter.metavar if parameter.param_type_name == "argument" else parameter.opts[0]) in outcome.out
    if hasattr(command, "list_commands"):
        assert all(name in outcome.out for name in command.list_commands(None))


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["prepare", "--nonsense"], ["similar"], ["data", "sequences", "file"]]
)
def test_invalid_command_line_exits_with_2(program: Any, arguments: list[str]) -> None:
    outcome = program(*arguments)
    assert outcome[:2] == (2, "")
    assert "Usage:" in outcome.err
    assert "Traceback" not in outcome.err


# --- recsys data sequences


def test_sequences_are_converted_with_a_config_that_can_be_used_unchanged(tmp_path: Path, program: Any) -> None:
    (tmp_path / "sequences.txt").write_text("1 a b c d\n2 b c\n3 d a b\n")
    (tmp_path / "attributes.json").write_text('{"a": [1, 2], "new": [2]}')
    outcome = program(
        *("data", "sequences", tmp_path / "sequences.txt", "--output", tmp_path / "out"),
        *("--attributes", tmp_path / "attributes.json"),
    )
    config = tmp_path / "out" / "recsys.toml"
    assert (outcome.exit_code, outcome.err) == (0, "")
    assert f"recsys nightly --config {config}" in outcome.out

    prepared = program("prepare", "--config", config, "--json")
    account = json.loads(prepared.out)["account"]
    assert (account["interactions"]["used"], account["items"]["used"]) == (9, 5)
    (catalog,) = tmp_path.glob("out/workspace/runs/*/prepare/catalog.parquet")
    rows = pl.read_parquet(catalog)
    assert rows["item_id"].to_list() == ["a", "b", "c", "d", "new"]
    assert rows["attributes"].to_list() == [["1", "2"], None, None, None, ["2"]]


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe"], ids=["missing", "empty", "not UTF-8"])
def test_invalid_sequences_are_rejected_with_their_path(tmp_path: Path, program: Any, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "sequences.txt").write_bytes(content)
    outcome = program("data", "sequences", tmp_path / "sequences.txt", "--output", tmp_path / "out")
    assert outcome[:2] == (2, "")
    assert str(tmp_path / "sequences.txt") in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "out").exists()


def test_invalid_attributes_are_rejected_with_their_path(tmp_path: Path, program: Any) -> None:
    (tmp_path / "sequences.txt").write_text("1 a b\n")
    (tmp_path / "attributes.json").write_text("[1")
    outcome = program(
        *("data", "sequences", tmp_path / "sequences.txt", "--output", tmp_path / "out"),
        *("--attributes", tmp_path / "attributes.json"),
    )
    assert outcome[:2] == (2, "")
    assert str(tmp_path / "attributes.json") in outcome.err
    assert not (tmp_path / "out").exists()


def test_output_below_a_file_is_rejected_with_its_path(tmp_path: Path, program: Any) -> None:
    (tmp_path / "sequences.txt").write_text("1 a b\n")
    outcome = program("data", "sequences", tmp_path / "sequences.txt", "--output", tmp_path / "sequences.txt" / "out")
    assert outcome[:2] == (2, "")
    assert str(tmp_path / "sequences.txt" / "out") in outcome.err


# --- recsys prepare


@pytest.fixture
def config(tmp_path: Path) -> Path:
    rows = ["user_id,item_id,timestamp", *(f"u{n % 3},i{n % 4},{n}" for n in range(16))]
    (tmp_path / "log.csv").write_text("\n".join(rows))
    (tmp_path / "recsys.toml").write_text('[data]\ninteractions = "log.csv"\n')
    return tmp_path / "recsys.toml"


def test_stage_prints_its_manifest_as_one_json_object_on_standard_output(config: Path, program: Any) -> None:
    outcome = program("prepare", "--config", config, "--json")
    assert outcome.exit_code == 0
    assert len(outcome.out.splitlines()) == 1
    (manifest,) = config.parent.glob("workspace/runs/*/prepare/_MANIFEST.json")
    assert json.loads(outcome.out) == json.loads(manifest.read_text())
    assert "16 interactions, 4 items" in outcome.err


def test_stage_without_json_prints_nothing_on_standard_output(config: Path, program: Any) -> None:
    outcome = program("prepare", "--config", config)
    assert outcome[:2] == (0, "")
    assert "prepare" in outcome.err


def test_finished_stage_prints_the_same_result(config: Path, program: Any) -> None:
    first, second = (program("prepare", "--config", config, "--json") for _ in range(2))
    assert first.out == second.out
    assert second.err == ""


def test_config_is_read_from_the_environment(config: Path, program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_CONFIG", str(config))
    assert program("prepare").exit_code == 0


def test_last_override_of_a_setting_wins(config: Path, program: Any) -> None:
    def pairs(*overrides: str) -> int:
        settings = [part for override in overrides for part in ("--set", override)]
        return int(json.loads(program("prepare", "--config", config, "--json", *settings).out)["num_pairs"])

    assert pairs("prepare.window=1") < pairs("prepare.window=1", "prepare.window=9") == pairs()


# --- recsys similar, recsys together, recsys releases


@pytest.fixture
def release(write_release: Callable[[list[str]], Path]) -> Path:
    return write_release([f"item {number:02d}" for number in range(33)])


def test_similar_orders_neighbors_by_exact_cosine(release: Path, program: Any) -> None:
    outcome = program("similar", "item 07", "--k", 5, "--release", release, "--json")
    result = json.loads(outcome.out)
    vectors = np.load(release / "next" / "embeddings.npy")
    cosines = vectors @ vectors[7]
    nearest = [number for number in np.argsort(-cosines) if number != 7][:5]
    assert (result["release_id"], result["item_id"], result["title"]) == (
        "0123456789ab",
        "item 07",
        "Title of item 07",
    )
    assert [neighbor["item_id"] for neighbor in result["neighbors"]] == [f"item {number:02d}" for number in nearest]
    assert [neighbor["similarity"] for neighbor in result["neighbors"]] == pytest.approx(
        cosines[nearest].tolist(), abs=1e-5
    )


@pytest.mark.parametrize("sense", ["similar", "next"])
def test_sense_selects_the_vectors(write_release: Callable[..., Path], program: Any, sense: str) -> None:
    """Of `recsys similar` and `recsys verify`."""
    item_ids = [f"item {number:02d}" for number in range(33)]
    release = write_release(item_ids, spaces=("similar", "next"))
    vectors = np.load(release / sense / "embeddings.npy")
    nearest = max((number for number in range(33) if number != 7), key=lambda number: vectors[number] @ vectors[7])
    options = ("--sense", sense, "--release", release, "--json")
    result = json.loads(program("similar", "item 07", *options).out)
    assert (result["sense"], result["neighbors"][0]["item_id"]) == (sense, item_ids[nearest])
    verdict = json.loads(program("verify", "item 07", "item 30", *options).out)
    assert verdict["similarity"] == pytest.approx(float(vectors[7] @ vectors[30]), abs=1e-6)


def test_similar_prints_a_table_for_each_item(release: Path, program: Any) -> None:
    outcome = program("similar", "item 07", "item 30", "--k", 3, "--release", release)
    assert (outcome.exit_code, outcome.err) == (0, "")
    assert outcome.out.index("Neighbors of Title of item 07") < outcome.out.index("Neighbors of Title of item 30")


def test_similar_prints_results_in_the_order_of_the_items(release: Path, program: Any) -> None:
    outcome = program("similar", "item 30", "item 07", "--release", release, "--json")
    results = json.loads(outcome.out)
    assert [result["item_id"] for result in results] == ["item 30", "item 07"]
    assert [len(result["neighbors"]) for result in results] == [10, 10]


def test_together_prints_the_results_of_the_library(release: Path, program: Any) -> None:
    outcome = program("together", "item 30", "item 07", "--k", 4, "--min-users", 2, "--release", release, "--json")
    loaded = Release.load(release)
    expected = [loaded.together(item_id, 4, min_users=2).to_dict() for item_id in ("item 30", "item 07")]
    assert json.loads(outcome.out) == expected
    assert json.loads(program("together", "item 30", "--release", release, "--json").out)["item_id"] == "item 30"


def test_together_prints_a_table_for_each_item(release: Path, program: Any) -> None:
    outcome = program("together", "item 07", "item 30", "--k", 3, "--release", release)
    assert (outcome.exit_code, outcome.err) == (0, "")
    first, second = (line for line in outcome.out.splitlines() if line.startswith("After"))
    followers = Release.load(release).followers
    assert followers is not None
    assert first.strip() == f"After Title of item 07 (item 07), {followers.users[7]} users"
    assert second.startswith("After Title of item 30")


def test_together_on_a_release_of_an_older_format_is_rejected(program: Any) -> None:
    outcome = program("together", "item-0-1", "--release", GOLDEN_RELEASES / "v4")
    assert (outcome.exit_code, outcome.out) == (2, "")
    assert "together requires a release of format 5" in outcome.err


def test_releases_show_prints_the_manifest(release: Path, program: Any) -> None:
    outcome = program("releases", "show", release, "--json")
    assert json.loads(outcome.out) == json.loads((release / "manifest.json").read_text())
    table = program("releases", "show", release)
    assert "release_id: 0123456789ab" in table.out


def test_releases_check_accepts_an_undamaged_release(release: Path, program: Any) -> None:
    outcome = program("releases", "check", release, "--json")
    assert outcome.exit_code == 0
    assert json.loads(outcome.out) == {"release_id": "0123456789ab", "path": str(release), "num_items": 33}


@pytest.mark.parametrize("name", sorted([*SHARED_FILES, *(f"next/{name}" for name in (*SPACE_FILES, INDEX_FILE))]))
def test_releases_check_rejects_one_changed_byte(release: Path, program: Any, name: str) -> None:
    content = bytearray((release / name).read_bytes())
    content[-1] ^= 1
    (release / name).write_bytes(content)
    outcome = program("releases", "check", release)
    assert outcome[:2] == (1, "")
    assert f"SHA-256 of {name} must be" in outcome.err
    assert "Traceback" not in outcome.err


def test_release_id_is_resolved_in_the_workspace(release: Path, config: Path, program: Any) -> None:
    config.write_text(f'[data]\ninteractions = "log.csv"\nworkspace = "{release.parent.parent}"\n')
    outcome = program("releases", "check", "0123456789ab", "--config", config, "--json")
    assert json.loads(outcome.out)["num_items"] == 33
    missing = program("releases", "check", "ba9876543210", "--config", config)
    assert missing[:2] == (1, "")
    assert "ba9876543210" in missing.err


# --- recsys doctor


def test_doctor_reports_a_missing_config_and_the_packages(tmp_path: Path, program: Any) -> None:
    outcome = program("doctor", "--config", tmp_path / "none.toml", "--json")
    assert (outcome.exit_code, outcome.err) == (1, "")
    findings = {finding["name"]: finding for finding in json.loads(outcome.out)}
    assert findings["config"]["ok"] is False
    assert str(tmp_path / "none.toml") in findings["config"]["detail"]
    assert all(findings[name]["ok"] for name in REQUIRED_PACKAGES)


def test_doctor_prints_failed_checks(tmp_path: Path, program: Any) -> None:
    outcome = program("doctor", "--config", tmp_path / "none.toml")
    assert outcome.exit_code == 1
    assert "Traceback" not in outcome.out + outcome.err
    failed = [line for line in outcome.out.splitlines() if line.startswith("failed")]
    assert len(failed) == 1
    assert "config file must exist" in failed[0]


def test_doctor_reports_missing_packages(tmp_path: Path, program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keras is optional on a server; Annoy is required."""
    from recsys.commands import doctor

    version = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in {"keras", "annoy"} else version(name))
    outcome = program("doctor", "--config", tmp_path / "none.toml", "--json")
    findings = {finding["name"]: finding for finding in json.loads(outcome.out)}
    assert (findings["annoy"]["ok"], findings["annoy"]["detail"]) == (False, "not installed")
    assert (findings["keras"]["ok"], findings["keras"]["detail"]) == (True, "not installed; part of recsys[train]")
    assert findings["polars"]["ok"] is True


def test_doctor_succeeds_on_a_complete_installation(config: Path, program: Any) -> None:
    outcome = program("doctor", "--config", config, "--json")
    findings = {finding["name"]: finding for finding in json.loads(outcome.out)}
    assert [name for name, finding in findings.items() if not finding["ok"]] == []
    assert findings["mlflow server"]["detail"] == "no champion yet"
    assert outcome.exit_code == 0


def test_doctor_reports_an_unwritable_workspace(config: Path, program: Any) -> None:
    config.write_text(f'[data]\ninteractions = "log.csv"\nworkspace = "{config}/work"\n')
    outcome = program("doctor", "--config", config)
    assert outcome.exit_code == 1
    assert f"{config}/work" in outcome.out


def test_releases_list_is_empty_without_releases(config: Path, program: Any) -> None:
    assert json.loads(program("releases", "list", "--config", config, "--json").out) == []


def test_similar_without_champion_is_rejected(config: Path, program: Any) -> None:
    outcome = program("similar", "i1", "--config", config)
    assert outcome[:2] == (1, "")
    assert "model item-tower must have a champion" in outcome.err
    assert f"recsys nightly --config {config}" in outcome.err


def test_missing_champion_is_reported_without_the_password(
    config: Path, program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recsys.release.mlflow_registry import Tracker

    monkeypatch.setattr(Tracker, "version_with", lambda *_: None)
    config.write_text('[data]\ninteractions = "log.csv"\n[tracking]\nuri = "http://me:secret@mlflow.example"\n')
    outcome = program("similar", "i1", "--config", config)
    assert outcome.exit_code == 1
    assert "must have a champion. Received: none at http://…@mlflow.example. Run: recsys nightly" in outcome.err
    assert "secret" not in outcome.err
