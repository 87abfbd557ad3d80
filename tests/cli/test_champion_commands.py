"""`recsys promote RELEASE`, `rollback`, `releases history`, `pin`, `unpin` and `prune` on the command line."""

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


class Workspace(NamedTuple):
    """A workspace with four registered releases; the first two passed the gate, the third failed it."""

    config: Path
    tracker: Tracker
    versions: list[Version]

    @property
    def champion(self) -> str | None:
        champion = self.tracker.champion()
        return champion.release_id if champion else None

    @property
    def releases(self) -> set[str]:
        return {path.name for path in (self.tracker.workspace / "releases").iterdir()}


@pytest.fixture
def workspace(tmp_path: Path, register_releases: Any) -> Workspace:
    (tmp_path / "recsys.toml").write_text('[data]\ninteractions = "log.csv"\n')
    tracker = Tracker(load_config(tmp_path / "recsys.toml"))
    versions = register_releases(tracker, 4)
    for version, value in zip(versions[:3], (1, 1, 0), strict=True):
        check = at_least("index_recall", value, 0.5)
        verdict = {"passed": check.passed, "checks": [check.to_dict()]}
        tracker.tag_version(version, {VERDICT_TAG: json.dumps(verdict)})
    return Workspace(tmp_path / "recsys.toml", tracker, versions)


@pytest.fixture
def invoke(workspace: Workspace, program: Any) -> Any:
    """Return a function that runs a command on the workspace."""
    return lambda *arguments: program(*arguments, "--config", workspace.config)


def test_promotion_of_a_passed_release_is_recorded_in_the_history(workspace: Workspace, invoke: Any) -> None:
    outcome = invoke("promote", "release-0", "--reason", "initial release")
    assert (outcome.exit_code, outcome.err) == (0, "")
    assert "release-0 is now the champion, the first one" in outcome.out
    assert workspace.champion == "release-0"
    (event,) = json.loads(invoke("releases", "history", "--json").out)
    assert (event["action"], event["before"], event["after"], event["reason"]) == (
        "promote",
        None,
        "release-0",
        "initial release",
    )
    assert event["checks"][0]["name"] == "index_recall"
    table = invoke("releases", "history")
    assert "initial release" in table.out
    assert "passed" in table.out


@pytest.mark.parametrize(
    ("release", "reason"), [("release-2", "failed index_recall"), ("release-3", "the gate has not checked it")]
)
def test_release_that_did_not_pass_requires_force(workspace: Workspace, invoke: Any, release: str, reason: str) -> None:
    invoke("promote", "release-0")
    rejected = invoke("promote", release)
    assert rejected.exit_code == 1
    assert reason in rejected.err
    assert workspace.champion == "release-0"
    forced = invoke("promote", release, "--force", "--reason", "manual override")
    assert forced.exit_code == 0
    assert workspace.champion == release
    assert ("failed index_recall" in forced.out) is (release == "release-2")


def test_unknown_release_is_rejected(workspace: Workspace, invoke: Any) -> None:
    for command in (("promote", "nothing"), ("rollback", "--to", "nothing"), ("releases", "pin", "nothing")):
        outcome = invoke(*command)
        assert outcome.exit_code == 1
        assert "Received: nothing, which is not registered at" in outcome.err
    assert workspace.champion is None


def test_force_requires_a_release(invoke: Any) -> None:
    outcome = invoke("promote", "--force")
    assert outcome.exit_code == 2
    assert "must be given with a RELEASE" in outcome.err


def test_rollback_promotes_the_previous_or_a_named_release(workspace: Workspace, invoke: Any) -> None:
    assert "must have a previous champion" in invoke("rollback").err
    invoke("promote", "release-0")
    invoke("promote", "release-1")
    assert invoke("rollback", "--reason", "complaints").exit_code == 0
    assert workspace.champion == "release-0"
    assert invoke("rollback", "--to", "release-1").exit_code == 0
    assert workspace.champion == "release-1"
    history = [(event["action"], event["after"]) for event in json.loads(invoke("releases", "history", "--json").out)]
    assert history == [
        ("promote", "release-0"),
        ("promote", "release-1"),
        ("rollback", "release-0"),
        ("rollback", "release-1"),
    ]
    repeated = invoke("rollback", "--to", "release-1")
    assert repeated.exit_code == 1
    assert "already" in repeated.err


@pytest.mark.slow
def test_rollback_does_not_bypass_the_gate(invoke: Any) -> None:
    invoke("promote", "release-0")
    outcome = invoke("rollback", "--to", "release-2")
    assert outcome.exit_code == 1
    assert "must have passed the gate" in outcome.err
    invoke("promote", "release-2", "--force")
    invoke("promote", "release-1")
    assert invoke("rollback", "--to", "release-2").exit_code == 0, "it has been the champion before"


def test_rollback_to_a_damaged_release_changes_nothing(workspace: Workspace, invoke: Any) -> None:
    invoke("promote", "release-0")
    invoke("promote", "release-1")
    (workspace.tracker.workspace / "releases" / "release-0" / "next" / "index.ann").write_bytes(b"broken")
    outcome = invoke("rollback")
    assert outcome.exit_code == 1
    assert "index.ann" in outcome.err
    assert workspace.champion == "release-1"
    assert len(json.loads(invoke("releases", "history", "--json").out)) == 2


@pytest.mark.slow
def test_rollback_downloads_a_missing_release(workspace: Workspace, invoke: Any) -> None:
    invoke("promote", "release-0")
    invoke("promote", "release-1")
    shutil.rmtree(workspace.tracker.workspace / "releases" / "release-0")
    assert invoke("rollback").exit_code == 0
    assert workspace.champion == "release-0"
    assert "release-0" in workspace.releases


def test_history_reports_an_unrecorded_promotion(workspace: Workspace, invoke: Any) -> None:
    assert "No release has been promoted yet" in invoke("releases", "history").out
    invoke("promote", "release-0")
    workspace.tracker.promote(workspace.versions[1], workspace.versions[0])
    outcome = invoke("releases", "history")
    assert outcome.exit_code == 0
    assert "the champion is release-1, but the last recorded promotion is of release-0" in outcome.err


# --- recsys releases prune


def test_prune_deletes_only_with_yes(workspace: Workspace, invoke: Any) -> None:
    invoke("promote", "release-0")
    preview = invoke("releases", "prune", "--keep", 1)
    assert preview.exit_code == 0
    assert "Nothing was deleted" in preview.out
    assert workspace.releases == {f"release-{number}" for number in range(4)}
    pruned = json.loads(invoke("releases", "prune", "--keep", 1, "--yes", "--json").out)
    assert pruned["kept"] == {"release-0": "champion", "release-3": "one of the newest 1"}
    assert workspace.releases == {"release-0", "release-3"}
    assert pruned["releases"] == ["release-1", "release-2"]


def test_prune_keeps_champion_previous_and_pinned(workspace: Workspace, invoke: Any) -> None:
    invoke("promote", "release-0")
    invoke("promote", "release-1")
    assert "pinned: for the audit" in invoke("releases", "pin", "release-2", "--reason", "for the audit").out
    invoke("releases", "prune", "--keep", 1, "--yes")
    assert workspace.releases == {f"release-{number}" for number in range(4)}
    assert invoke("releases", "unpin", "release-2").exit_code == 0
    assert invoke("releases", "unpin", "release-2").exit_code == 0
    invoke("releases", "prune", "--keep", 1, "--yes")
    assert workspace.releases == {"release-0", "release-1", "release-3"}


@pytest.fixture
def server() -> Iterator[str]:
    """URL of a server that serves release-1."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"release_id": "release-1"}' if self.path == "/v1/release" else b"{}")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http_server:
        threading.Thread(target=http_server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http_server.server_port}"
        http_server.shutdown()


def test_prune_keeps_the_release_of_a_server(workspace: Workspace, invoke: Any, server: str) -> None:
    pruned = json.loads(invoke("releases", "prune", "--keep", 1, "--server", server, "--yes", "--json").out)
    assert pruned["kept"]["release-1"] == f"served by {server}"
    assert workspace.releases == {"release-1", "release-3"}


def test_prune_deletes_nothing_if_a_server_is_unreachable(workspace: Workspace, invoke: Any) -> None:
    outcome = invoke("releases", "prune", "--keep", 1, "--server", "http://127.0.0.1:9", "--yes")
    assert outcome.exit_code == 2
    assert "server http://127.0.0.1:9 must return the release that it serves, so that it is not deleted" in outcome.err
    assert len(workspace.releases) == 4
