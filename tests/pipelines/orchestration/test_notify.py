"""Word of a night: who gets what, and that nothing that goes wrong with it costs the night or shows the URL."""

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

SUMMARY = {"outcome": "refused", "run_id": "0123456789ab", "text": "…"}


class Hook(HTTPServer):
    """Keeps what it was told."""

    def __init__(self, status: int = 200) -> None:
        self.status, self.told = status, list[tuple[str, str, Any]]()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hooks/s3cret"


class Handler(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.told.append((self.path, self.headers["Content-Type"], json.loads(content)))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture(autouse=True)
def _no_webhook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WEBHOOK, raising=False)


@pytest.fixture
def hook() -> Iterator[Hook]:
    yield from serving(200)


@pytest.fixture
def broken() -> Iterator[Hook]:
    yield from serving(503)


def serving(status: int) -> Iterator[Hook]:
    with Hook(status) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def told(config: NotifyConfig) -> list[str]:
    """The lines that are said."""
    lines: list[str] = []
    notify(SUMMARY, config, lines.append)
    return lines


def test_the_webhook_gets_the_summary(hook: Hook) -> None:
    assert told(NotifyConfig(webhook=hook.url)) == []
    assert hook.told == [("/hooks/s3cret", "application/json", SUMMARY)]


def test_the_environment_goes_before_the_config(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WEBHOOK, hook.url)
    assert told(NotifyConfig(webhook="http://127.0.0.1:1/other")) == []
    assert len(hook.told) == 1


def test_only_the_ends_that_are_asked_for_are_told(hook: Hook, tmp_path: Path) -> None:
    command = (sys.executable, "-c", f"open({str(tmp_path / 'told')!r}, 'w')")
    assert told(NotifyConfig(webhook=hook.url, command=command, on=("failed",))) == []
    assert hook.told == []
    assert not (tmp_path / "told").exists()


def test_the_command_gets_the_summary_and_its_arguments_as_they_are(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = "import sys; print('noise'); open(sys.argv[1], 'w').write(sys.stdin.read() + sys.argv[2])"
    assert told(NotifyConfig(command=(sys.executable, "-c", code, str(tmp_path / "told"), "$(echo no) ; shell"))) == []
    content = (tmp_path / "told").read_text()
    assert json.loads(content.removesuffix("$(echo no) ; shell")) == SUMMARY
    assert capfd.readouterr().out == ""


def test_a_webhook_that_refuses_is_told_of_without_its_url(broken: Hook) -> None:
    assert told(NotifyConfig(webhook=broken.url)) == ["The webhook was not notified: it answered 503."]


@pytest.mark.parametrize("scheme", ["http", "file", ""])
def test_a_webhook_that_is_away_is_told_of_without_its_url(scheme: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (line,) = told(NotifyConfig(webhook=f"{scheme}://127.0.0.1:{port}/s3cret\n"))
    assert line.startswith("The webhook was not notified: ")
    assert "s3cret" not in line


def test_a_webhook_that_hangs_is_left_after_its_time() -> None:
    """It takes the connection, and sends its answer a byte at a time, without an end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        over = threading.Event()

        def drip() -> None:
            connection, _ = server.accept()
            with connection:
                while not over.wait(0.02):
                    try:
                        connection.send(b"H")
                    except OSError:
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/s3cret"
        lines = told(NotifyConfig(webhook=url))
        over.set()
        thread.join()
    assert lines == ["The webhook was not notified: no answer after 0.2 s."]


@pytest.mark.parametrize(
    ("code", "said"), [("raise SystemExit(3)", "ended with exit code 3"), ("input(); input()", "exit code 1")]
)
def test_a_command_that_fails_is_told_of(code: str, said: str) -> None:
    (line,) = told(NotifyConfig(command=(sys.executable, "-c", code)))
    assert line.startswith("The command of [notify] failed: ")
    assert said in line


def test_a_command_that_is_not_there_or_never_ends_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.orchestration.notify.TIMEOUT_SECONDS", 0.1)
    (line,) = told(NotifyConfig(command=(str(tmp_path / "none"),)))
    assert "No such file" in line
    forever = (sys.executable, "-c", "import threading; threading.Event().wait()")
    (line,) = told(NotifyConfig(command=forever))
    assert "did not end within 0.1 s" in line


def test_the_config_does_not_show_the_url() -> None:
    assert "s3cret" not in repr(NotifyConfig(webhook="https://chat.example/s3cret"))
