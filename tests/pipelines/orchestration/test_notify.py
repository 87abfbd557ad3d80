"""Notifications of a run: recipients, content, and failures, which neither fail the run nor reveal the URL."""

import json
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipelines.orchestration.notify import WEBHOOK, notify
from recsys.config.sections import NotifyConfig

SUMMARY = {"outcome": "rejected", "run_id": "0123456789ab", "text": "…"}


class Hook(HTTPServer):
    """A webhook that records its requests."""

    def __init__(self, status: int = 200) -> None:
        self.status, self.requests = status, list[tuple[str, str, Any]]()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hooks/s3cret"


class Handler(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.path, self.headers["Content-Type"], json.loads(content)))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@pytest.fixture(autouse=True)
def _no_webhook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WEBHOOK, raising=False)


@pytest.fixture
def hook() -> Iterator[Hook]:
    yield from serve_hook(200)


@pytest.fixture
def failing_hook() -> Iterator[Hook]:
    yield from serve_hook(503)


def serve_hook(status: int) -> Iterator[Hook]:
    with Hook(status) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def notification_errors(config: NotifyConfig) -> list[str]:
    """Send SUMMARY and return the lines that `notify` writes."""
    lines: list[str] = []
    notify(SUMMARY, config, lines.append)
    return lines


def test_webhook_receives_the_summary(hook: Hook) -> None:
    assert notification_errors(NotifyConfig(webhook=hook.url)) == []
    assert hook.requests == [("/hooks/s3cret", "application/json", SUMMARY)]


def test_environment_variable_overrides_the_config(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WEBHOOK, hook.url)
    assert notification_errors(NotifyConfig(webhook="http://127.0.0.1:1/other")) == []
    assert len(hook.requests) == 1


def test_outcomes_outside_notify_on_are_not_sent(hook: Hook, tmp_path: Path) -> None:
    command = (sys.executable, "-c", f"open({str(tmp_path / 'summary')!r}, 'w')")
    assert notification_errors(NotifyConfig(webhook=hook.url, command=command, on=("failed",))) == []
    assert hook.requests == []
    assert not (tmp_path / "summary").exists()


def test_command_receives_the_summary_and_its_arguments_unchanged(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = "import sys; print('noise'); open(sys.argv[1], 'w').write(sys.stdin.read() + sys.argv[2])"
    config = NotifyConfig(command=(sys.executable, "-c", code, str(tmp_path / "summary"), "$(echo no) ; shell"))
    assert notification_errors(config) == []
    content = (tmp_path / "summary").read_text()
    assert json.loads(content.removesuffix("$(echo no) ; shell")) == SUMMARY
    assert capfd.readouterr().out == ""


def test_webhook_error_status_is_reported_without_the_url(failing_hook: Hook) -> None:
    assert notification_errors(NotifyConfig(webhook=failing_hook.url)) == [
        "The webhook was not notified: it answered 503."
    ]


@pytest.mark.parametrize("scheme", ["http", "file", ""])
def test_unreachable_webhook_is_reported_without_the_url(scheme: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (line,) = notification_errors(NotifyConfig(webhook=f"{scheme}://127.0.0.1:{port}/s3cret\n"))
    assert line.startswith("The webhook was not notified: ")
    assert "s3cret" not in line


def test_slow_webhook_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server accepts the connection and sends an endless response one byte at a time."""
    monkeypatch.setattr("pipelines.orchestration.notify.TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        done = threading.Event()

        def drip() -> None:
            connection, _ = server.accept()
            with connection:
                while not done.wait(0.02):
                    try:
                        connection.send(b"H")
                    except OSError:
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/s3cret"
        lines = notification_errors(NotifyConfig(webhook=url))
        done.set()
        thread.join()
    assert lines == ["The webhook was not notified: no answer after 0.2 s."]


@pytest.mark.parametrize(
    ("code", "reason"), [("raise SystemExit(3)", "ended with exit code 3"), ("input(); input()", "exit code 1")]
)
def test_failing_command_is_reported(code: str, reason: str) -> None:
    (line,) = notification_errors(NotifyConfig(command=(sys.executable, "-c", code)))
    assert line.startswith("The command of [notify] failed: ")
    assert reason in line


def test_missing_or_endless_command_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.orchestration.notify.TIMEOUT_SECONDS", 0.1)
    (line,) = notification_errors(NotifyConfig(command=(str(tmp_path / "none"),)))
    assert "No such file" in line
    endless = (sys.executable, "-c", "import threading; threading.Event().wait()")
    (line,) = notification_errors(NotifyConfig(command=endless))
    assert "did not end within 0.1 s" in line


def test_repr_of_the_config_hides_the_url() -> None:
    assert "s3cret" not in repr(NotifyConfig(webhook="https://chat.example/s3cret"))
