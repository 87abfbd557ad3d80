"""Nightly runs with an MLflow tracking server on PostgreSQL; skipped if PostgreSQL is not installed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest

from recsys.testing import program, world
from tests.e2e import tracking_server
from tests.pipelines import servers

pytestmark = pytest.mark.e2e


class Server(NamedTuple):
    """A tracking server and its database."""

    url: str
    database: str

    def query(self, statement: str) -> list[Any]:
        """Return rows directly from PostgreSQL."""
        with psycopg.connect(self.database) as connection:
            return connection.execute(statement).fetchall()  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with servers.postgresql() as database:
        store = database.replace("postgresql://", "postgresql+psycopg://")
        with tracking_server.serving(store, tmp_path_factory.mktemp("artifacts")) as url:
            yield Server(url, database)


def run_json(*arguments: object) -> Any:
    """Run a command that must succeed, and return its JSON output."""
    done = program.run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_machines_share_champion_and_history_through_the_server(server: Server, tmp_path: Path) -> None:
    """Two runs on one machine; another machine has only the URL of the server."""
    config = with_tracking(server, world.write(tmp_path / "one"))
    first = run_json("nightly", "--config", config)
    assert (first["outcome"], first["tracking_uri"]) == ("promoted", server.url)
    world.write(tmp_path / "one", seed=1)
    second = run_json("nightly", "--config", with_tracking(server, config), "--set", "promote.tolerance=0.2")
    assert second["outcome"] == "promoted"

    other_config = tmp_path / "other" / "recsys.toml"
    other_config.parent.mkdir()
    other_config.write_text('[data]\ninteractions = "none.csv"\n')
    with_tracking(server, other_config)
    assert neighbors(other_config) == neighbors(config) != {}
    assert neighbors(other_config)["release_id"] == second["release_id"]

    run_json("rollback", "--reason", "a test", "--config", other_config)
    assert neighbors(config)["release_id"] == neighbors(other_config)["release_id"] == first["release_id"]
    run_json("promote", second["release_id"], "--reason", "another test", "--config", config)
    assert neighbors(other_config)["release_id"] == second["release_id"]

    history = [
        ("promote", None, first["release_id"], f"run {first['run_id']} passed the gate"),
        ("promote", first["release_id"], second["release_id"], f"run {second['run_id']} passed the gate"),
        ("rollback", second["release_id"], first["release_id"], "a test"),
        ("promote", first["release_id"], second["release_id"], "another test"),
    ]
    for path in (config, other_config):
        events = run_json("releases", "history", "--config", path)
        assert [(event["action"], event["before"], event["after"], event["reason"]) for event in events] == history

    versions = dict(server.query("SELECT value, version FROM model_version_tags WHERE key = 'recsys.release_id'"))
    assert versions == {first["release_id"]: 1, second["release_id"]: 2}
    assert dict(server.query("SELECT alias, version FROM registered_model_aliases")) == {"champion": 2, "previous": 1}
    runs = server.query("SELECT status FROM runs JOIN tags USING (run_uuid) WHERE key = 'recsys.run_id'")
    assert runs == [("FINISHED",)] * 2
    assert not [*tmp_path.rglob("mlflow.db"), *tmp_path.rglob("mlartifacts")]


def with_tracking(server: Server, config: Path) -> Path:
    """Add the tracking server to a config."""
    config.write_text(f'{config.read_text()}\n[tracking]\nuri = "{server.url}"\n')
    return config


def neighbors(config: Path) -> Any:
    return run_json("similar", "item-0-0", "--k", 3, "--config", config)
