"""`recsys export`: its destinations and errors."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests import GOLDEN_RELEASES

GOLDEN = GOLDEN_RELEASES / "v2"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "recsys.toml").write_text('[data]\ninteractions = "log.csv"\n')
    return tmp_path / "conf" / "recsys.toml"


@pytest.fixture(autouse=True)
def _other_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change to another folder than the folder of the config."""
    (tmp_path / "current").mkdir()
    monkeypatch.chdir(tmp_path / "current")
    monkeypatch.delenv("RECSYS_EXPORT_TO", raising=False)


def test_default_destination_is_parquet_beside_the_config(program: Any, config: Path) -> None:
    outcome = program("export", "--config", config, "--release", GOLDEN)
    assert outcome.exit_code == 0
    path = config.parent / "neighbors.parquet"
    assert outcome.out == f"Exported 980 neighbors of 49 items of release 50049176ddac to {path}\n"
    assert json.loads((path / "_MANIFEST.json").read_text())["rows"] == 980
    assert [line.split()[0] for line in outcome.err.splitlines()] == ["search", "deliver"]


def test_repeated_export_prints_the_same_json_line(program: Any, config: Path) -> None:
    arguments = ("export", "--config", config, "--release", GOLDEN, "--json")
    first, second = program(*arguments), program(*arguments)
    assert len(first.out.splitlines()) == 1
    assert json.loads(first.out)["items"] == 49
    assert second == (0, first.out, "")


@pytest.mark.parametrize("source", ["option", "variable", "setting"])
@pytest.mark.parametrize(("to", "name"), [("deep/all.db", "sqlite:///deep/all.db"), ("out.jsonl", "out.jsonl")])
def test_path_on_the_command_line_is_relative_to_the_current_folder(
    program: Any, config: Path, monkeypatch: pytest.MonkeyPatch, *, source: str, to: str, name: str
) -> None:
    options = {"option": ("--to", name), "setting": ("--set", f"export.to={name}"), "variable": ()}[source]
    if source == "variable":
        monkeypatch.setenv("RECSYS_EXPORT_TO", name)
    outcome = program("export", "--config", config, "--release", GOLDEN, "--k", 3, *options)
    assert outcome.exit_code == 0, outcome.err
    assert Path(to).is_file()


def test_path_in_the_config_is_relative_to_the_config(program: Any, config: Path) -> None:
    config.write_text(f'{config.read_text()}[export]\nto = "sqlite:///all.db"\nk = 4\n')
    assert program("export", "--config", config, "--release", GOLDEN).exit_code == 0
    with closing(sqlite3.connect(config.parent / "all.db")) as connection:
        rows = connection.execute("SELECT count(*) FROM recsys_neighbors").fetchone()
    assert rows == (49 * 4,)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--to", "out.csv"], 2, "export.to must be a folder"),
        (["--to", "mysql://me:secret@host/db"], 2, "Received: mysql://…@host/db."),
        (["--to", "file/out.jsonl"], 2, "export.to must be in a folder with write permission"),
        (
            ["--to", "redis://:secret@127.0.0.1:1"],
            1,
            "cannot be written to Redis at redis://…@127.0.0.1:1.",
        ),
        (
            ["--to", "postgresql://me:secret@127.0.0.1:1/x"],
            1,
            "to PostgreSQL at postgresql://…@127.0.0.1:1/x. Received",
        ),
        (["--set", 'export.to=["redis://:secret@h"]'], 2, "export.to: should be a valid string"),
        (["--set", "export.where={color = ['red']}"], 2, "Received: 'color'"),
        (["--set", "export.min_similarity=0.99999"], 1, "at least one item must have a neighbor"),
        (["--set", "export.answer=together"], 2, "of format 2. Build a release with recsys nightly"),
        (
            ["--set", "export.answer=together", "--set", "export.min_similarity=0.5"],
            2,
            "min_similarity must not be set with answer 'together'. Received: 0.5",
        ),
        (["--set", "export.answer=nothing"], 2, "export.answer"),
        (["--release", "nowhere"], 1, "release must be a folder with a manifest.json. Received: nowhere"),
        (["--config", "nowhere.toml"], 2, "config file must exist"),
    ],
)
def test_errors_are_one_line_and_leave_no_files(
    program: Any, config: Path, *, arguments: list[str], code: int, message: str
) -> None:
    Path("file").touch()
    outcome = program("export", "--config", config, "--release", GOLDEN, *arguments)
    assert (outcome.exit_code, outcome.out) == (code, "")
    (error,) = [line for line in outcome.err.splitlines() if not line.startswith("  search")]
    assert error.startswith("error: ")
    assert message in error
    assert "secret" not in outcome.err
    assert [path.name for path in Path().iterdir()] == ["file"]
    assert not (config.parent / "neighbors.parquet").exists()


def test_export_without_champion_is_rejected(program: Any, config: Path) -> None:
    outcome = program("export", "--config", config)
    assert (outcome.exit_code, outcome.out) == (1, "")
    assert "model item-tower must have a champion" in outcome.err
