"""Notifications at the end of a run: a webhook, a command, or both. Their errors never fail the run."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable, Mapping
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from recsys.config.sections import NotifyConfig

WEBHOOK = "RECSYS_WEBHOOK"
"""Environment variable of the URL; it overrides the config, and keeps a secret URL out of files."""
TIMEOUT_SECONDS = 10.0
"""Time that a webhook or a command may take: the end of a run does not wait longer."""


def notify(summary: Mapping[str, Any], config: NotifyConfig, write: Callable[[str], None]) -> None:
    """Send a summary to the webhook and to the command, if they are to be notified of its outcome.

    Args:
        summary: of the run, serializable as JSON, with `outcome`.
        config: what to notify, and of which outcomes.
        write: receives a line if a notification fails; the line never contains the URL, which may hold a secret.
    """
    if summary["outcome"] not in config.on:
        return
    content = json.dumps(summary).encode()
    url = os.environ.get(WEBHOOK) or config.webhook
    if url and (problem := _post(url, content, TIMEOUT_SECONDS)):
        write(f"The webhook was not notified: {problem}.")
    if config.command and (problem := _run(config.command, content, TIMEOUT_SECONDS)):
        write(f"The command of [notify] failed: {problem}.")


def _post(url: str, content: bytes, timeout_seconds: float) -> str | None:
    """Post JSON to a URL; return the problem, or None."""
    problem: str | None = f"no answer after {timeout_seconds:g} s"

    def post() -> None:
        nonlocal problem
        try:
            if not url.lower().startswith(("http://", "https://")):
                problem = "the URL must begin with http:// or https://"
                return
            headers = {"Content-Type": "application/json"}
            request = Request(url, content, headers, method="POST")  # noqa: S310 - the scheme is checked above
            with urlopen(request, timeout=timeout_seconds):  # noqa: S310
                problem = None
        except HTTPError as error:
            problem = f"it answered {error.code}"
        except Exception as error:  # noqa: BLE001 - some messages of urllib contain the URL
            problem = type(error).__name__

    # a thread, because the timeout of urllib is for each read: a slow server could block the run
    thread = threading.Thread(target=post, daemon=True)
    thread.start()
    thread.join(timeout_seconds)
    return problem


def _run(command: tuple[str, ...], content: bytes, timeout_seconds: float) -> str | None:
    """Run a command, without a shell, with JSON on its standard input; return the problem, or None."""
    try:
        # standard output is for the result of the run
        done = subprocess.run(command, input=content, stdout=subprocess.DEVNULL, timeout=timeout_seconds, check=False)
    except subprocess.TimeoutExpired:
        return f"{command[0]} did not end within {timeout_seconds:g} s"
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    return f"{command[0]} ended with exit code {done.returncode}" if done.returncode else None
