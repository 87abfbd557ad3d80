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
"""Environment variable with the URL of the webhook. It overrides the config and keeps a secret URL out of files."""
TIMEOUT_SECONDS = 10.0
"""Maximum duration of a webhook or a command."""


def notify(summary: Mapping[str, Any], config: NotifyConfig, write: Callable[[str], None]) -> None:
    """Send the summary of a run to the webhook and the command of the config, if its outcome is in `config.on`.

    Args:
        summary: JSON-serializable, with `outcome`.
        config: webhook, command, and the outcomes that they are notified of.
        write: called with one line for each notification that fails. The line does not contain the URL, which may
            contain a secret.
    """
    if summary["outcome"] not in config.on:
        return
    content = json.dumps(summary).encode()
    url = os.environ.get(WEBHOOK) or config.webhook
    if url and (message := _post(url, content, TIMEOUT_SECONDS)):
        write(f"The webhook was not notified: {message}.")
    if config.command and (message := _run(config.command, content, TIMEOUT_SECONDS)):
        write(f"The command of [notify] failed: {message}.")


def _post(url: str, content: bytes, timeout_seconds: float) -> str | None:
    """Post JSON to a URL; return an error message, or None."""
    message: str | None = f"no answer after {timeout_seconds:g} s"

    def post() -> None:
        nonlocal message
        try:
            if not url.lower().startswith(("http://", "https://")):
                message = "the URL must begin with http:// or https://"
                return
            headers = {"Content-Type": "application/json"}
            request = Request(url, content, headers, method="POST")  # noqa: S310 - the scheme is checked above
            with urlopen(request, timeout=timeout_seconds):  # noqa: S310
                message = None
        except HTTPError as error:
            message = f"it answered {error.code}"
        except Exception as error:  # noqa: BLE001 - some messages of urllib contain the URL
            message = type(error).__name__

    # a thread, because the timeout of urllib applies to each read: a slow server could block the run
    thread = threading.Thread(target=post, daemon=True)
    thread.start()
    thread.join(timeout_seconds)
    return message


def _run(command: tuple[str, ...], content: bytes, timeout_seconds: float) -> str | None:
    """Run a command with JSON on its standard input, without a shell; return an error message, or None."""
    try:
        # standard output is reserved for the result of the run
        completed = subprocess.run(
            command, input=content, stdout=subprocess.DEVNULL, timeout=timeout_seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return f"{command[0]} did not end within {timeout_seconds:g} s"
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    return f"{command[0]} ended with exit code {completed.returncode}" if completed.returncode else None
