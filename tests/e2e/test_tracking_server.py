"""Nights on a tracking server with PostgreSQL behind it, all of it started here; skipped where there is none."""

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
    """A tracking server, and the database behind it."""

    url: str
    database: str

    def ask(self, query: str) -> list[Any]:
        """What PostgreSQL says itself."""
        with psycopg.connect(self.database) as connection:
            return connection.execute(query).fetchall()  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with servers.postgresql() as database:
        store = database.replace("postgresql://", "postgresql+psycopg://")
        with tracking_server.serving(store, tmp_path_factory.mktemp("artifacts")) as url:
            yield Server(url, database)


def told(*arguments: object) -> Any:
    """What a command that has to end well prints as JSON."""
    done = program.run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_nights_promotion_rollback_and_history_live_on_a_server(server: Server, tmp_path: Path) -> None:
    """Two nights here; a machine that has only the server's URL tells their history and answers from the champion."""
    config = on(server, world.write(tmp_path / "here"))
    first = told("nightly", "--config", config)
    assert (first["outcome"], first["tracking_uri"]) == ("promoted", server.url)
    world.write(tmp_path / "here", seed=1)
    second = told("nightly", "--config", on(server, config), "--set", "promote.tolerance=0.2")
    assert second["outcome"] == "promoted"

    elsewhere = tmp_path / "elsewhere" / "recsys.toml"
    elsewhere.parent.mkdir()
    elsewhere.write_text('[data]\ninteractions = "none.csv"\n')
    on(server, elsewhere)
    assert answered(elsewhere) == answered(config) != {}
    assert answered(elsewhere)["release_id"] == second["release_id"]

    told("rollback", "--reason", "a test", "--config", elsewhere)
    assert answered(config)["release_id"] == answered(elsewhere)["release_id"] == first["release_id"]
    told("promote", second["release_id"], "--reason", "another test", "--config", config)
    assert answered(elsewhere)["release_id"] == second["release_id"]

    moves = [
        ("promote", None, first["release_id"], f"run {first['run_id']} passed the gate"),
        ("promote", first["release_id"], second["release_id"], f"run {second['run_id']} passed the gate"),
        ("rollback", second["release_id"], first["release_id"], "a test"),
        ("promote", first["release_id"], second["release_id"], "another test"),
    ]
    for machine in (config, elsewhere):
        events = told("releases", "history", "--config", machine)
        assert [(event["action"], event["before"], event["after"], event["reason"]) for event in events] == moves

    kept = dict(server.ask("SELECT value, version FROM model_version_tags WHERE key = 'recsys.release_id'"))
    assert kept == {first["release_id"]: 1, second["release_id"]: 2}
    assert dict(server.ask("SELECT alias, version FROM registered_model_aliases")) == {"champion": 2, "previous": 1}
    nights = server.ask("SELECT status FROM runs JOIN tags USING (run_uuid) WHERE key = 'recsys.run_id'")
    assert nights == [("FINISHED",)] * 2
    assert not [*tmp_path.rglob("mlflow.db"), *tmp_path.rglob("mlartifacts")]


def on(server: Server, config: Path) -> Path:
    """Let a config use the server."""
    config.write_text(f'{config.read_text()}\n[tracking]\nuri = "{server.url}"\n')
    return config


def answered(config: Path) -> Any:
    return told("similar", "item-0-0", "--k", 3, "--config", config)
