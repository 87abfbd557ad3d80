"""`recsys promote RELEASE`, `rollback`, `releases history`, `pin`, `unpin` and `prune`: what people type."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from recsys.config.loading import load_config
from recsys.release.check import at_least
from recsys.release.mlflow_registry import Tracker
from recsys.release.versions import VERDICT_TAG, Version


class Place(NamedTuple):
    """A workspace with four registered releases; the first two passed the gate, the third failed it."""

    config: Path
    tracker: Tracker
    versions: list[Version]

    @property
    def champion(self) -> str | None:
        found = self.tracker.champion()
        return found.release_id if found else None

    @property
    def releases(self) -> set[str]:
        return {path.name for path in (self.tracker.workspace / "releases").iterdir()}


@pytest.fixture
def place(tmp_path: Path, register_releases: Any) -> Place:
    (tmp_path / "recsys.toml").write_text('[data]\ninteractions = "log.csv"\n')
    tracker = Tracker(load_config(tmp_path / "recsys.toml"))
    versions = register_releases(tracker, 4)
    for version, value in zip(versions[:3], (1, 1, 0), strict=True):
        check = at_least("index_recall", value, 0.5)
        verdict = {"passed": check.passed, "checks": [check.to_dict()]}
        tracker.tag_version(version, {VERDICT_TAG: json.dumps(verdict)})
    return Place(tmp_path / "recsys.toml", tracker, versions)


@pytest.fixture
def ask(place: Place, program: Any) -> Any:
    """Runs a command on the workspace."""
    return lambda *arguments: program(*arguments, "--config", place.config)


def test_a_release_that_passed_is_promoted_and_the_history_says_so(place: Place, ask: Any) -> None:
    outcome = ask("promote", "release-0", "--reason", "first of all")
    assert (outcome.exit_code, outcome.err) == (0, "")
    assert "release-0 is now the champion, the first one" in outcome.out
    assert place.champion == "release-0"
    (event,) = json.loads(ask("releases", "history", "--json").out)
    assert (event["action"], event["before"], event["after"], event["reason"]) == (
        "promote",
        None,
        "release-0",
        "first of all",
    )
    assert event["checks"][0]["name"] == "index_recall"
    for_people = ask("releases", "history")
    assert "first of all" in for_people.out
    assert "passed" in for_people.out


@pytest.mark.parametrize(
    ("release", "reason"), [("release-2", "failed index_recall"), ("release-3", "the gate has not checked it")]
)
def test_a_release_that_did_not_pass_is_promoted_by_force_alone(
    place: Place, ask: Any, release: str, reason: str
) -> None:
    ask("promote", "release-0")
    refused = ask("promote", release)
    assert refused.exit_code == 1
    assert reason in refused.err
    assert place.champion == "release-0"
    forced = ask("promote", release, "--force", "--reason", "we know better")
    assert forced.exit_code == 0
    assert place.champion == release
    assert ("failed index_recall" in forced.out) is (release == "release-2")


def test_an_unknown_release_is_told(place: Place, ask: Any) -> None:
    for command in (("promote", "nothing"), ("rollback", "--to", "nothing"), ("releases", "pin", "nothing")):
        outcome = ask(*command)
        assert outcome.exit_code == 1
        assert "Received: nothing, which is not registered at" in outcome.err
    assert place.champion is None


def test_force_without_a_release_is_an_error(ask: Any) -> None:
    outcome = ask("promote", "--force")
    assert outcome.exit_code == 2
    assert "must be given with a RELEASE" in outcome.err


def test_rollback_goes_to_the_one_before_or_to_a_named_one(place: Place, ask: Any) -> None:
    assert "must have a previous champion" in ask("rollback").err
    ask("promote", "release-0")
    ask("promote", "release-1")
    assert ask("rollback", "--reason", "people complained").exit_code == 0
    assert place.champion == "release-0"
    assert ask("rollback", "--to", "release-1").exit_code == 0
    assert place.champion == "release-1"
    moves = [(event["action"], event["after"]) for event in json.loads(ask("releases", "history", "--json").out)]
    assert moves == [
        ("promote", "release-0"),
        ("promote", "release-1"),
        ("rollback", "release-0"),
        ("rollback", "release-1"),
    ]
    again = ask("rollback", "--to", "release-1")
    assert again.exit_code == 1
    assert "already" in again.err


def test_rollback_is_no_way_around_the_gate(ask: Any) -> None:
    ask("promote", "release-0")
    outcome = ask("rollback", "--to", "release-2")
    assert outcome.exit_code == 1
    assert "must have passed the gate" in outcome.err
    ask("promote", "release-2", "--force")
    ask("promote", "release-1")
    assert ask("rollback", "--to", "release-2").exit_code == 0, "it was in service"


def test_rollback_to_a_release_that_does_not_load_changes_nothing(place: Place, ask: Any) -> None:
    ask("promote", "release-0")
    ask("promote", "release-1")
    (place.tracker.workspace / "releases" / "release-0" / "index.ann").write_bytes(b"broken")
    outcome = ask("rollback")
    assert outcome.exit_code == 1
    assert "index.ann" in outcome.err
    assert place.champion == "release-1"
    assert len(json.loads(ask("releases", "history", "--json").out)) == 2


def test_rollback_fetches_what_is_not_here(place: Place, ask: Any) -> None:
    ask("promote", "release-0")
    ask("promote", "release-1")
    shutil.rmtree(place.tracker.workspace / "releases" / "release-0")
    assert ask("rollback").exit_code == 0
    assert place.champion == "release-0"
    assert "release-0" in place.releases


def test_a_move_by_hand_is_told_by_the_history(place: Place, ask: Any) -> None:
    assert "No release has been promoted yet" in ask("releases", "history").out
    ask("promote", "release-0")
    place.tracker.promote(place.versions[1], place.versions[0])
    outcome = ask("releases", "history")
    assert outcome.exit_code == 0
    assert "the champion is release-1, but the last recorded promotion is of release-0" in outcome.err


# --- recsys releases prune


def test_prune_tells_first_and_deletes_when_told_to(place: Place, ask: Any) -> None:
    ask("promote", "release-0")
    dry = ask("releases", "prune", "--keep", 1)
    assert dry.exit_code == 0
    assert "Nothing was deleted" in dry.out
    assert place.releases == {f"release-{number}" for number in range(4)}
    done = json.loads(ask("releases", "prune", "--keep", 1, "--yes", "--json").out)
    assert done["kept"] == {"release-0": "champion", "release-3": "one of the newest 1"}
    assert place.releases == {"release-0", "release-3"}
    assert done["releases"] == ["release-1", "release-2"]


def test_champion_previous_and_pinned_stay(place: Place, ask: Any) -> None:
    ask("promote", "release-0")
    ask("promote", "release-1")
    assert "pinned: for the audit" in ask("releases", "pin", "release-2", "--reason", "for the audit").out
    ask("releases", "prune", "--keep", 1, "--yes")
    assert place.releases == {f"release-{number}" for number in range(4)}
    assert ask("releases", "unpin", "release-2").exit_code == 0
    assert ask("releases", "unpin", "release-2").exit_code == 0
    ask("releases", "prune", "--keep", 1, "--yes")
    assert place.releases == {"release-0", "release-1", "release-3"}


@pytest.fixture
def server() -> Iterator[str]:
    """Says that it serves release-1."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"release_id": "release-1"}' if self.path == "/v1/release" else b"{}")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_what_a_server_serves_stays(place: Place, ask: Any, server: str) -> None:
    done = json.loads(ask("releases", "prune", "--keep", 1, "--server", server, "--yes", "--json").out)
    assert done["kept"]["release-1"] == f"served by {server}"
    assert place.releases == {"release-1", "release-3"}


def test_a_server_that_does_not_answer_saves_everything(place: Place, ask: Any) -> None:
    outcome = ask("releases", "prune", "--keep", 1, "--server", "http://127.0.0.1:9", "--yes")
    assert outcome.exit_code == 2
    assert "nothing is deleted" in outcome.err
    assert len(place.releases) == 4
