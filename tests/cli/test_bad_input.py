"""Invalid input on the command line: one actionable message, the documented exit code, and no partial results."""

import json
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

ROWS = [f"u{user},i{item},{1_000 + 10 * user + item}" for user in range(4) for item in range(user, user + 5)]
HEADER = "user_id,item_id,timestamp"
ITEMS = ["item_id", *(f"i{item}" for item in range(8))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A config with valid interactions and items; each test breaks one part of it."""
    (tmp_path / "recsys.toml").write_text('[data]\ninteractions = "log.csv"\nitems = "items.csv"\n')
    write(tmp_path / "log.csv", HEADER, *ROWS)
    write(tmp_path / "items.csv", *ITEMS)
    return tmp_path


def write(path: Path, *lines: str) -> None:
    path.write_text("\n".join(lines) + "\n")


def write_log(folder: Path, frame: pl.DataFrame) -> None:
    """Write interactions as Parquet, which keeps the column types."""
    frame.write_parquet(folder / "log.parquet")
    (folder / "recsys.toml").write_text('[data]\ninteractions = "log.parquet"\n')


def log(**columns: Any) -> pl.DataFrame:
    """Return valid interactions with some columns replaced."""
    valid = {
        "user_id": [row.split(",")[0] for row in ROWS],
        "item_id": [row.split(",")[1] for row in ROWS],
        "timestamp": [float(row.split(",")[2]) for row in ROWS],
    }
    return pl.DataFrame({**valid, **columns})


def results(folder: Path) -> list[str]:
    """Return the names of stage and release folders in the workspace."""
    paths = [*folder.glob("**/runs/*/*"), *folder.glob("**/releases/*")]
    return sorted(path.name for path in paths if path.name != ".lock")


def assert_rejected(outcome: Any, exit_code: int, folder: Path, *parts: object) -> None:
    """Assert the exit code, a message that contains all parts, no traceback and no result."""
    assert outcome.exit_code == exit_code, outcome
    for part in parts:
        assert str(part) in outcome.err
    assert "Traceback" not in outcome.err + outcome.out
    assert outcome.out == ""
    assert results(folder) == []


def test_valid_input_is_prepared(folder: Path, program: Any) -> None:
    """Every other test changes this input."""
    outcome = program("prepare", "--config", folder / "recsys.toml")
    assert outcome.exit_code == 0
    assert results(folder) == ["prepare"]


# --- files


def test_missing_file_is_rejected(folder: Path, program: Any) -> None:
    (folder / "log.csv").unlink()
    outcome = program("prepare", "--config", folder / "recsys.toml")
    assert_rejected(outcome, 2, folder, "data.interactions must be a file", folder / "log.csv")


def test_config_without_interactions_is_rejected(folder: Path, program: Any) -> None:
    """Only the config of a service may have no interactions."""
    (folder / "recsys.toml").write_text("[serve]\nworkers = 1\n")
    outcome = program("prepare", "--config", folder / "recsys.toml")
    assert_rejected(outcome, 2, folder, "data.interactions must be set", "--set data.interactions=PATH")


def test_empty_file_is_rejected(folder: Path, program: Any) -> None:
    (folder / "items.csv").write_text("")
    outcome = program("prepare", "--config", folder / "recsys.toml")
    assert_rejected(outcome, 2, folder, folder / "items.csv", "must contain rows", "an empty file")


def test_interactions_with_a_header_and_no_rows_are_rejected(folder: Path, program: Any) -> None:
    write(folder / "log.csv", HEADER)
    outcome = program("prepare", "--config", folder / "recsys.toml")
    assert_rejected(outcome, 2, folder, folder / "log.csv", "must contain rows", "none")


def test_items_with_a_header_and_no_rows_are_rejected(folder: Path, program: Any) -> None:
    write(folder / "items.csv", "item_id")
    outcome = program("prepare", "--config", folder / "recsys.toml")
    assert_rejected(outcome, 2, folder, folder / "items.csv", "must contain rows")


def test_missing_column_is_rejected(folder: Path, program: Any) -> None:
    write(folder / "log.csv", "user_id,film,timestamp", *ROWS)
    outcome = program("prepare", "--config", folder / "recsys.toml")
    columns = "column 'item_id' must exist. Received columns: user_id, film, timestamp"
    assert_rejected(outcome, 2, folder, folder / "log.csv", columns)


def test_missing_feature_column_is_rejected(folder: Path, program: Any) -> None:
    setting = 'items.numeric=["year"]'
    outcome = program("prepare", "--config", folder / "recsys.toml", "--set", setting)
    assert_rejected(outcome, 2, folder, folder / "items.csv", "column 'year' must exist", "item_id")


# --- the config


def test_unknown_config_key_is_rejected_with_a_suggestion(folder: Path, program: Any) -> None:
    with (folder / "recsys.toml").open("a") as file:
        file.write("[prepare]\nwindows = 5\n")
    outcome = program("prepare", "--config", folder / "recsys.toml")
    assert_rejected(outcome, 2, folder, folder / "recsys.toml", "unknown key 'prepare.windows'", "'prepare.window'?")


def test_wrong_type_in_the_config_is_rejected(folder: Path, program: Any) -> None:
    with (folder / "recsys.toml").open("a") as file:
        file.write('[prepare]\nwindow = "wide"\n')
    outcome = program("prepare", "--config", folder / "recsys.toml")
    message = "prepare.window: should be a valid integer. Received: 'wide'"
    assert_rejected(outcome, 2, folder, folder / "recsys.toml", message)


def test_config_that_is_not_toml_is_rejected(folder: Path, program: Any) -> None:
    (folder / "recsys.toml").write_text("[data\n")
    outcome = program("prepare", "--config", folder / "recsys.toml")
    assert_rejected(outcome, 2, folder, folder / "recsys.toml", "must be valid TOML", "line 1")


def test_missing_config_is_rejected(folder: Path, program: Any) -> None:
    outcome = program("prepare", "--config", folder / "none.toml")
    assert_rejected(outcome, 2, folder, "config file must exist", folder / "none.toml")


def test_set_without_an_equals_sign_is_rejected(folder: Path, program: Any) -> None:
    outcome = program("prepare", "--config", folder / "recsys.toml", "--set", "prepare.window")
    assert_rejected(outcome, 2, folder, "--set must look like table.key=value", "'prepare.window'")


# --- columns and rows


def test_wrong_column_type_is_rejected(folder: Path, program: Any) -> None:
    write_log(folder, log(user_id=[row / 2 for row in range(len(ROWS))]))
    outcome = program("prepare", "--config", folder / "recsys.toml")
    assert_rejected(outcome, 2, folder, folder / "log.parquet", "user_id must be text or integers", "Float64")


def test_too_many_invalid_timestamps_are_rejected(folder: Path, program: Any) -> None:
    rows = [row if number % 5 else row.rsplit(",", 1)[0] + ",soon" for number, row in enumerate(ROWS)]
    write(folder / "log.csv", HEADER, *rows)
    outcome = program("prepare", "--config", folder / "recsys.toml")
    reason = "4 of 20 (4 timestamp is neither a number of seconds nor ISO 8601)"
    assert_rejected(outcome, 1, folder, folder / "log.csv", "at most 1.00% of the rows", reason)


def test_too_many_nan_weights_are_rejected(folder: Path, program: Any) -> None:
    write_log(folder, log(weight=[float("nan")] * 3 + [1.0] * 17))
    outcome = program("prepare", "--config", folder / "recsys.toml")
    reason = "3 of 20 (3 weight is not finite and above 0)"
    assert_rejected(outcome, 1, folder, folder / "log.parquet", "at most 1.00% of the rows", reason)


def test_too_many_infinite_timestamps_are_rejected(folder: Path, program: Any) -> None:
    timestamps = log()["timestamp"].to_list()
    write_log(folder, log(timestamp=[float("inf"), float("-inf"), *timestamps[2:]]))
    outcome = program("prepare", "--config", folder / "recsys.toml")
    reason = "2 of 20 (2 timestamp is not a finite number)"
    assert_rejected(outcome, 1, folder, folder / "log.parquet", "at most 1.00% of the rows", reason)


def test_too_many_duplicate_items_are_rejected(folder: Path, program: Any) -> None:
    write(folder / "items.csv", *ITEMS, "i3", "i5")
    outcome = program("prepare", "--config", folder / "recsys.toml")
    reason = "2 of 10 (2 item_id is a duplicate)"
    assert_rejected(outcome, 1, folder, folder / "items.csv", "at most 1.00% of the rows", reason)


def test_too_many_interactions_with_unknown_items_are_rejected(folder: Path, program: Any) -> None:
    write(folder / "log.csv", HEADER, *ROWS, "u1,elsewhere,5000")
    outcome = program("prepare", "--config", folder / "recsys.toml")
    reason = "1 of 21 (1 item_id is not in the catalog)"
    assert_rejected(outcome, 1, folder, folder / "log.csv", "at most 1.00% of the rows", reason)


def test_single_user_is_rejected(folder: Path, program: Any) -> None:
    write(folder / "log.csv", HEADER, *(row for row in ROWS if row.startswith("u2,")))
    outcome = program("prepare", "--config", folder / "recsys.toml")
    assert_rejected(outcome, 2, folder, "interactions must have at least 2 users", "Received: 1")


def test_single_item_is_rejected(folder: Path, program: Any) -> None:
    write(folder / "items.csv", "item_id", "i4")
    write(folder / "log.csv", HEADER, *(row for row in ROWS if ",i4," in row))
    outcome = program("prepare", "--config", folder / "recsys.toml")
    assert_rejected(outcome, 2, folder, "the catalog must contain at least 2 items", "Received: 1")


# --- events, time and labeled pairs


def test_event_weights_without_event_column_are_rejected(folder: Path, program: Any) -> None:
    outcome = program("prepare", "--config", folder / "recsys.toml", "--set", "prepare.event_weights={ view = 1 }")
    message = "column 'event' must exist if prepare.event_weights is set. Received columns: user_id, item_id"
    assert_rejected(outcome, 2, folder, folder / "log.csv", message)


def test_list_valued_events_are_rejected(folder: Path, program: Any) -> None:
    write_log(folder, log(event=[["view"]] * len(ROWS)))
    outcome = program("prepare", "--config", folder / "recsys.toml", "--set", "prepare.event_weights={ view = 1 }")
    assert_rejected(outcome, 2, folder, folder / "log.parquet", "event must have one value per row", "List(String)")


def test_events_without_any_weight_are_rejected(folder: Path, program: Any) -> None:
    write_log(folder, log(event=["view"] * len(ROWS)))
    outcome = program("prepare", "--config", folder / "recsys.toml", "--set", "prepare.event_weights={ View = 1 }")
    message = "Received: 0. Filtered out: 20 rows: event has no weight in prepare.event_weights"
    assert_rejected(outcome, 2, folder, "the catalog must contain at least 2 items", message)


def test_event_weight_of_zero_is_rejected(folder: Path, program: Any) -> None:
    outcome = program("prepare", "--config", folder / "recsys.toml", "--set", "prepare.event_weights={ view = 0 }")
    assert_rejected(outcome, 2, folder, "prepare.event_weights.view: should be greater than 0. Received: 0")


def test_split_that_leaves_no_training_data_is_rejected(folder: Path, program: Any) -> None:
    outcome = program("prepare", "--config", folder / "recsys.toml", "--set", "evaluate.split=global_time")
    message = "evaluate.validation_days and evaluate.test_days must leave interactions to train on"
    assert_rejected(outcome, 2, folder, message, "1 and 1 days of a log of 0.0 days")


@pytest.fixture
def labeled(folder: Path) -> Callable[..., tuple[str, str]]:
    """Return a function that writes labeled pairs and returns the options that select them."""

    def write_pairs(*rows: str, header: str = "item_a,item_b,same") -> tuple[str, str]:
        write(folder / "labeled.csv", header, *rows)
        return "--set", f"data.labeled_pairs={folder / 'labeled.csv'}"

    return write_pairs


def test_missing_file_of_labeled_pairs_is_rejected(folder: Path, program: Any) -> None:
    outcome = program("prepare", "--config", folder / "recsys.toml", "--set", f"data.labeled_pairs={folder}/none.csv")
    assert_rejected(outcome, 2, folder, "data.labeled_pairs must be a file", folder / "none.csv")


def test_labeled_pairs_without_rows_are_rejected(folder: Path, program: Any, labeled: Any) -> None:
    outcome = program("prepare", "--config", folder / "recsys.toml", *labeled())
    assert_rejected(outcome, 2, folder, folder / "labeled.csv", "must contain rows")


def test_labeled_pairs_without_a_required_column_are_rejected(folder: Path, program: Any, labeled: Any) -> None:
    outcome = program("prepare", "--config", folder / "recsys.toml", *labeled("i1,i2,1", header="a,item_b,same"))
    assert_rejected(outcome, 2, folder, folder / "labeled.csv", "column 'item_a' must exist", "a, item_b, same")


def test_labeled_pairs_of_unknown_items_are_rejected(folder: Path, program: Any, labeled: Any) -> None:
    outcome = program("prepare", "--config", folder / "recsys.toml", *labeled("x,y,1", "y,z,0"))
    reason = "2 of 2 (2 item_id is not in the catalog)"
    assert_rejected(outcome, 1, folder, folder / "labeled.csv", "at most 1.00% of the rows", reason)


def test_too_many_invalid_labels_are_rejected(folder: Path, program: Any, labeled: Any) -> None:
    outcome = program("prepare", "--config", folder / "recsys.toml", *labeled("i1,i2,yes", "i1,i3,1"))
    reason = "1 of 2 (1 same is neither 0 nor 1)"
    assert_rejected(outcome, 1, folder, folder / "labeled.csv", reason, "row 0", '"same":"yes"')


# --- warm start


def test_warm_start_from_a_folder_without_release_is_rejected(folder: Path, program: Any) -> None:
    outcome = program("prepare", "--config", folder / "recsys.toml", "--set", f"data.warm_start={folder}")
    assert_rejected(outcome, 2, folder, "data.warm_start must be the folder of a release", folder)


def test_warm_start_from_an_unknown_format_is_rejected(folder: Path, program: Any) -> None:
    write(folder / "manifest.json", '{"format_version": 99}')
    outcome = program("prepare", "--config", folder / "recsys.toml", "--set", f"data.warm_start={folder}")
    assert_rejected(outcome, 2, folder, "data.warm_start", "must have a format version from 1 to 6. Received: 99")


# --- workspace


@pytest.mark.parametrize("command", ["prepare", "nightly"])
def test_unwritable_workspace_is_rejected(folder: Path, program: Any, command: str) -> None:
    blocked = folder / "items.csv" / "work"
    outcome = program(command, "--config", folder / "recsys.toml", "--set", f"data.workspace={blocked}")
    assert_rejected(outcome, 2, folder, "data.workspace must be a writable folder", blocked)


@pytest.mark.parametrize("command", [["releases", "list"], ["similar", "i1"]], ids=["list", "similar"])
def test_read_only_commands_name_an_unwritable_workspace(folder: Path, program: Any, command: list[str]) -> None:
    blocked = folder / "items.csv" / "work"
    (folder / "recsys.toml").write_text(f'[data]\ninteractions = "log.csv"\nworkspace = "{blocked}"\n')
    outcome = program(*command, "--config", folder / "recsys.toml")
    assert outcome.exit_code in (1, 2)
    assert str(blocked) in outcome.err
    assert outcome.out == ""


def test_stage_before_its_predecessor_is_rejected(folder: Path, program: Any) -> None:
    outcome = program("train", "--config", folder / "recsys.toml")
    assert_rejected(outcome, 1, folder, "stage prepare must be finished first", "recsys prepare")


# --- queries


@pytest.fixture
def small_release(write_release: Callable[[list[str]], Path]) -> Path:
    return write_release(["a", "b", "c", "007"])


def test_k_above_the_catalog_size_returns_all_other_items(small_release: Path, program: Any) -> None:
    outcome = program("similar", "b", "--k", 50, "--release", small_release, "--json")
    assert (outcome.exit_code, outcome.err) == (0, "")
    neighbors = json.loads(outcome.out)["neighbors"]
    assert sorted(neighbor["item_id"] for neighbor in neighbors) == ["007", "a", "c"]
    assert [neighbor["rank"] for neighbor in neighbors] == [1, 2, 3]


@pytest.mark.parametrize("item", ["7", "A", ""])
def test_unknown_item_is_rejected(small_release: Path, program: Any, item: str) -> None:
    outcome = program("similar", "a", item, "--release", small_release)
    assert outcome[:2] == (2, "")
    assert outcome.err == f"error: item_id must be in the catalog. Received: {item!r}.\n"


@pytest.mark.parametrize(
    ("k", "rule"),
    [
        ("0", "greater than or equal to 1"),
        ("-3", "greater than or equal to 1"),
        ("many", "valid integer"),
        ("1.5", "valid integer"),
    ],
)
def test_invalid_k_is_rejected(small_release: Path, program: Any, k: str, rule: str) -> None:
    outcome = program("similar", "a", "--k", k, "--release", small_release)
    assert outcome[:2] == (2, "")
    assert "--k" in outcome.err
    assert rule in outcome.err
    assert "Traceback" not in outcome.err


def test_folder_without_release_is_rejected(tmp_path: Path, program: Any) -> None:
    outcome = program("similar", "a", "--release", tmp_path)
    assert outcome[:2] == (1, "")
    assert f"release must be a folder with a manifest.json. Received: {tmp_path}" in outcome.err


# --- the installed program in another process


def run_installed(*arguments: object) -> subprocess.CompletedProcess[str]:
    program = Path(sysconfig.get_path("scripts")) / "recsys"
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120)


def test_installed_program_rejects_a_missing_file(folder: Path) -> None:
    """The error is raised before any job runs."""
    done = run_installed("prepare", "--config", folder / "recsys.toml", "--set", f"data.items={folder / 'missing.csv'}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: data.items must be a file")
    assert str(folder / "missing.csv") in done.stderr
    assert results(folder) == []


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["local", "local-threads"])
def test_installed_program_rejects_a_wrong_column_type_without_beam_traceback(folder: Path, profile: str) -> None:
    """The error is raised inside a Beam job, whose log is not printed."""
    write_log(folder, log(item_id=[[row] for row in ROWS]))
    done = run_installed("prepare", "--config", folder / "recsys.toml", "--set", f"beam.profile={profile}")
    assert (done.returncode, done.stdout) == (2, "")
    message = "error: {}: item_id must be text or integers. Received: List(String).\n"
    assert done.stderr == message.format(folder / "log.parquet")
    assert results(folder) == []


@pytest.mark.slow
def test_installed_program_rejects_invalid_utf_8_without_traceback(folder: Path) -> None:
    with (folder / "log.csv").open("ab") as file:
        file.write(b"u1,caf\xe9\n")
    done = run_installed("prepare", "--config", folder / "recsys.toml")
    assert (done.returncode, done.stdout) == (2, "")
    assert str(folder / "log.csv") in done.stderr
    assert "Traceback" not in done.stderr
